"""The chat NIM loads LoRA adapters from a folder, and forgets them, while it answers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from local_endpoints.nim import peft_source
from local_endpoints.nim.adapters import CONFIG_FILE, WEIGHTS_FILE
from nim_cookbook.errors import ConfigurationError
from nim_cookbook.local import state_path
from nim_cookbook.models import load_registry
from tests.support import Servers, free_port_block
from tests.unit import tiny_adapters as tiny

BASE = load_registry().default("chat").id
LIMIT = 300
KEY = "nvapi-local-fake-key-for-tests"


class Server:
    """One start of the local servers over a folder of adapters."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers = Servers(free_port_block(), KEY)
        self.lines: list[str] = []
        environment = {
            "NIM_PEFT_SOURCE": str(folder),
            "NIM_PEFT_REFRESH_INTERVAL": "0.2",
            "COOKBOOK_LOCAL_KEY": KEY,
        }
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "local_endpoints", "--stop-with-stdin"),
                *("--models=small", f"--port-base={self.servers.port_base}"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        threading.Thread(target=self._read, daemon=True).start()
        self.until(lambda: any(line.startswith("Local stand-ins") for line in self.lines))

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(iter(self.process.stderr.readline, ""))

    def until(self, condition: Callable[[], bool]) -> None:
        limit = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < limit and self.process.poll() is None, "".join(self.lines)
            time.sleep(0.05)

    def said(self, part: str) -> list[str]:
        return [line for line in self.lines if part in line]

    def until_said(self, part: str) -> str:
        self.until(lambda: bool(self.said(part)))
        return self.said(part)[0]

    def models(self, server: str = "chat") -> dict[str, dict]:
        with self.servers.client(server) as http:
            return {entry["id"]: entry for entry in http.get("/models").json()["data"]}

    def until_served(self, *names: str) -> None:
        """Wait until exactly these adapters are listed."""
        self.until(lambda: {n for n, e in self.models().items() if e["parent"]} == set(names))

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.servers.url("chat"), api_key=KEY, max_retries=0)

    def ask(self, model: str, text: str = "Name three colours.", tokens: int = 24):
        return self.client().chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": text}],
            max_tokens=tokens,
            temperature=0,
        )

    def put(self, name: str, seed: int = 1, size: float = 0.1) -> Path:
        """Put an adapter into the folder as one should: complete, by one rename."""
        weights = tiny.tensors(tiny.SMOLLM2_135M, seed=seed, size=size)
        draft = tiny.write_peft(self.folder / f".{name}", weights)
        if (self.folder / name).exists():  # a scan in between must not find it gone
            for file in draft.iterdir():
                file.replace(self.folder / name / file.name)
            draft.rmdir()
            return self.folder / name
        return draft.rename(self.folder / name)

    def stop(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(timeout=LIMIT)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("peft"))
    yield server
    assert server.stop() == 0
    assert not server.said("Traceback"), "".join(server.lines)


@pytest.fixture(autouse=True)
def empty(request) -> Iterator[None]:
    """Each test that uses the server begins and ends without adapters."""
    yield
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        for path in server.folder.iterdir():
            shutil.rmtree(path)
        server.until_served()


def test_an_adapter_is_listed_after_the_base_and_answers(server):
    bare = server.ask(BASE).choices[0].message.content
    folder = server.put("brief")
    server.until_served("brief")
    models = server.models()
    assert next(iter(models)) == BASE and list(models)[-1] == "brief"
    assert models["brief"]["root"] == models["brief"]["parent"] == BASE
    adapted = server.ask("brief")
    assert adapted.model == "brief"
    assert adapted.system_fingerprint.endswith("+brief")
    assert adapted.choices[0].message.content != bare
    again = server.ask(BASE)
    assert again.choices[0].message.content == bare
    assert "brief" not in again.system_fingerprint
    with server.servers.client("chat") as http:
        metadata = http.get("/metadata").json()
    sha256 = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    assert [entry["name"] for entry in metadata["adapters"]] == ["brief"]
    assert metadata["adapters"][0]["sha256"] == sha256


@pytest.mark.long
def test_text_completions_and_streams_take_the_adapter(server):
    server.put("brief")
    server.until_served("brief")
    client = server.client()
    texts = {}
    for model in (BASE, "brief"):
        options = {"model": model, "max_tokens": 16, "temperature": 0}
        whole = client.completions.create(prompt="Once upon a time", **options)
        assert whole.model == model
        chunks = list(
            client.chat.completions.create(
                messages=[{"role": "user", "content": "Tell a story."}], stream=True, **options
            )
        )
        assert {chunk.model for chunk in chunks} == {model}
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        texts[model] = (whole.choices[0].text, streamed)
    assert texts[BASE][0] != texts["brief"][0]
    assert texts[BASE][1] != texts["brief"][1]


def test_the_catalog_serves_no_adapters(server):
    server.put("brief")
    server.until_served("brief")
    assert "brief" not in server.models("catalog")
    with server.servers.client("catalog") as http:
        body = {"model": "brief", "messages": [{"role": "user", "content": "Hi"}]}
        assert http.post("/chat/completions", json=body).status_code == 404
        assert "adapters" not in http.get("/metadata").json()


@pytest.mark.long
def test_what_one_adapter_has_read_is_not_given_to_another(server):
    """Longer than the slots are many, so that prompts are put aside and looked for again."""
    server.put("one", seed=1)
    server.put("two", seed=2)
    server.until_served("one", "two")
    room = "The lamp stands in the hall, the chair beside the door. " * 12
    for model in ("one", BASE, "two"):
        for number in range(6):
            usage = server.ask(model, f"{number} {room}Where is it?", 1).usage
            assert usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens / 2


