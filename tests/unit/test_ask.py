"""`nim-cookbook ask`: which files are read, how the index is kept, what is shown."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from fpdf import FPDF
from rich.console import Console
from rich.text import Text

from cookbook_cli import ask as ask_module
from cookbook_cli import connection
from cookbook_cli.__main__ import main
from cookbook_cli.folder_index import place_of
from nim_cookbook.answering import REFUSAL
from nim_cookbook.bounded import BoundedPreparation
from nim_cookbook.endpoints import Endpoints, Mode
from nim_cookbook.folders import folder_files, read_folder
from tests.unit.fake_models import ANSWER, KEY, KEY_VARIABLE, FakeModels, serving

KETTLE = "The kettle of the tea kitchen is descaled on the first Monday of March."
OWL = "The owl in the warehouse is called Bernard and eats at nine."
RAFT = "The raft lies at the third buoy and carries two lanterns."
ASKED = "When is the kettle descaled?"


class Session:
    """The command, run in this process against endpoints that answer by rule."""

    def __init__(self, models: FakeModels, folder: Path) -> None:
        self.models = models
        self.folder = folder
        self.mode: Mode = "local"
        self.weights = "fake weights"
        self.closed = 0

    @contextlib.contextmanager
    def connected(self, mode: Mode | None = None) -> Iterator[Endpoints]:
        try:
            yield self.models.endpoints(mode or self.mode, self.weights)
        finally:
            self.closed += 1

    def ask(self, *arguments: str) -> int:
        """Run the command; what was asked of the models before is forgotten."""
        self.models.embedded.clear()
        self.models.prompts.clear()
        self.models.ranked.clear()
        return main(["ask", str(self.folder), *arguments])

    def place(self) -> Path:
        return place_of(self.folder.resolve(), self.weights, self.models.width)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file of each kind, and some that cannot be read."""
    place = tmp_path / "my papers"
    (place / "deep" / "er").mkdir(parents=True)
    (place / ".hidden").mkdir()
    (place / "kettle.md").write_text(f"# The kettle\n\n{KETTLE}\n", encoding="utf-8")
    (place / "deep" / "er" / "owl.txt").write_text(OWL, encoding="utf-8")
    pdf = FPDF()
    pdf.set_font("helvetica", size=12)
    filler = " ".join(["nothing"] * 100)
    for text in (filler, f"{filler} {RAFT}"):
        pdf.add_page()
        pdf.write(text=text)
    pdf.output(str(place / "deep" / "raft_of-2026.pdf"))
    (place / "broken.pdf").write_bytes(b"%PDF-1.4\nnot much of it")
    (place / "empty.txt").touch()
    (place / "notes.docx").write_bytes(b"PK")
    (place / "photo.PNG").write_bytes(b"\x89PNG")
    (place / ".hidden" / "secret.md").write_text("The password is on the fridge.")
    (place / ".secret.md").write_text("The password is on the fridge.")
    return place


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> Iterator[Session]:
    monkeypatch.setenv("COOKBOOK_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with serving() as models:
        running = Session(models, folder)
        monkeypatch.setattr(connection, "connected", running.connected)
        yield running


def one_line(text: str) -> str:
    assert "Traceback" not in text
    (line,) = text.strip().splitlines()
    return line


# --- files ----------------------------------------------------------------------------------


def test_files_are_found_by_their_paths_and_hidden_ones_are_not(folder):
    found = read_folder(folder)
    assert [file.document for file in found.files] == [
        "broken.pdf",
        "empty.txt",
        "kettle.md",
        "deep/raft_of-2026.pdf",
        "deep/er/owl.txt",
    ]
    assert dict(found.others) == {".docx": 1, ".png": 1}
    assert found.unreadable == ()
    (file,) = folder_files(folder / "kettle.md")  # one file will do
    assert (file.document, file.path) == ("kettle.md", (folder / "kettle.md").resolve())


@pytest.mark.parametrize(
    ("name", "content", "title"),
    [
        ("a.md", "# The *blue* [heron](x.md)\n\ntext", "The blue heron"),
        ("a.markdown", "---\nx: 1\n---\ntext\n\n## Second level\n\n# First", "Second level"),
        ("a.md", "```sh\n# a comment\n```\n\n# A title", "A title"),
        ("my_own-notes.md", "no heading at all", "My own notes"),
        ("a.html", "<title>Fish &amp;\n chips</title><h1>No</h1>", "Fish & chips"),
        ("a.HTM", "<body><h1>A <b>page</b></h1>", "A page"),
        ("report_2026-q1.pdf", "%PDF", "Report 2026 q1"),
        ("a.txt", "# not a heading", "A"),
        ("___.txt", "text", "___.txt"),
    ],
)
def test_titles(tmp_path, name, content, title):
    (tmp_path / name).write_text(content, encoding="utf-8")
    (file,) = folder_files(tmp_path)
    assert file.meta["title"] == title


def test_the_date_of_a_page_is_known(tmp_path):
    page = '<meta name="date" content="2026-03-01T10:00"><title>News</title>'
    (tmp_path / "a.html").write_text(page, encoding="utf-8")
    assert folder_files(tmp_path)[0].meta == {"title": "News", "date": "2026-03-01"}


def test_a_name_that_cannot_be_shown_is_reported(tmp_path):
    try:
        Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.md")).write_text("text")
    except OSError:
        pytest.skip("this file system allows no such name")
    found = read_folder(tmp_path)
    assert found.files == ()
    assert len(found.unreadable) == 1
    assert "rename it" in found.unreadable[0]


# --- the index ------------------------------------------------------------------------------


def test_an_answer_with_its_sources(session, capsys):
    assert session.ask("Where does the raft lie?", "--top-k", "2") == 0
    output = capsys.readouterr().out
    assert "3 added, 2 skipped; 5 chunks embedded; 5 chunks in all." in output
    assert "skipped empty.txt: the file is empty" in output
    assert re.search(r"skipped broken\.pdf: it cannot be read as a PDF", output)
    assert "2 files of other kinds left out: .docx, .png" in output
    assert ANSWER in output
    assert re.search(r"\[1\] deep/raft_of-2026\.pdf, p\. 2 \(score \d\.\d\d\)\n    nothing", output)
    assert "[2] " in output
    assert "[3] " not in output
    assert "Answered by: chat: fake weights; embedding: fake weights" in output
    assert "fridge" not in output
    assert session.closed == 1


def test_a_file_that_takes_too_much_is_skipped_and_named(session, capsys, monkeypatch):
    session.ask(ASKED)
    (session.folder / "bomb.md").write_text("Any file is too much for a byte of memory.")
    monkeypatch.setattr(BoundedPreparation.__init__, "__defaults__", (1, 60.0))
    capsys.readouterr()
    assert session.ask(ASKED) == 0
    output = capsys.readouterr().out
    assert "skipped bomb.md: it needs more than 0 MB of memory to read" in output
    assert "3 unchanged, 3 skipped" in output
    assert session.models.embedded == []


def test_a_second_run_embeds_nothing(session, capsys):
    session.ask(ASKED)
    assert len(session.models.embedded) == 5
    capsys.readouterr()
    assert session.ask(ASKED) == 0
    assert session.models.embedded == []
    assert "3 unchanged, 2 skipped; 0 chunks embedded" in capsys.readouterr().out


def test_only_what_changed_is_embedded_and_what_was_deleted_is_gone(session, capsys):
    session.ask(ASKED)
    (session.folder / "kettle.md").write_text("# The kettle\n\nThe kettle is new.\n")
    (session.folder / "deep" / "er" / "owl.txt").unlink()
    capsys.readouterr()
    assert session.ask("Is the kettle new?", "--top-k", "20") == 0
    output = capsys.readouterr().out
    (text,) = session.models.embedded
    assert text.endswith("The kettle is new.")
    assert "1 changed, 1 removed, 1 unchanged, 2 skipped; 1 chunks embedded; 4 chunks" in output
    assert "owl.txt" not in output
    assert KETTLE not in session.models.prompts[0]
    assert "The kettle is new." in session.models.prompts[0]


def test_another_folder_has_another_index(session, tmp_path):
    session.ask(ASKED)
    other = tmp_path / "other" / session.folder.name
    other.mkdir(parents=True)
    (other / "a.txt").write_text(OWL)
    session.folder = other
    session.ask("What does the owl eat?", "--top-k", "20")
    assert "kettle" not in session.models.prompts[0]


def test_other_weights_or_another_width_have_another_index(session):
    session.ask(ASKED)
    for weights, width, embedded in (("other", 64, 5), ("other", 32, 5), ("fake weights", 64, 0)):
        session.weights, session.models.width = weights, width
        assert session.ask(ASKED) == 0
        assert len(session.models.embedded) == embedded


def test_an_index_in_use_is_one_sentence(session, capsys):
    session.ask(ASKED)
    capsys.readouterr()
    with FileLock(session.place() / "lock"):
        assert session.ask(ASKED) == 2
    assert "is in use by another nim-cookbook ask" in one_line(capsys.readouterr().err)
    assert session.ask(ASKED) == 0


@pytest.mark.parametrize("file", ["qdrant/meta.json", "qdrant/collection/Document/storage.sqlite"])
def test_a_damaged_index_is_one_sentence_and_can_be_rebuilt(session, capsys, file):
    session.ask(ASKED)
    capsys.readouterr()
    victim = session.place() / file
    assert victim.is_file()
    victim.write_bytes(b"garbage" * 1000)
    assert session.ask(ASKED) == 2
    sentence = one_line(capsys.readouterr().err)
    assert "is damaged" in sentence
    assert "--rebuild" in sentence
    assert session.ask(ASKED, "--rebuild") == 0
    assert len(session.models.embedded) == 5


def test_interrupted_while_indexing_the_next_run_completes_it(session, monkeypatch, capsys):
    for number in range(150):
        (session.folder / f"file-{number:03}.txt").write_text(f"Note {number} on the weather.")

    def interrupt(*_: object, **__: object) -> None:
        if len(session.models.embedded) > 100:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ask_module.LoggedProgress, "line", interrupt)
        assert session.ask(ASKED) == 130
    assert "Stopped" in capsys.readouterr().err
    assert session.closed == 1
    assert session.ask(ASKED) == 0
    assert 0 < len(session.models.embedded) < 155
    assert "155 chunks in all" in capsys.readouterr().out
    session.ask(ASKED)
    assert session.models.embedded == []


