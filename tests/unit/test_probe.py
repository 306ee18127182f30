"""`nim-cookbook probe` against a host on loopback that answers as it is told to."""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

import nim_cookbook
from cookbook_cli import probe
from cookbook_cli.__main__ import main
from nim_cookbook import endpoints
from nim_cookbook.models import ROLES, load_registry, parse_registry
from tests.http_server import listening

KEY = "nvapi-local-fake-key-for-tests"
REGISTRY = load_registry()
MODELS = [model for role in ROLES for model in REGISTRY.models(role)]
DEFAULT = {role: REGISTRY.default(role) for role in ROLES}
FILE = Path(nim_cookbook.__file__).parent / "models.toml"
GOOD: dict[str, Any] = {
    "chat": {"choices": [{"message": {"role": "assistant", "content": ""}}]},
    "embedding": {"data": [{"index": 0, "embedding": [0.5, -0.5]}]},
    "reranking": {"rankings": [{"index": 0, "logit": -1.5}]},
}
ROLE_OF = {model.id: model.role for model in MODELS}


class Host:
    """What a fake host was asked, and what it answers: by default, that each model is alive."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[SimpleNamespace] = []
        # By model id, the answers to the calls in turn; the last one repeats.
        self.answers: dict[str, list[tuple[int, dict[str, str], object]]] = {}
        self.slow: set[str] = set()  # ids of models that answer too late
        self.waits: list[float] = []  # what the command waited

    def says(self, model: str, status: int, body: object = None, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers.setdefault(model, []).append((status, named, body or {}))

    def answer(self, model: str) -> tuple[int, dict[str, str], object]:
        told = self.answers.get(model)
        if not told:
            return 200, {}, GOOD[ROLE_OF[model]]
        return told.pop(0) if len(told) > 1 else told[0]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Host]:
    found = Host()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            key = self.headers["Authorization"]
            found.asked.append(SimpleNamespace(path=self.path, key=key, **body))
            if body["model"] in found.slow:
                time.sleep(0.5)
            status, headers, content = found.answer(body["model"])
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: object) -> None:
            pass

    clock = SimpleNamespace(sleep=found.waits.append, perf_counter=time.perf_counter)
    monkeypatch.setattr(probe, "time", clock)
    monkeypatch.chdir(tmp_path)  # no .env file
    with listening(Handler) as url:
        found.url = f"{url}/v1"
        monkeypatch.setenv("NVIDIA_BASE_URL", found.url)
        monkeypatch.setenv("NVIDIA_API_KEY", KEY)
        yield found


@pytest.fixture
def checkout(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of the registry in a checkout, and the fake host in NVIDIA's place."""
    package = tmp_path / "clone" / "utils" / "nim_cookbook"
    package.mkdir(parents=True)
    (tmp_path / "clone" / "pyproject.toml").write_text("")
    (package / "models.toml").write_text(FILE.read_text("utf-8"), "utf-8")
    monkeypatch.setattr(nim_cookbook, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(endpoints, "HOSTED_URL", host.url)
    monkeypatch.delenv("NVIDIA_BASE_URL")
    return package / "models.toml"


def ask(host: Host, role: str = "chat") -> probe.Finding:
    return probe.ask(DEFAULT[role], host.url, KEY)  # type: ignore[index]


# --- one model --------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_the_smallest_call_to_each_role(host, role):
    found = ask(host, role)
    assert (found.verdict, found.answer) == ("alive", "200")
    (asked,) = host.asked
    assert asked.model == DEFAULT[role].id and asked.key == f"Bearer {KEY}"
    if role == "chat":
        assert asked.path == "/v1/chat/completions" and asked.max_tokens == 1
    elif role == "embedding":
        assert asked.path == "/v1/embeddings"
        assert asked.input == ["Hello"] and asked.input_type == "query"
    else:
        assert asked.path == httpx.URL(DEFAULT[role].hosted_url).path
        assert len(asked.passages) == 1


@pytest.mark.parametrize(
    ("status", "body", "headers", "verdict"),
    [
        (200, {"choices": [{"message": {"content": None, "reasoning": "Hm"}}]}, {}, "alive"),
        (200, {"choices": []}, {}, "unclear"),
        (200, {"choices": [{"message": {"content": 5}}]}, {}, "unclear"),
        (200, b"<html>Sign in</html>", {}, "unclear"),
        (200, b"[" * 100_000, {}, "unclear"),
        (400, {"detail": "no such field"}, {}, "unclear"),
        (302, {}, {"Location": "http://127.0.0.1:9/"}, "unclear"),
        (404, {"status": 404, "title": "Not Found"}, {}, "gone"),
        (404, b"404 page not found\n", {}, "gone"),
        (404, {"detail": "Function 'f': Not found for account 'a'"}, {}, "forbidden"),
        (410, {"detail": "The model has reached its end of life"}, {}, "gone"),
        (202, b"", {}, "gone"),
        (202, b"", {"NVCF-REQID": "r"}, "down"),
        (401, {"detail": "Unauthorized"}, {}, "forbidden"),
        (402, {"detail": "no credits"}, {}, "forbidden"),
        (403, {"detail": "Authorization failed"}, {}, "forbidden"),
        (429, {"title": "Too Many Requests"}, {}, "rate-limited"),
        (500, {}, {}, "down"),
        (503, {}, {}, "down"),
    ],
)
def test_what_an_answer_proves(host, status, body, headers, verdict):
    host.says(DEFAULT["chat"].id, status, body, **headers)
    found = ask(host)
    assert (found.verdict, found.answer) == (verdict, str(status))


def test_no_answer_and_no_connection(host, monkeypatch):
    monkeypatch.setattr(endpoints, "CALL_TIMEOUT", httpx.Timeout(0.2))
    host.slow.add(DEFAULT["chat"].id)
    found = ask(host)
    assert (found.verdict, found.answer) == ("down", "no answer in time")
    found = probe.ask(DEFAULT["chat"], "http://127.0.0.1:9/v1", KEY)
    assert (found.verdict, found.answer) == ("down", "no connection")


@pytest.mark.parametrize(
    ("retry_after", "waits", "calls"),
    [("7", [7.0], 2), ("0", [0.0], 2), ("soon", [10.0], 2), ("²", [10.0], 2), ("3600", [], 1)],
)
def test_it_waits_as_long_as_it_is_told_within_bounds(host, retry_after, waits, calls):
    host.says(DEFAULT["chat"].id, 429, Retry_After=retry_after)
    assert ask(host).verdict == "rate-limited"
    assert (host.waits, len(host.asked)) == (waits, calls)


def test_a_model_that_answers_after_the_wait_is_alive(host):
    host.says(DEFAULT["chat"].id, 429, Retry_After="1")
    host.says(DEFAULT["chat"].id, 200, GOOD["chat"])
    assert ask(host).verdict == "alive"


# --- all models -------------------------------------------------------------------------------


def test_all_alive(host, tmp_path, capsys):
    record = tmp_path / "records" / "probe.json"
    assert main(["probe", "--json", str(record)]) == 0
    assert [asked.model for asked in host.asked] == [model.id for model in MODELS]
    assert host.waits == [probe.PAUSE] * (len(MODELS) - 1)
    content = json.loads(record.read_text("utf-8"))
    assert content["date"][:10] == str(datetime.now(UTC).date())
    assert [m["verdict"] for m in content["models"]] == ["alive"] * len(MODELS)
    assert sum(m["default"] for m in content["models"]) == 3
    printed = capsys.readouterr()
    assert f"{len(MODELS)}/{len(MODELS)}" in printed.out, "progress"
    assert KEY not in printed.out + printed.err + record.read_text("utf-8")


def test_one_role_and_a_default_that_is_gone(host, tmp_path, capsys):
    host.says(DEFAULT["embedding"].id, 410, {"detail": f"end of life, {KEY} \x1b[31m"})
    assert main(["probe", "--role", "chat"]) == 0
    assert {ROLE_OF[asked.model] for asked in host.asked} == {"chat"}
    record = tmp_path / "probe.json"
    assert main(["probe", "--role", "embedding", "--json", str(record)]) == 1
    said = capsys.readouterr().out
    assert f"Not alive, though recipes ask for it by default: {DEFAULT['embedding'].id}" in said
    first = json.loads(record.read_text("utf-8"))["models"][0]
    assert (first["verdict"], first["said"]) == ("gone", "end of life, ... [31m")
    assert KEY not in said and "\x1b" not in said


def test_another_model_that_is_gone_is_no_failure(host):
    host.says("baai/bge-m3", 404)
    assert main(["probe"]) == 0


# --- the key ----------------------------------------------------------------------------------


def test_without_a_key(host, monkeypatch, capsys):
    monkeypatch.delenv("NVIDIA_API_KEY")
    assert main(["probe"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: NVIDIA_API_KEY is not set") and said.count("\n") == 1
    assert host.asked == []


def test_a_real_key_goes_to_nvidia_only_and_a_local_one_never(host, monkeypatch, capsys):
    monkeypatch.setenv("NVIDIA_API_KEY", "nvapi-fake-key-for-tests")
    assert main(["probe"]) == 2
    assert "NVIDIA_BASE_URL is not an https://*.api.nvidia.com" in capsys.readouterr().err
    monkeypatch.setenv("NVIDIA_API_KEY", KEY)
    for url in ("", "https://integrate.api.nvidia.com/v1", "https://example.com/v1"):
        monkeypatch.setenv("NVIDIA_BASE_URL", url)
        assert main(["probe"]) == 2
        assert "throw-away key" in capsys.readouterr().err
    assert host.asked == []


def test_a_key_that_is_refused_ends_it_at_once(host, checkout, capsys):
    for model in MODELS:
        host.says(model.id, 401, {"detail": "Unauthorized"})
    assert main(["probe", "--write"]) == 2
    said = capsys.readouterr().err
    assert "is refused (401)" in said and said.count("\n") == 1
    assert len(host.asked) == 1
    assert checkout.read_text("utf-8") == FILE.read_text("utf-8")


def test_one_model_that_refuses_the_key_does_not_end_it(host):
    host.says(MODELS[1].id, 401)
    assert main(["probe"]) == 0
    assert len(host.asked) == len(MODELS)


# --- the registry -----------------------------------------------------------------------------


def test_write_enters_what_was_proved_and_nothing_else(host, checkout, capsys):
    retired = next(m for m in MODELS if m.status == "retired")
    host.says("baai/bge-m3", 410)
    host.says("nvidia/llama-3.2-nv-rerankqa-1b-v1", 503)
    host.says("meta/llama-3.1-70b-instruct", 429, Retry_After="1")
    host.says("meta/llama3-8b-instruct", 403)
    host.says("meta/llama3-70b-instruct", 400)
    before = checkout.read_text("utf-8")
    assert main(["probe", "--write"]) == 0
    after = checkout.read_text("utf-8")
    proved = len(MODELS) - 4
    assert f"{proved} of {len(MODELS)} models" in capsys.readouterr().out.replace("\n", "")

    today = datetime.now(UTC).date()
    registry, old = parse_registry(after), parse_registry(before)
    gone = registry.model("baai/bge-m3")
    assert (gone.standing, gone.how) == (f"retired {today}", "live call: 410")
    ending = registry.model("snowflake/arctic-embed-l")
    assert (ending.standing, ending.how) == (f"deprecated {today}", "live call: it still answers")
    alive = registry.model(retired.id)
    assert (alive.standing, alive.how) == (f"alive {today}", "live call")
    for model in ("nvidia/llama-3.2-nv-rerankqa-1b-v1", "meta/llama-3.1-70b-instruct"):
        assert registry.model(model) == old.model(model)
    changed = {"status", "checked", "how"}
    pairs = list(zip(before.splitlines(), after.splitlines(), strict=True))
    assert all(a == b or a.split(" = ")[0] == b.split(" = ")[0] for a, b in pairs)
    assert {a.split(" = ")[0] for a, b in pairs if a != b} == changed
    assert tomllib.loads(after)["weights"] == tomllib.loads(before)["weights"]

    assert main(["probe", "--write"]) == 0
    assert checkout.read_text("utf-8") == after


def test_a_comment_beside_a_value_stays():
    text = FILE.read_text("utf-8").replace('role = "chat"\n', 'role = "chat" # a\n')
    text = text.replace('status = "alive"\n', 'status = "alive"  # b\n')
    found = [probe.Finding(DEFAULT["chat"], True, "gone", "404", "", 0.1)]
    new = probe.edited(text, found, datetime.now(UTC).date())
    assert 'status = "retired"  # b\n' in new and new.count("# a\n") == text.count("# a\n")


def test_nothing_is_retired_when_nothing_answers(host, checkout, capsys):
    for model in MODELS:
        host.says(model.id, 404)
    assert main(["probe", "--write"]) == 1
    assert "Nothing was written: no model answered" in capsys.readouterr().out
    assert checkout.read_text("utf-8") == FILE.read_text("utf-8")


def test_only_nvidias_own_answers_are_written(host, capsys):
    assert main(["probe", "--write"]) == 2
    assert "NVIDIA_BASE_URL is another address" in capsys.readouterr().err
    assert host.asked == []


def test_only_a_checkout_is_written_to(host, checkout, capsys):
    (checkout.parents[2] / "pyproject.toml").unlink()
    assert main(["probe", "--write"]) == 2
    assert "--write edits the registry of a checkout" in capsys.readouterr().err
    assert host.asked == []


@pytest.mark.parametrize("moment", ["pause", "write"])
def test_an_interrupt_leaves_the_registry_whole(host, checkout, monkeypatch, capsys, moment):
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    if moment == "pause":
        monkeypatch.setattr(probe.time, "sleep", interrupt)
    else:
        monkeypatch.setattr(Path, "replace", interrupt)
    assert main(["probe", "--write"]) == 130
    assert len(host.asked) == (1 if moment == "pause" else len(MODELS))
    assert checkout.read_text("utf-8") == FILE.read_text("utf-8")
    assert [path.name for path in checkout.parent.iterdir()] == ["models.toml"]


def test_a_file_that_cannot_be_written(host, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["probe", "--role", "chat", "--json", str(tmp_path / "file" / "a.json")]) == 2
    said = capsys.readouterr().err
    assert "a.json cannot be written" in said and said.count("\n") == 1