def test_a_removed_adapter_is_gone(server):
    folder = server.put("brief")
    server.until_served("brief")
    shutil.rmtree(folder)
    server.until_served()
    with pytest.raises(openai.NotFoundError, match="brief"):
        server.ask("brief")
    assert server.ask(BASE).choices[0].message.content


@pytest.mark.parametrize("change", ["weights", pytest.param("settings", marks=pytest.mark.long)])
def test_a_changed_adapter_is_loaded_again(server, change):
    folder = server.put("brief")
    server.until_served("brief")
    before = server.ask("brief").choices[0].message.content
    heard = len(server.said("adapter brief: loaded again"))
    if change == "weights":
        server.put("brief", seed=9)
    else:
        config = json.loads((folder / CONFIG_FILE).read_text())
        (folder / CONFIG_FILE).write_text(json.dumps({**config, "lora_alpha": 0.001}))
    server.until(lambda: len(server.said("adapter brief: loaded again")) > heard)
    assert server.ask("brief").choices[0].message.content != before


@pytest.mark.long
def test_a_half_copied_adapter_waits_until_it_is_complete(server):
    source = server.put("source")
    content = (source / WEIGHTS_FILE).read_bytes()
    copy = server.folder / "copied"
    copy.mkdir()
    shutil.copy(source / CONFIG_FILE, copy)
    server.until_said("The adapter 'copied' has no adapter_model.safetensors")
    with (copy / WEIGHTS_FILE).open("wb") as file:
        for part in range(3):
            file.write(content[part * 1000 : (part + 1) * 1000])
            file.flush()
            server.until_said("The adapter 'copied' has an incomplete or damaged")
            time.sleep(0.5)  # some scans
        file.write(content[3000:])
    server.until_served("source", "copied")
    assert len(server.said("The adapter 'copied' has an incomplete or damaged")) == 1


def test_unusable_folders_are_told_once_and_leave_the_others_alone(server):
    server.put("good")
    draft = tiny.write_peft(server.folder / ".foreign", base_model_name_or_path="them/another-1b")
    draft.rename(server.folder / "foreign")
    tiny.write_peft(server.folder / "weird name!")
    local_id = load_registry().weights_for("chat", "small").local_id
    tiny.write_peft(server.folder / local_id.removeprefix("local/"))
    (server.folder / "no-adapter").mkdir()
    foreign = server.until_said("The adapter 'foreign' was trained on them/another-1b")
    assert "and SmolLM2-135M-Instruct.Q4_1.gguf is served" in foreign
    server.until_said("'weird name!' has a name that is no model id")
    server.until_said("has the name of a model that is served")
    server.until_served("good")
    time.sleep(1)  # some scans
    assert len(server.said("adapter left out: The adapter 'foreign'")) == 1
    assert not server.said("no-adapter")


@pytest.mark.long
def test_answers_that_run_while_adapters_change_are_all_given(server):
    server.put("stays")
    server.until_served("stays")
    changing = threading.Event()
    changing.set()

    def whole(model: str) -> int:
        answered = 0
        while changing.is_set():
            assert server.ask(model, "Tell a story.", 16).model == model
            answered += 1
        return answered

    def streamed(model: str) -> int:
        answered = 0
        client = server.client()
        while changing.is_set():
            chunks = list(
                client.chat.completions.create(
                    model=model,
                    messages=[{"role": "user", "content": "Write a long story."}],
                    max_tokens=60,
                    stream=True,
                )
            )
            assert {chunk.model for chunk in chunks} == {model}
            assert chunks[-1].choices[0].finish_reason in ("length", "stop")
            answered += 1
        return answered

    with ThreadPoolExecutor() as pool:
        running = [pool.submit(ask, m) for ask in (whole, streamed) for m in (BASE, "stays")]
        try:
            for seed in range(2):
                folder = server.put("comes", seed)
                server.until_served("stays", "comes")
                shutil.rmtree(folder)
                server.until_served("stays")
        finally:
            changing.clear()
        assert all(job.result() > 0 for job in running)


def test_the_folder_is_announced(server):
    state = json.loads(state_path(server.servers.port_base).read_text(encoding="utf-8"))
    assert state["peft_source"] == str(server.folder)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NIM_PEFT_REFRESH_INTERVAL", "soon"),
        ("NIM_PEFT_REFRESH_INTERVAL", "0"),
        ("NIM_PEFT_REFRESH_INTERVAL", "-1"),
        ("NIM_PEFT_REFRESH_INTERVAL", "nan"),
        ("NIM_MAX_LORA_RANK", "0"),
        ("NIM_MAX_LORA_RANK", "2.5"),
        ("NIM_PEFT_SOURCE", "no/such/folder"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(monkeypatch, tmp_path, variable, value):
    monkeypatch.setenv("COOKBOOK_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=variable):
        peft_source.settings(9)


def test_without_settings_the_folder_is_our_own(monkeypatch, tmp_path):
    monkeypatch.setenv("COOKBOOK_CACHE_DIR", str(tmp_path))
    for variable in ("NIM_PEFT_SOURCE", "NIM_PEFT_REFRESH_INTERVAL", "NIM_MAX_LORA_RANK"):
        monkeypatch.delenv(variable, raising=False)
    chosen = peft_source.settings(9)
    assert chosen == peft_source.PeftSettings(tmp_path / "peft" / "9", 2.0, 32)
    assert chosen.folder.is_dir()
