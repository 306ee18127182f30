"""The collections: what the packaged one promises, and how others are read."""

import json
import re
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim_cookbook import corpus
from nim_cookbook.corpus import Evidence, load_beir, load_company, load_folder, overlap, relevant
from nim_cookbook.data import data_path
from nim_cookbook.errors import DataError

COMPANY = load_company()
KINDS = {"lookup", "paraphrase", "two-documents", "superseded", "unanswerable"}
STOP = corpus.words(
    """a about after all an and any are as at be been before between but by can did do does each for
    from had has have he her his how if in into is it its long many may more most much must no
    not of on one only or other out over per she should so than that the their them then there
    they this to under until up was were what when where which while who whom whose why will
    with would you your"""
)


# ------------------------------------------------------------------------ the packaged collection


def test_it_is_as_large_as_promised():
    assert len(COMPANY.sources) >= 120
    assert sum(len(source.text.split()) for source in COMPANY.sources) >= 30_000
    assert len(COMPANY.split("train")) >= 400
    assert len(COMPANY.split("dev")) >= 80
    answerable = Counter(query.answerable for query in COMPANY.split("test"))
    assert answerable[True] >= 200
    assert answerable[False] >= 60
    for split in ("train", "dev", "test"):
        kinds = {query.kind for query in COMPANY.split(split)}
        assert kinds == KINDS - ({"unanswerable"} if split == "train" else set())


def test_every_document_says_what_it_is():
    for source in COMPANY.sources:
        kinds = ("handbook", "policy", "report", "datasheet", "incident", "news")
        assert source.kind in kinds, source.id
        assert source.format in ("md", "pdf", "html"), source.id
        assert re.fullmatch(r"202[456]-\d\d-\d\d", source.date), source.id
        assert source.batch == "initial" or source.batch.startswith("2026-07-0"), source.id
        assert source.split in corpus.SPLITS, source.id
        assert source.title != source.id and len(source.text.split()) > 150, source.id


def test_every_quote_is_in_its_document():
    for query in COMPANY.queries:
        for entry in query.evidence:
            source = COMPANY.source(entry.document)
            assert entry.quote in source.text, (query.id, entry.quote)
            assert "\n" not in entry.quote, query.id
            assert 5 <= len(entry.quote.split()) <= 40, query.id


def test_a_single_chunk_answer_is_in_its_quote():
    for query in COMPANY.queries:
        if query.kind in ("lookup", "paraphrase"):
            assert len(query.evidence) == 1, query.id
            assert query.answers[0] in query.evidence[0].quote, query.id
        elif query.kind == "unanswerable":
            assert not query.answers and not query.evidence, query.id
        else:
            assert query.answers and query.evidence, query.id


def test_questions_ask_what_is_in_force_and_stay_in_their_split():
    in_force = {source.id for source in COMPANY.in_force()}
    for query in COMPANY.queries:
        documents = {entry.document for entry in query.evidence}
        assert {COMPANY.source(name).split for name in documents} <= {query.split}, query.id
        if query.kind == "two-documents":
            assert len(documents) == 2, query.id
        if query.kind == "superseded":
            assert documents <= in_force, query.id


def test_paraphrases_share_next_to_no_word_with_their_quote():
    for split in corpus.SPLITS:
        asked = [query for query in COMPANY.split(split) if query.kind == "paraphrase"]
        clean = [
            not (set(corpus.words(q.question)) & set(corpus.words(q.evidence[0].quote))) - {*STOP}
            for q in asked
        ]
        assert sum(clean) / len(clean) > 0.9, split


def test_no_two_documents_are_copies():
    def grams(text):
        tokens = corpus.words(text)
        return {tuple(tokens[i : i + 8]) for i in range(len(tokens) - 7)}

    of = {source.id: grams(source.text) for source in COMPANY.sources}
    for one, two in combinations(COMPANY.sources, 2):
        if {one.supersedes, one.withdraws} & {two.id} or {two.supersedes, two.withdraws} & {one.id}:
            continue
        shared = len(of[one.id] & of[two.id])
        assert shared <= 0.05 * min(len(of[one.id]), len(of[two.id])), (one.id, two.id, shared)