# --- answers --------------------------------------------------------------------------------


def test_below_the_threshold_is_a_refusal(session, capsys):
    assert session.ask(ASKED, "--threshold", "99") == 0
    output = capsys.readouterr().out
    assert REFUSAL in output
    assert "The best chunk scores 4.00, and 99.00 is asked for" in output
    assert "[1]" not in output
    assert session.models.prompts == []


@pytest.mark.parametrize("mode", ["local", "self-hosted"])
def test_the_default_threshold_is_that_of_the_reranking_model(session, capsys, mode):
    session.ask(ASKED, "--endpoints", mode)
    assert REFUSAL not in capsys.readouterr().out
    session.ask(ASKED, "--endpoints", mode, "--threshold", "99")
    assert REFUSAL in capsys.readouterr().out
    session.models.refusal_logit = 99.0
    session.ask(ASKED, "--endpoints", mode)
    assert REFUSAL in capsys.readouterr().out
    session.ask(ASKED, "--endpoints", mode, "--threshold", "-99")
    assert REFUSAL not in capsys.readouterr().out


def test_json_is_all_that_goes_to_standard_output(session, capsys):
    assert session.ask("Where does the raft lie?", "--json") == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert answer["question"] == "Where does the raft lie?"
    assert answer["answer"] == ANSWER
    assert answer["refused"] is False
    source, *others = answer["sources"]
    assert [entry["number"] for entry in (source, *others)] == [1, 2, 3]
    assert (source["file"], source["page"]) == ("deep/raft_of-2026.pdf", 2)
    assert RAFT in source["text"]
    assert answer["answered_by"]["chat"] == "fake weights"
    assert "3 added" in captured.err


