"""The door to configuration, and the local servers' child process.

The servers here are small real HTTP servers on loopback, which note what they are sent.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from urllib.request import proxy_bypass_environment

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nim_cookbook import endpoints, local
from nim_cookbook.errors import (
    ConfigurationError,
    EndpointUnreachable,
    MissingKeyError,
    UnknownModelError,
)
from nim_cookbook.models import ROLES, load_registry

FAKE = "nvapi-fake-key-for-tests"
OURS = ("COOKBOOK_", "NIM_", "NVIDIA_")


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    """No settings from outside, a cache of our own, and everything undone afterwards."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(OURS) or name.lower().endswith("_proxy"):
            del os.environ[name]
    os.environ["COOKBOOK_CACHE_DIR"] = str(tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    yield
    local.stop()
    os.environ.clear()
    os.environ.update(before)


class Nim(BaseHTTPRequestHandler):
    """What a NIM answers, or the status that a test wants."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        name = self.path.rsplit("/", 1)[-1]
        if name in self.server.faults:
            return self.answer(self.server.faults[name], {})
        if name == "metadata":
            return self.answer(200, self.server.metadata)
        if name == "models":
            return self.answer(200, {"data": [{"id": i} for i in self.server.models]})
        self.answer(200, {"ready": True})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def answer(self, status, body):
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)


@pytest.fixture
def nim(request):
    host = getattr(request, "param", "127.0.0.1")
    # An HTTPServer asks a name server for the name of 127.0.0.2.
    server = ThreadingTCPServer((host, 0), Nim)
    server.daemon_threads = True
    server.seen, server.faults, server.models, server.metadata = [], {}, ["some/model"], {}
    server.url = f"http://{host}:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def use(**settings):
    os.environ.update(settings)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- modes ------------------------------------------------------------------------------------


def test_an_unknown_mode_or_api_is_one_sentence():
    with pytest.raises(ConfigurationError, match="any, catalog, nim"):
        endpoints.connect("cloud")
    use(COOKBOOK_ENDPOINTS="cloud")
    with pytest.raises(ConfigurationError, match="set it to local, hosted or self-hosted"):
        endpoints.connect()


@pytest.mark.parametrize(("text", "mode"), [("", "local"), (" Self-Hosted ", "self-hosted")])
def test_an_empty_mode_is_local_and_capitals_do_not_matter(text, mode):
    use(COOKBOOK_ENDPOINTS=text)
    assert endpoints.mode() == mode


def test_a_dot_env_file_is_read_and_does_not_win(tmp_path):
    (tmp_path / ".env").write_text(f"COOKBOOK_ENDPOINTS=hosted\nNVIDIA_API_KEY={FAKE}\n")
    assert endpoints.connect().mode == "hosted"
    use(COOKBOOK_ENDPOINTS="self-hosted")
    assert endpoints.mode() == "self-hosted"


# --- hosted -----------------------------------------------------------------------------------


def test_hosted():
    use(COOKBOOK_ENDPOINTS="hosted")
    with pytest.raises(MissingKeyError, match="NVIDIA_API_KEY is not set"):
        endpoints.connect()
    use(NVIDIA_API_KEY=FAKE)
    found = endpoints.connect()
    registry = load_registry()
    for role in ROLES:
        endpoint = getattr(found, role)
        assert endpoint.url == "https://integrate.api.nvidia.com/v1"
        assert endpoint.model == registry.default(role).id
        assert (endpoint.key_variable, endpoint.key) == ("NVIDIA_API_KEY", FAKE)
        assert endpoint.weights == f"{endpoint.model} (hosted by NVIDIA)"
        known = f"(hosted by NVIDIA); {registry.default(role).standing})"
        assert known in repr(found), "no id without the day on which it was known"
    assert found.reranking.rerank_url == registry.default("reranking").hosted_url
    assert FAKE not in repr(found) + repr(found.chat) + str(found.chat) + repr(vars(found))
    use(NVIDIA_BASE_URL="https://eu.api.nvidia.com")
    assert endpoints.connect().chat.url == "https://eu.api.nvidia.com/v1"


OFF = {"chat_template_kwargs": {"enable_thinking": False}}


def test_the_hosted_model_does_not_think_unless_it_is_asked_to(nim):
    use(COOKBOOK_ENDPOINTS="hosted", NVIDIA_API_KEY=FAKE)
    found = endpoints.connect()
    assert (found.chat.thinking, found.chat.extra_body) == (0, OFF)
    assert found.embedding.extra_body == found.reranking.extra_body == {}
    use(COOKBOOK_THINKING="500")
    chat = endpoints.connect().chat
    assert chat.thinking == 500
    thinks = {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_budget": 500}
    assert chat.extra_body == thinks


def test_another_model_is_told_so_only_where_it_is_set(nim):
    assert self_hosted(nim).chat.extra_body == {}
    assert self_hosted(nim, COOKBOOK_THINKING="Off").chat.extra_body == OFF
    assert self_hosted(nim, COOKBOOK_THINKING="64").chat.thinking == 64


@pytest.mark.parametrize("text", ["on", "0", "-1", "32769", "1.5", "99999999", "\u0663"])
def test_thinking_is_off_or_a_number_of_tokens(text):
    use(COOKBOOK_ENDPOINTS="hosted", NVIDIA_API_KEY=FAKE, COOKBOOK_THINKING=text)
    with pytest.raises(ConfigurationError, match=r"COOKBOOK_THINKING is .*set it to off"):
        endpoints.connect()


@pytest.mark.parametrize(
    "url",
    [
        "http://integrate.api.nvidia.com/v1",
        "https://integrate.api.nvidia.com.evil.example/v1",
        "https://evil.example/integrate.api.nvidia.com/v1",
        "http://127.0.0.1:8000/v1",
    ],
)
def test_a_real_key_goes_to_nvidia_only(url):
    use(COOKBOOK_ENDPOINTS="hosted", NVIDIA_API_KEY=FAKE, NVIDIA_BASE_URL=url)
    with pytest.raises(ConfigurationError, match="NVIDIA_BASE_URL is not an https://") as caught:
        endpoints.connect()
    assert FAKE not in str(caught.value)


# --- self-hosted ------------------------------------------------------------------------------


def self_hosted(nim, **more):
    use(COOKBOOK_ENDPOINTS="self-hosted", NIM_CHAT_URL=nim.url, **more)
    return endpoints.connect()


def test_self_hosted(nim):
    use(NIM_EMBEDDING_URL=nim.url.removesuffix("/v1"), NIM_RERANKING_URL=f"{nim.url}/")
    found = self_hosted(nim)
    assert found.mode == "self-hosted"
    for role in ROLES:
        endpoint = getattr(found, role)
        assert endpoint.url == nim.url
        assert endpoint.model == "some/model"
        assert endpoint.key_variable == "NIM_API_KEY"
        assert endpoint.key == "not-needed"
        assert endpoint.weights == "some/model (self-hosted)"
    assert found.reranking.rerank_url == nim.url


def test_self_hosted_key_is_sent(nim):
    self_hosted(nim, NIM_API_KEY="my-own-key")
    assert {header for _, header in nim.seen} == {"Bearer my-own-key"}


def test_a_real_key_never_reaches_a_self_hosted_server(nim):
    with pytest.raises(ConfigurationError, match="NIM_API_KEY holds an NVIDIA key"):
        self_hosted(nim, NIM_API_KEY=FAKE)
    assert nim.seen == []


def test_the_hosted_key_never_reaches_a_self_hosted_server(nim):
    found = self_hosted(nim, NVIDIA_API_KEY=FAKE)
    assert found.check().ok
    assert nim.seen
    assert FAKE not in str(nim.seen)


def test_a_local_stand_in_says_so(nim):
    nim.metadata = {
        "localStandIn": True,
        "weights": [{"role": "chat", "description": "Tiny, Q4_1", "refusalLogit": -2.5}],
    }
    assert self_hosted(nim).chat.weights == "Tiny, Q4_1 (local stand-in)"
    assert self_hosted(nim).chat.refusal_logit == -2.5


def test_the_catalogs_model_is_preferred_to_the_first(nim):
    default = load_registry().default("chat").id
    nim.models = ["local/tiny", default]
    assert self_hosted(nim).chat.model == default
    assert self_hosted(nim, NIM_CHAT_MODEL="local/tiny").chat.model == "local/tiny"


def test_a_model_that_is_not_served_is_one_sentence(nim):
    with pytest.raises(UnknownModelError, match="choose one of some/model"):
        self_hosted(nim, NIM_CHAT_MODEL="other/model")


def test_a_role_without_a_url_is_an_error_only_when_it_is_asked_for(nim):
    use(COOKBOOK_ENDPOINTS="self-hosted")
    with pytest.raises(ConfigurationError, match="NIM_CHAT_URL"):
        endpoints.connect()
    found = self_hosted(nim)
    with pytest.raises(ConfigurationError, match="set NIM_RERANKING_URL"):
        _ = found.reranking


@pytest.mark.parametrize(
    ("faults", "error", "says"),
    [
        ({"models": 401}, MissingKeyError, "refuses the key"),
        ({"models": 302}, EndpointUnreachable, "answers /models with 302"),
        ({"models": 200}, EndpointUnreachable, "as a NIM does"),
        ({}, EndpointUnreachable, "lists no model"),
    ],
)
def test_a_server_that_is_no_nim(nim, faults, error, says):
    nim.faults, nim.models = faults, []
    with pytest.raises(error, match=says):
        self_hosted(nim)


def test_hosted_mode_takes_self_hosted_nims_where_there_are_some(nim):
    use(COOKBOOK_ENDPOINTS="hosted", NVIDIA_API_KEY=FAKE, NIM_CHAT_URL=nim.url)
    assert endpoints.connect("catalog").mode == "hosted"
    assert endpoints.connect("nim").mode == "self-hosted"


def test_the_embedding_model_may_have_an_address_and_a_key_of_its_own(nim):
    use(COOKBOOK_ENDPOINTS="hosted", NVIDIA_API_KEY=FAKE)
    use(NVIDIA_EMBEDDINGS_URL=nim.url, NVIDIA_EMBEDDINGS_KEY="my-embedding-key")
    found = endpoints.connect()
    assert found.embedding.url == nim.url
    assert found.embedding.model == "some/model"
    assert found.embedding.key_variable == "NVIDIA_EMBEDDINGS_KEY"
    assert found.embedding.weights == "some/model (self-hosted)"
    nim.faults = {"models": 401}
    with pytest.raises(MissingKeyError, match="set NVIDIA_EMBEDDINGS_KEY to the key"):
        endpoints.connect()
    assert found.chat.key_variable == "NVIDIA_API_KEY"
    assert {header for _, header in nim.seen} == {"Bearer my-embedding-key"}


def test_the_hosted_key_never_follows_the_embedding_model(nim):
    use(COOKBOOK_ENDPOINTS="hosted", NVIDIA_API_KEY=FAKE, NVIDIA_EMBEDDINGS_URL=nim.url)
    assert endpoints.connect().embedding.key == "not-needed"
    assert FAKE not in str(nim.seen)
    use(NVIDIA_EMBEDDINGS_KEY=FAKE)
    with pytest.raises(ConfigurationError, match="NVIDIA_EMBEDDINGS_KEY holds an NVIDIA key"):
        endpoints.connect()


def test_the_embedding_model_may_have_a_second_key_at_nvidia():
    other = FAKE + "-2"
    use(COOKBOOK_ENDPOINTS="hosted", NVIDIA_API_KEY=FAKE, NVIDIA_EMBEDDINGS_KEY=other)
    use(NVIDIA_EMBEDDINGS_MODEL="nvidia/nv-embedqa-e5-v5")
    found = endpoints.connect().embedding
    assert (found.key, found.model) == (other, "nvidia/nv-embedqa-e5-v5")


def test_a_self_hosted_embedding_model_may_have_a_key_of_its_own(nim):
    found = self_hosted(nim, NIM_EMBEDDING_URL=nim.url, NVIDIA_EMBEDDINGS_KEY="my-embedding-key")
    assert found.embedding.key == "my-embedding-key"
    assert found.chat.key == "not-needed"
    assert "Bearer my-embedding-key" in {header for _, header in nim.seen}


def test_self_hosted_mode_never_goes_to_nvidia_even_with_a_key(nim, stand_in):
    use(COOKBOOK_ENDPOINTS="self-hosted", NVIDIA_API_KEY=FAKE, NIM_CHAT_URL=nim.url)
    assert endpoints.connect("catalog").mode == "local"
    assert endpoints.connect("nim").mode == "self-hosted"
    local.stop()


def test_a_nim_that_is_still_starting_is_waited_for(nim, capsys):
    use(COOKBOOK_ENDPOINTS="self-hosted", NIM_CHAT_URL=nim.url)
    nim.faults = {"ready": 503}
    threading.Timer(1.2, nim.faults.clear).start()
    assert endpoints.connect("nim", wait=30).mode == "self-hosted"
    assert "The chat NIM is ready after" in capsys.readouterr().out


def test_a_nim_that_never_starts_is_one_sentence_after_the_wait():
    use(COOKBOOK_ENDPOINTS="self-hosted", NIM_CHAT_URL=f"http://127.0.0.1:{free_port()}/v1")
    with pytest.raises(EndpointUnreachable, match="cannot be reached"):
        endpoints.connect("nim", wait=0.2)


# --- URLs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        (" http://localhost:8000/v1/ ", "http://localhost:8000/v1"),
        ("https://nim.example/chat", "https://nim.example/chat/v1"),
        ("https://nim.example/v1/chat/v1", "https://nim.example/v1/chat/v1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_base_urls(text, url):
    assert endpoints.base_url(text, "V") == url


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("localhost:8000", "does not begin with http"),
        ("ftp://localhost/v1", "does not begin with http"),
        ("", "does not begin with http"),
        ("http://", "not a URL"),
        ("http://host:99999", "no possible port"),
        ("http://host:0", "no possible port"),
        ("http://ho st/v1", "not a URL"),
        ("http://host\\x/v1", "not a URL"),
        ("http://me:secret@host/v1", "a name or a password"),
        ("http://host/v1?api_key=nvapi-fake", "a query or a fragment"),
        ("http://host/v1#x", "a query or a fragment"),
        ("http://host/v1/chat/completions", "goes on after /v1"),
    ],
)
def test_bad_urls_are_one_sentence_and_show_no_secret(text, says):
    with pytest.raises(ConfigurationError, match=says) as caught:
        endpoints.base_url(text, "NIM_CHAT_URL")
    message = str(caught.value)
    assert "NIM_CHAT_URL" in message and "\n" not in message
    assert "secret" not in message and "nvapi-fake" not in message


pieces = st.sampled_from(
    ["http://", "https://", "host", ":80", "/v1", "/", "@", "?", "#", "\\", "[", "%"]
)


@given(st.one_of(st.text(max_size=40), st.lists(pieces, max_size=8).map("".join)))
@example("http://[::1")
@example("http://a\u3002b")
def test_any_text_is_a_clean_url_or_one_line(text):
    try:
        url = endpoints.base_url(text, "V")
    except ConfigurationError as error:
        assert "\n" not in str(error)
    else:
        assert url.endswith("/v1")
        assert endpoints.base_url(url, "V") == url
        parsed = httpx.URL(url)
        assert parsed.scheme in ("http", "https") and parsed.host and not parsed.userinfo


# --- check ------------------------------------------------------------------------------------


def test_check(nim):
    table = self_hosted(nim).check()
    assert table.ok
    row = table.frame.iloc[0]
    assert row["ready"] == "yes"
    assert row["weights that answer"] == "some/model (self-hosted)"
    assert isinstance(row["round trip, ms"], int)
    assert "some/model" in repr(table) and "<table" in table._repr_html_()
    assert ("/v1/chat/completions", "Bearer not-needed") in nim.seen


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "key is refused"),
        (404, "not served"),
        (410, "retired"),
        (429, "too many requests"),
        (202, "being started"),
        (500, "answers 500"),
    ],
)
def test_check_tells_the_reasons_apart(nim, status, says):
    found = self_hosted(nim)
    nim.faults = {"completions": status}
    table = found.check()
    assert not table.ok
    assert says in table.frame.iloc[0]["ready"]
    assert table.frame.iloc[0]["weights that answer"] == "none"
    nim.shutdown()
    nim.server_close()
    assert "cannot be reached" in found.check().frame.iloc[0]["ready"]


# --- local ------------------------------------------------------------------------------------

# A server that behaves as the local endpoints do at their start, without models.
STAND_IN = """
import http.server, json, os, pathlib, sys, threading, time
base = int(sys.argv[sys.argv.index("--port-base") + 1])
for line in os.environ.get("SAY", "").split("|"):
    print(line, file=sys.stderr, flush=True)
    time.sleep(float(os.environ.get("PAUSE", "0")))
if "FAIL" in os.environ:
    print("Error: " + os.environ["FAIL"], file=sys.stderr, flush=True)
    print("another role: fetching 90 %", file=sys.stderr, flush=True)
    sys.exit(2)
class H(http.server.BaseHTTPRequestHandler):
    def log_message(self, *a): pass
    def do_GET(self):
        time.sleep(float(os.environ.get("BUSY", "0")) if self.server.n == 0 else 0)
        role = {0: "chat", 1: "embedding", 2: "reranking"}
        weights = [{"role": role[n], "description": "tiny " + role[n]} for n in role
                   if self.server.n in (n, 3)]
        body = json.dumps({"localStandIn": True, "weights": weights,
                           "env": sorted(os.environ)}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body)))
        self.end_headers(); self.wfile.write(body)