@pytest.mark.parametrize(("size", "step"), [(30, 30), (80, 80), (80, 60), (200, 200)])
def test_judgements_survive_every_way_of_splitting(size, step):
    chunks = {}
    for source in COMPANY.sources:
        tokens = source.text.split()
        chunks[source.id] = [" ".join(tokens[i : i + size]) for i in range(0, len(tokens), step)]
    counts = Counter(
        sum(relevant(chunk, entry, entry.document) for chunk in chunks[entry.document])
        for query in COMPANY.queries
        for entry in query.evidence
    )
    assert counts[0] == 0
    assert sum(n for count, n in counts.items() if count > 2) < 0.01 * counts.total()


def test_the_readme_has_the_counts():
    readme = (data_path("company") / "README.md").read_text("utf-8")
    count = Counter((query.kind, query.split) for query in COMPANY.queries)
    for kind in KINDS:
        cells = [str(count[kind, split]) for split in corpus.SPLITS]
        assert f"| {kind} | {' | '.join(cells)} |" in readme, (kind, cells)
    assert f"{len(COMPANY.sources)} documents" in readme


# ---------------------------------------------------------------------------------- judgements


@pytest.mark.parametrize(
    ("chunk", "quote", "share"),
    [
        ("The rate rises to 0.46 cr per kilometre.", "rises to 0.46 cr", 1.0),
        ("| Mass |\n3.1   kg", "Mass | 3.1 kg", 1.0),
        ("one two three", "one two three four", 0.75),
        ("two x one two", "one two three four", 0.5),
        ("one x two x three", "one two three four", 0.25),
        ("cali\u00adbration", "Calibration", 1.0),
        ("tender", "end", 0.0),
        ("", "anything", 0.0),
        ("anything", "...", 0.0),
    ],
)
def test_overlap_by_hand(chunk, quote, share):
    assert overlap(chunk, quote) == share


@given(st.lists(st.sampled_from("abcd"), min_size=1), st.integers(0, 50), st.integers(0, 50))
def test_one_half_of_a_cut_quote_stays_relevant(tokens, before, cut):
    text = ["x"] * before + tokens + ["x"]
    at = min(before + cut, len(text))
    evidence = Evidence("d", " ".join(tokens))
    halves = [" ".join(text[:at]), " ".join(text[at:])]
    assert any(relevant(half, evidence, "d") for half in halves)


@given(st.text(), st.text())
def test_overlap_is_a_share(chunk, quote):
    assert 0 <= overlap(chunk, quote) <= 1


def test_the_document_decides_too():
    evidence = Evidence("d", "one two three")
    assert relevant("one two three", evidence)
    assert relevant("one two three", evidence, "d")
    assert not relevant("one two three", evidence, "e")
    assert relevant("any words", Evidence("d"), "d")
    assert not relevant("any words", Evidence("d"), "e")
    assert not relevant("any words", Evidence("d"))


# --------------------------------------------------------------------------- anybody's documents


