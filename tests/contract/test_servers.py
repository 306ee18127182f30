"""What all servers have: health, models, metadata, keys, limits, and their start and end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import httpx
import psutil
import pytest

from local_endpoints.options import base_url
from local_endpoints.weights import folder_of
from nim_cookbook.models import load_registry
from tests.support import START_SECONDS, free_port_block, started_servers

NAMES = ["chat", "embedding", "reranking", "catalog"]
REGISTRY = load_registry()


def said(answer: httpx.Response, name: str, status: int) -> str:
    """Return an error's sentence; the chat NIM's is of NIM LLM 2.x, where no error is 422."""
    assert answer.status_code == (400 if name == "chat" and status == 422 else status)
    body = answer.json()
    return body["error"]["message"] if name == "chat" else body["detail"]


@pytest.mark.parametrize("name", NAMES)
class TestEveryServer:
    def test_health(self, servers, name):
        with servers.client(name) as http:
            ready = http.get("/health/ready")
            live = http.get("/health/live")
        assert ready.json() == {"object": "health.response", "message": "ready", "ready": True}
        assert live.status_code == 200

    def test_models_lists_catalog_ids_first_and_the_true_name_last(self, servers, name):
        with servers.client(name) as http:
            data = http.get("/models").json()["data"]
        roles = [name] if name != "catalog" else NAMES[:3]
        ids = [entry["id"] for entry in data]
        assert ids[0] == REGISTRY.default(roles[0]).id
        for role in roles:
            assert REGISTRY.weights_for(role, "small").local_id in ids
        assert all(entry["root"] == entry["id"] for entry in data)

    def test_metadata_names_the_weights(self, servers, name):
        with servers.client(name) as http:
            metadata = http.get("/metadata").json()
        roles = {name} if name != "catalog" else set(NAMES[:3])
        assert {entry["role"] for entry in metadata["weights"]} == roles
        assert all(len(entry["sha256"]) == 64 for entry in metadata["weights"])
        assert metadata["localStandIn"] is True
        assert metadata.get("nim") == ("2" if name == "chat" else None)

    def test_version_metrics_and_openapi(self, servers, name):
        with servers.client(name) as http:
            assert http.get("/version").json()["release"]
            assert "e2e_request_latency_seconds" in http.get("/metrics").text
            url = servers.url(name).removesuffix("/v1") + "/openapi.json"
            assert "/v1/health/ready" in http.get(url).json()["paths"]

    def test_unknown_path_and_method(self, servers, name):
        with servers.client(name) as http:
            answer = http.get("/nothing")
            assert said(answer, name, 404) == "Not Found"
            assert http.delete("/models").status_code == 405

    def test_body_limit(self, servers, name):
        path = {"chat": "/chat/completions", "reranking": "/ranking"}.get(name, "/embeddings")
        with servers.client(name) as http:
            big = http.post(path, content=b" " * (9 * 2**20))
            chunked = http.post(path, content=(b" " * 2**20 for _ in range(9)))
        assert big.status_code == chunked.status_code == 413

    def test_malformed_json(self, servers, name):
        path = {"chat": "/chat/completions", "reranking": "/ranking"}.get(name, "/embeddings")
        with servers.client(name) as http:
            answer = http.post(
                path, content=b"{nonsense", headers={"Content-Type": "application/json"}
            )
        assert said(answer, name, 422)

    def test_body_that_is_no_json_object(self, servers, name):
        path = {"chat": "/chat/completions", "reranking": "/ranking"}.get(name, "/embeddings")
        with servers.client(name) as http:
            as_text = http.post(path, content=b"{}", headers={"Content-Type": "text/plain"})
            as_list = http.post(path, json=[])
        for answer in (as_text, as_list):
            assert "Content-Type: application/json" in said(answer, name, 422)

    def test_no_cors(self, servers, name):
        with servers.client(name) as http:
            answer = http.get("/models", headers={"Origin": "http://evil.example"})
        assert "access-control-allow-origin" not in answer.headers


class TestNotion:
    """The stand-in itself is tested in test_notion.py; here, that it is one of the servers."""

    HEADERS: ClassVar = {"Notion-Version": "2022-06-28"}

    def test_is_ready_for_anybody(self, servers):
        answer = httpx.get(f"{servers.url('notion')}/health/ready", timeout=60)
        assert (answer.status_code, answer.json()) == (200, {"ready": True})

    def test_demands_the_key_of_this_start(self, servers):
        url = f"{servers.url('notion')}/v1/users/me"
        assert httpx.get(url, headers=self.HEADERS, timeout=60).status_code == 401
        with servers.client("notion") as http:
            assert http.get("/v1/users/me", headers=self.HEADERS).json()["type"] == "bot"

    def test_the_doctor_names_it(self, servers):
        command = [sys.executable, "-m", "cookbook_cli", "doctor", "--endpoints", "local"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert f"notion at {servers.url('notion')}: " in done.stdout


class TestKeys:
    @pytest.mark.parametrize(
        "path", ["/models", "/chat/completions", "/embeddings", "/ranking", "/metadata", "/metrics"]
    )
    def test_catalog_demands_a_key(self, servers, path):
        with httpx.Client(base_url=servers.url("catalog"), timeout=60) as http:
            missing = http.post(path) if path.count("/") > 1 else http.get(path)
        assert missing.status_code == 401
        assert "401" in missing.json()["detail"] and "Unauthorized" in missing.json()["detail"]
        with servers.client("catalog", key="nvapi-fake-wrong-key") as http:
            wrong = http.get(path)
        assert wrong.status_code == 403
        assert wrong.json()["title"] == "Forbidden"
        assert wrong.json()["detail"] == "Authorization failed"

    def test_a_nim_ignores_the_key(self, servers):
        with servers.client("chat", key="whatever") as http:
            assert http.get("/models").status_code == 200

    def test_hosted_reranking_paths(self, servers):
        model = REGISTRY.default("reranking").id
        slug = model.split("/")[-1].replace(".", "_")
        body = {"model": model, "query": {"text": "q"}, "passages": [{"text": "p"}]}
        with servers.client("catalog") as http:
            for path in ("/retrieval/nvidia/reranking", f"/retrieval/nvidia/{slug}/reranking"):
                assert len(http.post(path, json=body).json()["rankings"]) == 1
            assert http.post("/retrieval/nvidia/nothing/reranking", json=body).status_code == 404


def start(*options: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "local_endpoints", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )


def refused(*options: str, **environment: str) -> str:
    """Start the servers with what they must refuse; return the one sentence they print."""
    process = start(*options, **environment)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    lines = [line for line in output.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1 and "Traceback" not in output, output
    return lines[0]


def wait_ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if line.startswith("Local stand-ins"):
            return output
    raise AssertionError(output)


class TestStartAndEnd:
    def test_busy_port_is_named_with_its_holder(self, servers):
        sentence = refused("--port-base", str(servers.port_base))
        assert f"Port {servers.port_base} for the chat server is already in use" in sentence
        assert "(process " in sentence and "--port-base" in sentence

    def test_a_later_busy_port_leaves_none_bound(self):
        base = free_port_block()
        with socket.create_server(("127.0.0.1", base + 2)):
            assert f"Port {base + 2} for the reranking server" in refused("--port-base", str(base))
        with socket.create_server(("127.0.0.1", base)):
            pass

    def test_bad_addresses(self):
        assert "--host" in refused("--host", "203.0.113.7", "--port-base", str(free_port_block()))
        assert "--port-base" in refused("--port-base", "70000")

    def test_key_that_no_header_can_carry(self):
        assert "COOKBOOK_LOCAL_KEY" in refused(COOKBOOK_LOCAL_KEY="two words")

    def test_weights_that_are_none(self, tmp_path: Path):
        broken = tmp_path / "model.gguf"
        broken.write_bytes(b"GGUF" + b"\0" * 64)
        sentence = refused("--port-base", str(free_port_block()), "--chat-model", str(broken))
        assert str(broken) in sentence
        missing = tmp_path / "none.gguf"
        sentence = refused("--port-base", str(free_port_block()), "--chat-model", str(missing))
        assert "none.gguf" in sentence

    @pytest.mark.parametrize(
        "end",
        [
            "SIGTERM",
            pytest.param("SIGINT", marks=pytest.mark.long),
            pytest.param("stdin", marks=pytest.mark.long),
        ],
    )
    def test_clean_end_leaves_nothing(self, end: str, tmp_path: Path):
        base = free_port_block()
        process = start("--port-base", str(base), "--stop-with-stdin", COOKBOOK_LOCAL_KEY="k")
        table = wait_ready(process)
        for role in NAMES[:3]:
            assert REGISTRY.weights_for(role, "small").description in table
        lines = [line.split() for line in table.splitlines() if line.startswith("ready: ")]
        assert [(line[1], line[2]) for line in lines if line[1] in ("chat", "notion")] == [
            ("chat", f"http://127.0.0.1:{base}/v1"),
            ("notion", f"http://127.0.0.1:{base + 5}"),
        ]
        from nim_cookbook.local import state_path

        state = state_path(base)
        assert json.loads(state.read_text())["pid"] == process.pid
        assert state.stat().st_mode & 0o077 == 0
        if end == "stdin":
            assert process.stdin is not None
            process.stdin.close()
        else:
            process.send_signal(getattr(signal, end))
        assert process.wait(timeout=30) == 0
        assert not state.exists()
        with socket.create_server(("127.0.0.1", base)):
            pass

    def test_a_stop_waits_for_no_long_answer_and_a_second_signal_for_nothing(self):
        """Once alone and once with a second signal, while llama.cpp reads and the encoder, too."""
        long = "The river rises, and the station on its bank sends a warning. " * 60
        for signals, code in ((1, 0), (2, 128 + signal.SIGTERM)):
            base = free_port_block()
            process = start("--port-base", str(base), COOKBOOK_LOCAL_KEY="k")
            wait_ready(process)
            chat = {"messages": [{"role": "user", "content": long[:1500]}], "max_tokens": 900}
            texts = {"input": [long[:1500]] * 64, "input_type": "passage"}
            asked = [("chat", "chat/completions", chat), ("embedding", "embeddings", texts)]
            with ThreadPoolExecutor(4) as pool:
                answers = [
                    pool.submit(
                        httpx.post,
                        f"{base_url(role, '127.0.0.1', base)}/{path}",
                        json={"model": REGISTRY.default(role).id, **body},
                        timeout=60,
                    )
                    for role, path, body in asked * 2
                ]
                time.sleep(1)
                for _ in range(signals):
                    process.send_signal(signal.SIGTERM)
                    time.sleep(0.1)
                assert process.wait(timeout=60) == code
                for answer in answers:
                    with contextlib.suppress(httpx.TransportError):
                        assert answer.result().status_code in (200, 503)
            with socket.create_server(("127.0.0.1", base)):
                pass

    def test_not_ready_while_loading_and_off_loopback_only_with_a_key(self, tmp_path: Path):
        """One start serves both checks: taken to be reachable from outside, and asked early.

        It is told that its loopback address is another one, since no test opens a port to the
        network. A recipe then runs against it as against NIMs behind a gateway.
        """
        base = free_port_block()
        asked = tmp_path / "asked"  # or the models might be loaded before anybody has looked
        code = (
            "import asyncio, pathlib\n"
            "from local_endpoints import loading, options, server\n"
            "from nim_cookbook import hosts\n"
            "hosts.is_loopback = lambda host: False\n"
            "load = loading.load\n"
            "async def wait_and_load(*args, **more):\n"
            f"    while not pathlib.Path({str(asked)!r}).exists(): await asyncio.sleep(0.05)\n"
            "    return await load(*args, **more)\n"
            "loading.load = wait_and_load\n"
            f"server.main(options.ServeOptions(port_base={base}))\n"
        )
        environment = {**os.environ, "COOKBOOK_LOCAL_KEY": "secret"}
        process = subprocess.Popen([sys.executable, "-c", code], env=environment)
        seen = set()
        try:
            url = f"http://127.0.0.1:{base}/v1"
            limit = time.monotonic() + START_SECONDS
            while 200 not in seen and time.monotonic() < limit:
                with contextlib.suppress(httpx.TransportError):
                    seen.add(httpx.get(f"{url}/health/ready", timeout=60).status_code)
                    asked.touch()
                time.sleep(0.05)
            assert seen == {503, 200}
            assert httpx.get(f"{url}/models", timeout=60).status_code == 401
            key = {"Authorization": "Bearer secret"}
            allowed = httpx.get(f"{url}/models", headers=key, timeout=60)
            assert allowed.status_code == 200
            self.run_recipe_behind_a_gateway(base, str(tmp_path))
        finally:
            process.terminate()
            process.wait(timeout=30)

    @staticmethod
    def run_recipe_behind_a_gateway(base: int, output: str) -> None:
        """Run recipe 02 with NIM_API_KEY against servers that all demand it."""
        names = {"NIM_CHAT_URL": base, "NIM_EMBEDDING_URL": base + 1, "NIM_RERANKING_URL": base + 2}
        settings = {name: f"http://127.0.0.1:{port}/v1" for name, port in names.items()}
        settings |= {"COOKBOOK_ENDPOINTS": "self-hosted", "NIM_API_KEY": "secret"}
        done = subprocess.run(
            [sys.executable, "-m", "cookbook_cli", "run", "02", "--output", output],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    def test_nothing_is_reported_to_anybody(self, servers):
        """ONNX Runtime connects to its makers about nine seconds after it is loaded, if it may."""
        base = free_port_block()
        with socket.create_server(("127.0.0.1", 0)) as proxy:
            address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
            names = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY")
            process = start("--port-base", str(base), **dict.fromkeys(names, address) | {"CI": ""})
            try:
                wait_ready(process)
                proxy.settimeout(15)
                with pytest.raises(TimeoutError):
                    proxy.accept()
            finally:
                process.terminate()
                process.wait(timeout=30)


class TestAnOwnChatModel:
    """The chat role can be pointed at a GGUF file of the reader's."""

    def test_it_answers_under_its_own_name(self, tmp_path: Path):
        weights = REGISTRY.weights_for("chat", "small")
        own = tmp_path / "Mine.gguf"
        own.symlink_to(folder_of(weights) / weights.files[0].name)
        base = free_port_block()
        process = start("--port-base", str(base), "--chat-model", str(own))
        try:
            wait_ready(process)
            metadata = httpx.get(f"http://127.0.0.1:{base}/v1/metadata", timeout=60).json()
            assert "your own file" in metadata["weights"][0]["description"]
        finally:
            process.terminate()
            process.wait(timeout=30)

    def test_a_file_of_another_kind_is_refused(self, tmp_path: Path):
        (tmp_path / "model.gguf").write_text("no model")
        given = str(tmp_path / "model.gguf")
        sentence = refused("--port-base", str(free_port_block()), "--chat-model", given)
        assert "is no GGUF file" in sentence


class TestTheSetOfModels:
    """COOKBOOK_MODELS chooses it; a set that does not exist is one sentence."""

    def test_a_set_that_does_not_exist(self):
        sentence = refused("--port-base", str(free_port_block()), COOKBOOK_MODELS="huge")
        assert "COOKBOOK_MODELS is 'huge'" in sentence


@pytest.mark.long
def test_refused_requests_leave_the_servers_memory_as_it_was(tmp_path):
    """Two dozen bodies of two megabytes at once took it from 0.7 to 2 GB, and it kept them."""
    key = "nvapi-local-fake-key-for-memory"
    with started_servers(tmp_path / "log", key, COOKBOOK_MODELS="small") as (servers, process):
        memory = psutil.Process(process.pid).memory_info
        before = memory().rss
        body = {
            "model": REGISTRY.default("embedding").id,
            "input": ["word " * 2000] * 200,
            "input_type": "passage",
        }
        with servers.client("embedding") as http, ThreadPoolExecutor(24) as callers:
            sent = [callers.submit(http.post, "/embeddings", json=body) for _ in range(24)]
            assert {reply.result().status_code for reply in sent} == {400}
        assert memory().rss - before < 400 << 20
