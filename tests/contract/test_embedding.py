"""The embedding NIM, over HTTP and through the clients."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest

from nim_cookbook.models import load_registry

REGISTRY = load_registry()
MODEL = REGISTRY.default("embedding").id
LOCAL = REGISTRY.weights_for("embedding").local_id
LIMIT = REGISTRY.weights_for("embedding").max_tokens
WIDTH = REGISTRY.weights_for("embedding").dimensions


@pytest.fixture(scope="module")
def http(servers):
    with servers.client("embedding") as client:
        yield client


def embed(http, texts, **more):
    body = {"model": MODEL, "input": texts, "input_type": "passage", **more}
    answer = http.post("/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def vectors(answer) -> np.ndarray:
    return np.array([entry["embedding"] for entry in answer["data"]], dtype=np.float32)


def test_shape_order_and_usage(http):
    texts = ["a cat", "a dog", "a quarterly report", "a cat"]
    answer = embed(http, texts)
    assert answer["object"] == "list" and answer["model"] == MODEL
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2, 3]
    matrix = vectors(answer)
    assert matrix.shape == (4, WIDTH)
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(matrix[0], matrix[3], atol=1e-5)
    assert matrix[0] @ matrix[1] > matrix[0] @ matrix[2]
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 8


def test_one_string(http):
    assert len(embed(http, "a cat")["data"]) == 1


def test_base64_is_little_endian_float32(http):
    plain = vectors(embed(http, ["a cat"]))[0]
    coded = embed(http, ["a cat"], encoding_format="base64")["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(coded), "<f4"), plain, atol=1e-6)


def test_too_long_is_refused_in_the_documented_words(http):
    body = {"model": MODEL, "input": ["short", "word " * 900], "input_type": "passage"}
    answer = http.post("/embeddings", json=body)
    assert answer.status_code == 400
    assert answer.json()["detail"] == (
        f"Input length 902 exceeds maximum allowed token size {LIMIT}"
    )


@pytest.mark.parametrize("side", ["START", "END"])
def test_truncate_keeps_exactly_the_limit(http, side):
    """Words are single tokens; two places are for the model's own marks."""
    kept = LIMIT - 2
    head, tail = "cat " * kept, "dog " * kept
    answer = embed(http, [head + tail], truncate=side)
    assert answer["usage"]["prompt_tokens"] == LIMIT
    want = vectors(embed(http, [tail if side == "START" else head]))[0]
    np.testing.assert_allclose(vectors(answer)[0], want, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"input_type": None}, 400, "'input_type' parameter is required for asymmetric models"),
        ({"dimensions": 0}, 400, "dimensions"),
        ({"dimensions": -3}, 400, "dimensions"),
        ({"dimensions": 64}, 400, "dimensions"),
        ({"embedding_type": "int8"}, 400, "embedding_type"),
        ({"input": []}, 422, "input"),
        ({"input": ""}, 422, "input"),
        ({"input": ["a", ""]}, 422, "input"),
        ({"input": [[1, 2]]}, 422, "input"),
        ({"input": None}, 422, "input"),
        ({"input_type": "document"}, 422, "input_type"),
        ({"truncate": "MIDDLE"}, 422, "truncate"),
        ({"encoding_format": "hex"}, 422, "encoding_format"),
        ({"model": "something-obviously-wrong"}, 404, "does not exist"),
        ({"pooling": "max"}, 400, "'pooling'"),
    ],
)
def test_what_cannot_be_done_is_refused(http, body, status, words):
    request = {"model": MODEL, "input": "a cat", "input_type": "query", **body}
    answer = http.post("/embeddings", json=request)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"]


def test_input_type_may_be_a_suffix_and_is_not_needed_for_the_true_model(http):
    for model in (f"{MODEL}-query", f"{MODEL}-passage", LOCAL):
        answer = http.post("/embeddings", json={"model": model, "input": "a cat"})
        assert answer.status_code == 200
        assert answer.json()["model"] == model


def test_native_dimensions_are_accepted(http):
    assert vectors(embed(http, "a cat", dimensions=WIDTH)).shape == (1, WIDTH)


def test_concurrent_requests_get_their_own_vectors(http):
    texts = [f"text number {n} about {'cats' if n % 2 else 'stock markets'}" for n in range(24)]
    alone = vectors(embed(http, texts))
    with ThreadPoolExecutor(8) as pool:
        together = np.vstack(list(pool.map(lambda text: vectors(embed(http, text)), texts)))
    np.testing.assert_allclose(alone, together, atol=1e-4)


def test_openai_client(servers):
    client = openai.OpenAI(base_url=servers.url("embedding"), api_key="not-needed")
    answer = client.embeddings.create(model=LOCAL, input=["a cat"])  # asks for base64
    assert len(answer.data[0].embedding) == WIDTH