servers = []
for n in range(6):
    s = http.server.ThreadingHTTPServer(("127.0.0.1", base + n), H); s.n = n
    servers.append(s); threading.Thread(target=s.serve_forever, daemon=True).start()
names = ["chat", "embedding", "reranking", "catalog", "gradient", "notion"]
state = pathlib.Path(os.environ["COOKBOOK_CACHE_DIR"], "run", f"{base}.json")
state.write_text(json.dumps({"pid": os.getpid(), "key": os.environ.get("COOKBOOK_LOCAL_KEY")
    or f"nvapi-local-{os.getpid()}",
    "peft_source": os.environ.get("PEFT_SOURCE"),
    "urls": {x: f"http://127.0.0.1:{base + i}/v1" for i, x in enumerate(names)}, "weights": {}}))
sys.stdin.read()
state.unlink()
"""


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Let the helper start the small server above, on ports that nobody uses."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(local, "SERVER_COMMAND", (sys.executable, str(script)))
    base = 20000 + os.getpid() % 2000 * 10
    while not all(local._is_free(base + n) for n in range(6)):
        base += 10
    use(COOKBOOK_PORT_BASE=str(base))
    return base


def pid_of(base):
    return json.loads(local.state_path(base).read_text())["pid"]


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def line_with(process, text):
    """Return the first line that the process prints with this text in it."""
    for line in process.stdout:
        if text in line:
            return line
    raise AssertionError("the process ended")


def test_local_starts_servers_and_stops_them(stand_in, capsys):
    found = endpoints.connect()
    assert found.mode == "local"
    assert found.chat.url == f"http://127.0.0.1:{stand_in}/v1"
    assert found.embedding.url == f"http://127.0.0.1:{stand_in + 1}/v1"
    assert found.reranking.rerank_url == f"http://127.0.0.1:{stand_in + 2}/v1"
    assert found.chat.key_variable == "COOKBOOK_LOCAL_KEY"
    assert found.chat.key.startswith("nvapi-local-")
    assert found.weights["embedding"] == "tiny embedding (local stand-in)"
    assert found.chat.key not in repr(found) + repr(found.chat)
    pid = pid_of(stand_in)
    assert local.state_path(stand_in).with_suffix(".log").stat().st_mode & 0o077 == 0

    again = endpoints.connect("catalog")
    assert {getattr(again, role).url for role in ROLES} == {f"http://127.0.0.1:{stand_in + 3}/v1"}
    assert again.reranking.weights == "tiny reranking (local stand-in)"
    assert pid_of(stand_in) == pid

    found.close()
    again.close()
    assert not alive(pid)
    shown = capsys.readouterr().out
    assert shown.count("Starting the local endpoints") == 1
    assert "are ready" in shown and found.chat.key_variable not in shown


def test_local_servers_get_no_real_key(stand_in):
    use(NVIDIA_API_KEY=FAKE)
    found = endpoints.connect()
    names = httpx.get(f"{found.chat.url}/metadata", trust_env=False).json()["env"]
    assert "NVIDIA_API_KEY" not in names and "PATH" in names


def test_a_real_key_is_refused_as_the_local_key(stand_in):
    use(COOKBOOK_LOCAL_KEY=FAKE)
    with pytest.raises(ConfigurationError, match="COOKBOOK_LOCAL_KEY"):
        endpoints.connect()


@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
def test_proxies_are_kept_off_loopback_and_off_the_readers_own_hosts(stand_in, variable):
    use(HTTP_PROXY="http://127.0.0.1:9", **{variable: "nim.corp"})
    endpoints.connect()
    endpoints.connect()
    assert os.environ[variable] == "nim.corp,127.0.0.1,localhost,::1"
    assert all(proxy_bypass_environment(host) for host in ("nim.corp", "127.0.0.1", "localhost"))


def test_no_proxy_for_any_host_stays_so(stand_in):
    use(HTTP_PROXY="http://127.0.0.1:9", NO_PROXY="*")
    endpoints.connect()
    assert os.environ["NO_PROXY"] == "*" and "no_proxy" not in os.environ


@pytest.mark.parametrize(
    "nim",
    [
        "127.0.0.1",
        pytest.param(
            "127.0.0.2",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="it has one such address"),
        ),
    ],
    indirect=True,
)
def test_a_nim_on_loopback_is_never_asked_through_a_proxy(nim):
    """Its texts would reach the proxy: the clients read the environment."""
    found = self_hosted(nim, HTTP_PROXY="http://127.0.0.1:9", NO_PROXY="nim.corp")
    assert httpx.get(f"{found.chat.url}/models").status_code == 200  # heeds them, as clients do


@pytest.mark.parametrize("content", [b"A=\xff\xfe", b"A=one\x00two"])
def test_a_damaged_env_file_is_named(tmp_path, monkeypatch, content):
    (tmp_path / ".env").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=r"\.env cannot be read .*UTF-8"):
        endpoints.connect()


def test_the_servers_stay_while_another_connection_uses_them(stand_in):
    first, second = endpoints.connect(), endpoints.connect("catalog")
    pid = pid_of(stand_in)
    first.close()
    first.close()
    endpoints.Endpoints("hosted", {}).close()
    assert alive(pid)
    second.close()
    assert not alive(pid)


def notebook(tmp_path, **variables):
    """Start a process that connects, prints where to and under which key, and waits."""
    code = (
        "import sys; from nim_cookbook import endpoints, local\n"
        f"local.SERVER_COMMAND = (sys.executable, {str(tmp_path / 'stand_in.py')!r})\n"
        "nim = endpoints.connect(); print(nim.chat.url, nim.chat.key, flush=True)\n"
        "sys.stdin.read()\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | variables,
    )  # fmt: skip


def test_two_notebooks_that_start_at_the_same_time_share_one_start(stand_in, tmp_path):
    both = [notebook(tmp_path, PAUSE="0.5") for _ in range(2)]
    seen = [line_with(process, "http") for process in both]
    pid = pid_of(stand_in)
    for process in both:
        process.communicate()
    assert seen[0] == seen[1]
    assert not alive(pid)


def test_the_servers_end_with_a_notebook_that_is_killed(stand_in, tmp_path):
    process = notebook(tmp_path)
    line_with(process, "http")
    pid = pid_of(stand_in)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def test_servers_that_are_busy_for_some_seconds_are_found(stand_in):
    use(BUSY="2.5")
    endpoints.connect()
    assert local.find_running() is not None


def test_servers_of_another_set_of_models_are_left_alone(stand_in):
    endpoints.connect()
    for wanted, found in (("", True), ("default", True), ("small", False)):
        use(COOKBOOK_MODELS=wanted)
        assert (local.find_running() is not None) is found


@pytest.fixture
def others(stand_in):
    """Servers that another process has started."""
    local.run_dir()
    command = [*local.SERVER_COMMAND, "--port-base", str(stand_in)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while local.find_running() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        yield process
        process.stdin.close()


def test_servers_of_somebody_else_are_used_and_left_alone(others):
    found = endpoints.connect(start=False)
    assert found.chat.key == f"nvapi-local-{others.pid}"
    found.close()
    assert others.poll() is None
    others.communicate()
    with pytest.raises(EndpointUnreachable, match="nim-cookbook serve"):
        endpoints.connect(start=False)


def test_servers_that_end_with_another_notebook_are_not_borrowed(others, stand_in):
    """Its owner may end at any time, in the middle of our work."""
    state = json.loads(local.state_path(stand_in).read_text())
    for lasting, named in ((True, False), (False, False), (False, True)):
        local.state_path(stand_in).write_text(json.dumps({**state, "lasting": lasting}))
        use(COOKBOOK_PORT_BASE=str(stand_in) if named else "")
        assert (local.find_running() is not None) is (lasting or named)


def test_busy_ports_move_to_a_free_block(stand_in):
    with socket.create_server(("127.0.0.1", stand_in + 2)):
        port = httpx.URL(endpoints.connect().chat.url).port
        # The next block, unless somebody else is there.
        assert port > stand_in and (port - stand_in) % 10 == 0


def test_a_state_file_that_was_left_behind_is_not_believed(stand_in):
    local.state_path(stand_in).write_text(
        json.dumps(
            {
                "key": "nvapi-local-old",
                "urls": dict.fromkeys(local.SERVERS, f"http://127.0.0.1:{stand_in}/v1"),
            }
        )
    )
    assert endpoints.connect().chat.key != "nvapi-local-old"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"urls": 3}', '{"urls": {"chat": "http://127.0.0.1:9/v1"}, "key": "x"}'],
)
def test_a_damaged_state_file_counts_as_none(stand_in, text):
    local.state_path(stand_in).write_text(text)
    assert local.find_running() is None


def test_servers_are_ready_when_all_of_them_are(stand_in):
    endpoints.connect()
    state = json.loads(local.state_path(stand_in).read_text())
    assert local.find_running() is not None
    state["urls"]["notion"] = f"http://127.0.0.1:{stand_in + 9}"
    local.state_path(stand_in).write_text(json.dumps(state))
    assert local.find_running() is None


def test_the_folder_of_adapters(stand_in, nim):
    with pytest.raises(ConfigurationError, match="loads no adapters: stop"):
        _ = endpoints.connect().peft_source
    local.stop()
    use(PEFT_SOURCE="/adapters")
    assert endpoints.connect().peft_source == Path("/adapters")
    use(COOKBOOK_ENDPOINTS="self-hosted", NIM_CHAT_URL=nim.url)
    with pytest.raises(ConfigurationError, match="set NIM_PEFT_SOURCE"):
        _ = endpoints.connect().peft_source
    use(NIM_PEFT_SOURCE="~/loras")
    assert endpoints.connect().peft_source == Path.home() / "loras"
    with pytest.raises(ConfigurationError, match="set COOKBOOK_ENDPOINTS=local"):
        _ = endpoints.Endpoints("hosted", {}).peft_source


def test_a_failing_start_passes_on_the_servers_sentence(stand_in):
    use(FAIL="No network: connect once, then run this again.")
    with pytest.raises(EndpointUnreachable, match=r"starting: No network: connect once") as caught:
        endpoints.connect()
    assert "\n" not in str(caught.value)
    del os.environ["FAIL"]
    assert endpoints.connect().mode == "local"


def test_a_start_that_says_nothing_is_given_up(stand_in, monkeypatch):
    monkeypatch.setattr(local, "STALL_SECONDS", 10)
    use(SAY="fetching 10 %", PAUSE="60")
    with pytest.raises(EndpointUnreachable, match="last: fetching 10 %"):
        endpoints.connect()


@pytest.mark.parametrize("text", ["80", "65531", "-8000", "\u0668", "9" * 99])
def test_a_bad_port_is_one_sentence(text):
    use(COOKBOOK_PORT_BASE=text)
    with pytest.raises(ConfigurationError, match="a number from 1024 to 65530"):
        endpoints.connect()


@pytest.mark.parametrize("blocked", ["cache", "cache/run"])
def test_a_cache_that_cannot_be_made_is_one_sentence(tmp_path, blocked):
    (tmp_path / blocked).parent.mkdir(exist_ok=True)
    (tmp_path / blocked).write_text("a file where a folder should be")
    with pytest.raises(ConfigurationError, match="set COOKBOOK_CACHE_DIR"):
        endpoints.connect()


def test_the_helper_imports_without_the_servers():
    code = "import sys, nim_cookbook.endpoints; print([m for m in sys.modules if m in sys.argv])"
    heavy = ["local_endpoints", "pandas", "matplotlib", "haystack", "mermaidx"]
    run = subprocess.run(
        [sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["nim_cookbook.endpoints", "cookbook_cli.app"])
def test_haystack_reports_to_nobody_unless_asked_to(module):
    code = (
        f"import {module}, haystack, os; from haystack.telemetry._telemetry import telemetry;"
        "print(os.environ['HAYSTACK_TELEMETRY_ENABLED'], telemetry)"
    )
    for value, shown in ((None, "False None"), ("True", "True <")):
        environment = {k: v for k, v in os.environ.items() if k != "HAYSTACK_TELEMETRY_ENABLED"}
        environment |= {"HAYSTACK_TELEMETRY_ENABLED": value} if value else {}
        environment |= {"HOME": os.environ["COOKBOOK_CACHE_DIR"]}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
        assert done.stdout.decode().startswith(shown), done.stderr
