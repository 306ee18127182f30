"""Endpoints that answer at once and by rule, for tests of what is built on them.

Vectors count words, logits count the words that question and chunk share, and the chat model says
`ANSWER`. Everything that was asked is kept.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from nim_cookbook.endpoints import Endpoint, Endpoints, Mode
from nim_cookbook.models import ROLES

KEY = "nvapi-fake-key-for-tests"
KEY_VARIABLE = "COOKBOOK_TEST_KEY"
ANSWER = "It is so."


@dataclass
class FakeModels:
    """The endpoints, and what they were asked.

    Attributes:
        url: Their common base URL.
        embedded: The chunks that were embedded, in order; no questions.
        prompts: The last message of each chat.
        ranked: The requests for a ranking.
        chats: The requests for a chat.
        said: What the chat model says.
        finish_reason: Why it ends.
        width: Width of the vectors.
        failing: Status with which every request is refused, if any.
    """

    url: str = ""
    embedded: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    ranked: list[dict[str, Any]] = field(default_factory=list)
    chats: list[dict[str, Any]] = field(default_factory=list)
    said: str = f" {ANSWER}\n"
    finish_reason: str = "stop"
    width: int = 64
    refusal_logit: float | None = None
    failing: int = 0

    def endpoints(self, mode: Mode = "local", weights: str = "fake weights") -> Endpoints:
        """Return what `connect()` would; the key is in `KEY_VARIABLE`, which a test has to set."""
        return Endpoints(
            mode,
            {
                role: Endpoint(
                    role,
                    self.url,
                    f"fake/{role}",
                    KEY_VARIABLE,
                    weights,
                    self.url,
                    self.refusal_logit,
                )
                for role in ROLES
            },
        )

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to one request."""
        if path.endswith("/embeddings"):
            texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
            if body["input_type"] == "passage":
                self.embedded += texts
            data = [{"index": n, "embedding": self._vector(text)} for n, text in enumerate(texts)]
            return {"data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}}
        if path.endswith("/ranking"):
            self.ranked.append(body)
            asked = _words(body["query"]["text"])
            logits = [float(len(asked & _words(p["text"]))) for p in body["passages"]]
            order = sorted(range(len(logits)), key=lambda n: -logits[n])
            return {"rankings": [{"index": n, "logit": logits[n]} for n in order]}
        self.chats.append(body)
        self.prompts.append(body["messages"][-1]["content"])
        message = {"role": "assistant", "content": self.said, "reasoning_content": "Let me see."}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": self.finish_reason}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }

    def _vector(self, text: str) -> list[float]:
        vector = [0.01] * self.width
        for word in _words(text):
            vector[zlib.crc32(word.encode()) % self.width] += 1.0
        return vector


@contextmanager
def serving() -> Iterator[FakeModels]:
    """Serve the fakes on a free port until the block ends."""
    models = FakeModels()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = models.failing or 200
            answer = {"detail": "no"} if models.failing else models.answer(self.path, body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    models.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield models
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
