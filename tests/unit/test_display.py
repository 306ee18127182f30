"""Tables and pictures for notebooks."""

import base64
import io

import nbformat
import pytest
from haystack import Document, Pipeline, component
from haystack.components.builders import ChatPromptBuilder
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.dataclasses import ChatMessage
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import Secret
from haystack_integrations.components.embedders.nvidia import NvidiaTextEmbedder
from haystack_integrations.components.generators.nvidia import NvidiaChatGenerator
from nbconvert import HTMLExporter
from PIL import Image

from nim_cookbook import display, pictures, plots
from nim_cookbook.corpus import Evidence, Query
from nim_cookbook.data import people, people_questions
from nim_cookbook.errors import DataError
from nim_cookbook.evaluation import Passage, evaluate_answers, score_retrieval
from nim_cookbook.models import load_registry
from nim_cookbook.refusal import refusal_curve, refusal_rates

WEIGHTS = "Tiny, Q4_1 (local stand-in)"
KEY = "nvapi-fake-key-for-tests"


@pytest.fixture
def pipeline(monkeypatch):
    monkeypatch.setenv("NVIDIA_API_KEY", KEY)
    return rag_pipeline("http://127.0.0.1:8000/v1")


def rag_pipeline(url, reverse=False):
    registry = load_registry()
    secret = Secret.from_env_var("NVIDIA_API_KEY")
    made = Pipeline()
    made.add_component(
        "embedder",
        NvidiaTextEmbedder(model=registry.default("embedding").id, api_url=url, api_key=secret),
    )
    store = InMemoryDocumentStore(index="people")
    made.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=1))
    made.add_component(
        "prompt", ChatPromptBuilder([ChatMessage.from_user("{{documents}} {{question}}")])
    )
    made.add_component(
        "llm",
        NvidiaChatGenerator(model=registry.default("chat").id, api_base_url=url, api_key=secret),
    )
    links = [
        ("embedder.embedding", "retriever.query_embedding"),
        ("retriever.documents", "prompt.documents"),
        ("prompt.prompt", "llm.messages"),
    ]
    for sender, receiver in reversed(links) if reverse else links:
        made.connect(sender, receiver)
    return made


def documents():
    return [Document(**record, score=0.5 - n / 10) for n, record in enumerate(people())]


def test_documents():
    table = display.documents_table(documents(), weights=WEIGHTS)
    assert list(table.frame.columns) == ["content", "meta", "score"]
    assert table.frame["score"].tolist() == [0.5, 0.4, 0.3]
    for text in (repr(table), table._repr_html_()):
        assert WEIGHTS in text and "Giorgio" in text and "id: giorgio" in text


def test_documents_without_anything():
    table = display.documents_table([Document()], weights=WEIGHTS)
    assert table.frame.iloc[0].tolist() == ["", "", None]
    assert "None" not in repr(table) + table._repr_html_()
    empty = display.documents_table([], weights=WEIGHTS)
    assert len(empty) == 0
    assert "(no rows)" in repr(empty) and WEIGHTS in empty._repr_html_()


def test_long_text_is_cut():
    table = display.documents_table([Document(content="x" * 999)], weights=WEIGHTS, max_chars=50)
    assert table.frame["content"][0] == "x" * 49 + "\u2026"
    assert max(map(len, repr(table).splitlines())) < 130


def test_html_from_a_model_is_shown_and_not_run():
    table = display.answers_table(
        [("<b>?</b>", "<script>alert(1)</script>", documents())], weights="<i>Tiny</i>"
    )
    html = table._repr_html_()
    assert "<script" not in html and "<i>" not in html and "&lt;script&gt;" in html


def test_answers_carry_their_sources_and_the_weights():
    table = display.answers_table(
        [("Who lives in Rome?", " Giorgio. ", documents()[2:]), ("Who?", "I don't know.", [])],
        weights=WEIGHTS,
    )
    assert table.frame["sources"].tolist() == ["My name is Giorgio and I live in Rome.", "none"]
    assert table.frame["answer"][0] == "Giorgio."
    assert WEIGHTS in repr(table)


def test_usage():
    usage = {
        "chat": {"prompt_tokens": 40, "completion_tokens": 7, "total_tokens": 47, "details": {}},
        "embedding": {"prompt_tokens": 6, "total_tokens": 6},
    }
    table = display.usage_table(usage, weights={"chat": WEIGHTS, "embedding": "MiniLM"})
    assert table.frame["total tokens"].tolist() == [47, 6]
    assert table.frame["weights"].tolist() == [WEIGHTS, "MiniLM"]
    assert "nan" not in repr(table).lower()


def test_scores():
    questions = people_questions()
    scores = evaluate_answers(questions, [" ".join(q.answers) or "I don't know" for q in questions])
    table = display.scores_table(scores, weights=WEIGHTS)
    assert f"{WEIGHTS}: 9 of 9 correct" in repr(table)
    assert "(not in the documents)" in table._repr_html_()


def test_only_differing_lines_are_shown(pipeline):
    other = rag_pipeline("http://127.0.0.1:8003/v1", reverse=True)
    table = display.diff_pipelines(pipeline, other, names=("NIM", "catalog"))
    assert table.frame["line"].tolist() == [
        "components.embedder.init_parameters.api_url",
        "components.llm.init_parameters.api_base_url",
    ]
    assert table.frame["NIM"].unique().tolist() == ["http://127.0.0.1:8000/v1"]
    assert table.frame["catalog"].unique().tolist() == ["http://127.0.0.1:8003/v1"]
    assert table.caption.startswith("Lines that differ: 2")
    assert KEY not in repr(table)