def test_questions_from_a_pipe(session, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{ASKED}\n\n  \nWhere does the raft lie?\n"))
    assert session.ask("--json") == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [a["sources"][0]["file"] for a in answers] == ["kettle.md", "deep/raft_of-2026.pdf"]


def test_questions_from_a_terminal_until_an_empty_line(session, capsys, monkeypatch):
    terminal = io.StringIO(f"{ASKED}\n\nNever asked?\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    assert session.ask() == 0
    assert len(session.models.prompts) == 1
    terminal = io.StringIO(ASKED)  # and then Ctrl-D
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    assert session.ask() == 0
    assert len(session.models.prompts) == 1


def test_what_a_file_holds_does_not_steer_the_terminal(session, capsys):
    (session.folder / "zebra.txt").write_text("The zebra \x1b[2J\x1b]0;x\x07 [red]stripes[/red].")
    assert session.ask("What has the zebra?") == 0
    output = capsys.readouterr().out
    assert "[red]stripes[/red]" in output
    assert "\x1b" not in output


def test_very_long_words_are_cut_for_the_models(session):
    (session.folder / "dump.txt").write_text(f"The dump {'x' * 50_000}")
    assert session.ask("What is in the dump?") == 0
    assert session.models.ranked[0]["truncate"] == "END"
    assert len(session.models.prompts[0]) < 5_000


def test_the_chat_model_sees_three_chunks_or_as_many_as_are_asked_for(session):
    for more, chunks in (((), 3), (("--top-k", "2"), 2)):
        session.ask(ASKED, *more)
        *sources, question = session.models.prompts[0].split("\n\n")
        assert (len(sources), question) == (chunks, f"Question: {ASKED}")


# --- mistakes -------------------------------------------------------------------------------


def test_a_folder_without_files_is_told_before_anything_is_started(session, capsys):
    shutil.rmtree(session.folder)
    session.folder.mkdir()
    (session.folder / "a.docx").touch()
    assert session.ask(ASKED) == 2
    sentence = one_line(capsys.readouterr().err)
    assert "holds no file of the kinds that can be read" in sentence
    assert "1 file of other kinds left out: .docx" in sentence
    assert session.closed == 0


def test_files_without_text_are_told(session, capsys):
    session.folder = session.folder / "empty.txt"
    assert session.ask(ASKED) == 2
    captured = capsys.readouterr()
    assert "skipped empty.txt: the file is empty" in captured.out
    assert "None of the files" in one_line(captured.err)


def test_an_empty_question_is_one_sentence(session, capsys):
    assert session.ask("  ") == 2
    assert "The question is empty" in one_line(capsys.readouterr().err)


def test_an_endpoint_that_fails_is_one_sentence(session, capsys):
    session.models.failing = 401
    assert session.ask(ASKED) == 2
    assert "answered 401" in one_line(capsys.readouterr().err)
    assert session.closed == 1


def test_an_index_that_cannot_be_written_is_one_sentence(session, capsys, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "indexes").write_text("a file in its place")
    assert session.ask(ASKED) == 2
    assert "set COOKBOOK_CACHE_DIR" in one_line(capsys.readouterr().err)


# --- progress -------------------------------------------------------------------------------


def test_a_terminal_gets_a_bar_and_a_log_a_line_now_and_then(monkeypatch):
    monkeypatch.setattr("cookbook_cli.progress.QUIET_SECONDS", -1.0)
    for terminal, said in ((True, ""), (False, "Indexing: 1/7 files\n")):
        console = Console(file=io.StringIO(), width=100, force_terminal=terminal)
        with ask_module.LoggedProgress(console) as progress:
            progress.line("Indexing: 1/7 files", now=False)
        shown = Text.from_ansi(console.file.getvalue()).plain  # type: ignore[attr-defined]
        assert ("1/7" in shown) is bool(said)