PAGE = """<html><head><title>Tea &amp; more</title><meta name="id" content="tea">
<style>p {color: red}</style></head><body><nav>Home</nav><p>Green tea: 80&nbsp;&deg;C,
two <b>minutes</b>.</p><table><tr><th>Leaf</th><td>Sencha</td></tr></table>
<script>var x = "no";</script></body></html>"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "guides").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.md").write_text("hidden")
    (tmp_path / "guides" / "one.md").write_text(
        "---\ntitle: 'One: a start'\nother: 3\n---\n# One\nBody.\n"
    )
    (tmp_path / "rule.md").write_text("---\nno front matter\n---\ntext\n")
    (tmp_path / "plain.txt").write_text("---\ntitle: kept\n---\n")
    (tmp_path / "page.HTML").write_text(PAGE)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    return tmp_path


def ask(folder, *lines):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "questions.jsonl").write_text(text)
    return load_folder(folder)


def test_a_folder_of_files(folder):
    collection = load_folder(str(folder))
    assert {source.id for source in collection.sources} == {
        "guides/one.md", "rule.md", "plain.txt", "tea",
    }  # fmt: skip
    assert collection.queries == ()
    one = collection.source("guides/one.md")
    assert (one.title, one.format, one.text) == ("One: a start", "md", "# One\nBody.\n")
    assert collection.source("rule.md").text.startswith("---")
    assert collection.source("plain.txt").text.startswith("---")
    tea = collection.source("tea")
    assert tea.title == "Tea & more"
    assert tea.text == "Green tea: 80 °C, two minutes.\nLeaf | Sencha\n"
    with pytest.raises(DataError, match="no document 'x'"):
        collection.source("x")


def test_questions_about_a_folder(folder):
    evidence = [{"document": "tea", "quote": "two minutes"}, {"document": "rule.md"}]
    full = {"id": "a", "question": "How long?", "answers": ["two"], "split": "dev"}
    collection = ask(folder, full | {"evidence": evidence}, "", {"question": "Why?"})
    first, second = collection.queries
    assert first.evidence == (Evidence("tea", "two minutes"), Evidence("rule.md"))
    assert collection.split("dev") == (first,)
    assert (second.id, second.answerable) == ("q-3", False)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is no JSON object"),
        ({"id": "x"}, "'question': Field required"),
        ({"question": 3}, "'question': Input should be a valid string, not 3"),
        ({"question": " "}, "'question'"),
        ({"question": "?", "answers": "Rome"}, "'answers'"),
        ({"question": "?", "answers": [3]}, "'answers.0'"),
        ({"question": "?", "evidence": ["tea"]}, "'evidence.0'"),
        ({"question": "?", "evidence": [{"quote": "x"}]}, "'evidence.0.document': Field required"),
        ({"question": "?", "evidence": [{"document": "no"}]}, "no document 'no'"),
        (
            {"question": "?", "evidence": [{"document": "tea", "quote": "coffee"}]},
            "'tea' does not hold the quote 'coffee'",
        ),
        ({"id": "a", "question": "?"}, "id 'a' is used a second time"),
    ],
)
def test_a_malformed_question_is_one_sentence(folder, line, message):
    with pytest.raises(DataError, match=r"Line 3 of questions\.jsonl") as caught:
        ask(folder, {"id": "a", "question": "?"}, "", line)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_holds_nothing(tmp_path, folder):
    with pytest.raises(DataError, match="no folder"):
        load_folder(tmp_path / "none")
    (folder / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match=r"bytes\.txt cannot be read"):
        load_folder(folder)


def test_two_files_with_one_id(folder):
    (folder / "tea.md").write_text("---\nid: tea\n---\nx\n")
    with pytest.raises(DataError, match=r"tea\.md: the id 'tea' is used a second time"):
        load_folder(folder)


# ---------------------------------------------------------------------------------- BEIR's layout


CORPUS = '{"_id": "d1", "title": "T", "text": "x"}\n{"_id": "d2", "text": ""}\n'
QUERIES = '{"_id": "q1", "text": "what"}\n{"_id": "q2", "text": "who", "metadata": {}}\n'
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t1\nq2\td2\t0\n"


def beir(folder, corpus=CORPUS, queries=QUERIES, qrels=QRELS):
    (folder / "qrels").mkdir()
    (folder / "corpus.jsonl").write_text(corpus)
    (folder / "queries.jsonl").write_text(queries)
    (folder / "qrels" / "test.tsv").write_text(qrels)
    return folder


@pytest.mark.parametrize("qrels", [QRELS, QRELS.split("\n", 1)[1], QRELS.replace("\n", "\r\n")])
def test_beir(tmp_path, qrels):
    collection = load_beir(beir(tmp_path, qrels=qrels))
    assert [(s.id, s.title, s.text) for s in collection.sources] == [
        ("d1", "T", "x"),
        ("d2", "", ""),
    ]
    (query,) = collection.split("test")
    assert query.evidence == (Evidence("d1", "", 2), Evidence("d2"))
    assert query.answerable


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"corpus": CORPUS + "nonsense"}, "Line 3 of corpus.jsonl is no JSON object"),
        ({"corpus": CORPUS + '{"text": "x"}'}, "Line 3 of corpus.jsonl: '_id': Field required"),
        ({"corpus": CORPUS + '{"_id": "d3"}'}, "Line 3 of corpus.jsonl: 'text': Field required"),
        ({"qrels": QRELS + "q1 d1 1"}, "Line 5 of test.tsv"),
        ({"qrels": QRELS + "q1\td1\thigh"}, "Line 5 of test.tsv"),
        ({"qrels": QRELS + "q9\td1\t1"}, "Line 5 of test.tsv is no judgement"),
        ({"qrels": QRELS + "q1\td9\t1"}, "this collection ('d9')"),
        ({"qrels": ""}, "holds no judgements"),
    ],
)
def test_malformed_beir_is_one_sentence(tmp_path, changed, message):
    with pytest.raises(DataError, match=re.escape(message)):
        load_beir(beir(tmp_path, **changed))