def test_a_line_that_only_one_has():
    table = display.diff_pipelines({"a": {"b": [1, 2]}}, {"a": {"b": [1]}, "c": None})
    assert table.frame.to_dict("records") == [
        {"line": "a.b.1", "before": "2", "after": "(absent)"},
        {"line": "c", "before": "(absent)", "after": "null"},
    ]


def check_picture(picture, *words):
    assert len(base64.b64encode(picture.png)) < 200_000
    with Image.open(io.BytesIO(picture.png)) as image:
        image.load()
        assert image.width > 300
        assert image.convert("L").getextrema()[1] == 255  # a white ground, for dark themes
    data = picture._repr_mimebundle_(include=None, exclude=None)
    assert base64.b64encode(picture.png).decode() in data["text/html"]
    assert data["text/plain"] == repr(picture) == picture.alt
    for word in words:
        assert word in picture.alt


def test_a_pipeline_is_drawn_offline(pipeline, monkeypatch):
    import socket

    def no_network(*args):
        raise AssertionError("the drawing went online")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    picture = display.draw_pipeline(pipeline, title="Query pipeline")
    check_picture(picture, "Query pipeline", "retriever (InMemoryEmbeddingRetriever)")
    assert "embedder to retriever (embedding \u2192 query_embedding)" in picture.alt
    assert "input to embedder (text)" in picture.alt


@component
class Loud:
    @component.output_types(out=str)
    def run(self, text: str):
        return {"out": text}


def test_odd_component_names_are_drawn_as_they_are():
    made = Pipeline()
    for name in ('say "hi" <b>', "end", "input"):
        made.add_component(name, Loud())
    made.connect('say "hi" <b>', "end")
    made.connect("end", "input")
    text = display.pipeline_mermaid(made)
    assert '["<b>say #quot;hi#quot; &lt;b&gt;</b><br/>Loud"]' in text
    check_picture(display.draw_pipeline(made), "Loud")


def test_timing_chart_names_the_weights():
    picture = plots.timing_chart(
        {"embed": 0.0123, "retrieve": 0.0004, "answer": 2.5}, weights=WEIGHTS, title="One question"
    )
    check_picture(picture, WEIGHTS, "One question", "embed 12 ms", "answer 2.5 s")


def test_the_exported_page_has_the_alt_text():
    picture = plots.timing_chart({"a": 1.0}, weights=WEIGHTS)
    output = nbformat.v4.new_output("display_data", data=picture._repr_mimebundle_())
    cells = [nbformat.v4.new_code_cell("chart", outputs=[output])]
    page, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=cells))
    assert f'alt="{picture.alt}"' in page
    assert "No description" not in page


def test_html_tables_align_text_left_and_numbers_right():
    html = display.Table([{"name": "a", "n": 1}, {"name": "b", "n": None}])._repr_html_()
    assert html.count('<td style="text-align: left">') == 2
    assert html.count('<td style="text-align: right">') == 2


def test_similarity_chart():
    chart = plots.similarity_chart([[1, -0.001], [-0.001, 1]], ["cat", "stock"], weights=WEIGHTS)
    assert WEIGHTS in chart.alt and chart.alt.endswith("A and B 0.00.")
    assert Image.open(io.BytesIO(chart.png)).width > 300
    assert len(chart.png) < pictures.MAX_PNG_BYTES


def judged(name, kind):
    return Query(name, "?", ("x",), kind, (Evidence("a"),))


def scored(*ranks):
    """Scores of a retriever that finds what is wanted at these places."""
    queries = [judged(str(n), "lookup" if n % 2 else "paraphrase") for n in range(len(ranks))]
    run = {
        q.id: [Passage("b", "no")] * (rank - 1) + [Passage("a", "yes")]
        for q, rank in zip(queries, ranks, strict=True)
    }
    return score_retrieval(run, queries)


def test_retrieval_table():
    systems = {"BM25": scored(1, 2, 1, 2), "fused": scored(1, 1, 1, 1)}
    table = display.retrieval_table(systems, {"BM25": 1.4, "fused": 20.6}, weights=WEIGHTS)
    assert WEIGHTS in table.caption and "4 questions" in table.caption
    assert table.frame["retriever"].tolist() == ["BM25", "fused"]
    assert table.frame["mrr"].tolist()[0].startswith("0.750 [0.")
    assert table.frame["ms"].tolist() == [1, 21]


def test_retrieval_plot():
    systems = {"BM25": scored(1, 2, 1, 2), "fused": scored(1, 1, 1, 1)}
    picture = plots.retrieval_plot(systems, "mrr", weights=WEIGHTS)
    check_picture(
        picture, WEIGHTS, "all, 4 questions: BM25 0.750", "lookup, 2 questions: BM25 0.500",
        "paraphrase, 2 questions: BM25 1.000", "fused 1.000 [1.000, 1.000]",
    )  # fmt: skip


def test_retrieval_pictures_compare_only_what_compares():
    other = score_retrieval({}, [judged("9", "lookup")])
    with pytest.raises(DataError, match="different questions"):
        plots.retrieval_plot({"a": scored(1), "b": other}, weights=WEIGHTS)


def test_refusal_plot():
    logits, answerable = [0.0, 1.0, 2.0, 3.0], [False, True, False, True]
    curve = refusal_curve(logits, answerable)
    rates = refusal_rates(logits, answerable, 0.5)
    picture = plots.refusal_plot({"near": curve}, {"near": rates}, weights=WEIGHTS)
    check_picture(picture, WEIGHTS, "near", "refuses 0.500", "wrong refusals, at most 0.500")
