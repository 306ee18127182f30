"""Embedding and reranking engines on the real weights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_endpoints import weights as store
from local_endpoints.nim.engines import encoder as encoding
from local_endpoints.nim.engines.embedding import EmbeddingEngine
from local_endpoints.nim.engines.encoder import Encoder, InputTooLong
from local_endpoints.nim.engines.reranking import RerankingEngine
from local_endpoints.weights import ResolvedWeights
from nim_cookbook.errors import WeightsError
from nim_cookbook.models import Role, load_registry


def registered(role: Role) -> ResolvedWeights:
    return store.resolve(load_registry().weights_for(role), report=print)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(registered("embedding"))


@pytest.fixture
async def embedding() -> AsyncIterator[EmbeddingEngine]:
    engine = EmbeddingEngine(registered("embedding"))
    yield engine
    await engine.close()


@pytest.fixture
async def reranking() -> AsyncIterator[RerankingEngine]:
    engine = RerankingEngine(registered("reranking"))
    yield engine
    await engine.close()


# --- embedding ------------------------------------------------------------------------------


async def test_vectors_have_length_one_and_their_tokens_are_counted(
    embedding: EmbeddingEngine,
) -> None:
    result = await embedding.embed(["Paris", "", "Who lives in Rome?"])
    assert result.vectors.shape == (3, embedding.dimensions) == (3, 384)
    assert result.vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(result.vectors, axis=1), 1, atol=1e-5)
    assert result.tokens == [3, 2, 7]  # [CLS] and [SEP] count


async def test_the_meaning_decides(embedding: EmbeddingEngine) -> None:
    texts = [
        "The cat sleeps on the sofa.",
        "Interest rates rose in spring.",
        "A kitten is napping.",
    ]
    vectors = (await embedding.embed(texts)).vectors
    cosines = vectors @ vectors[2]
    assert cosines[0] > cosines[1] + 0.2


async def test_a_question_has_the_instruction_in_front(embedding: EmbeddingEngine) -> None:
    prefix = registered("embedding").query_prefix
    question = await embedding.embed(["Who lives in Rome?"], query=True)
    spelled = await embedding.embed([f"{prefix}Who lives in Rome?"])
    plain = await embedding.embed(["Who lives in Rome?"])
    np.testing.assert_allclose(question.vectors, spelled.vectors, atol=1e-6)
    assert question.tokens == spelled.tokens
    assert float((question.vectors @ plain.vectors.T)[0, 0]) < 0.99
    for side in ("START", "END"):
        cut = await embedding.embed(["river " * 849], side, query=True)
        assert cut.tokens == [512], "the instruction stays, and counts"


async def test_no_texts_give_no_vectors(embedding: EmbeddingEngine) -> None:
    result = await embedding.embed([])
    assert result.vectors.shape == (0, 384)
    assert result.tokens == []


async def test_a_vector_does_not_depend_on_its_neighbours(embedding: EmbeddingEngine) -> None:
    """Neither those of its request nor those of requests that run beside it."""
    texts = [f"text number {n} " + "and more of it " * (n % 7) for n in range(24)]
    alone = np.vstack([(await embedding.embed([text])).vectors for text in texts])
    requests = [texts[start : start + 3] for start in range(0, len(texts), 3)]
    together = await asyncio.gather(*(embedding.embed(request) for request in requests))
    np.testing.assert_array_equal(np.vstack([r.vectors for r in together]), alone)


async def test_a_large_request_does_not_starve_a_small_one(embedding: EmbeddingEngine) -> None:
    large = asyncio.create_task(embedding.embed(["a long text " * 60] * 60))
    await asyncio.sleep(0.05)
    await embedding.embed(["a question"], query=True)
    assert not large.done()
    large.cancel()
    with pytest.raises(asyncio.CancelledError):
        await large


async def test_too_long_a_text_is_refused_or_cut(embedding: EmbeddingEngine) -> None:
    text = "river " * 849
    with pytest.raises(InputTooLong) as caught:
        await embedding.embed(["short", text])
    assert str(caught.value) == "Input length 851 exceeds maximum allowed token size 512"
    for side in ("START", "END"):
        assert (await embedding.embed([text], side)).tokens == [512]


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(max_size=120),
    side=st.sampled_from(["START", "END"]),
    limit=st.integers(min_value=2, max_value=40),
)
def test_any_text_is_cut_to_exactly_the_limit(
    encoder: Encoder, text: str, side: str, limit: int
) -> None:
    encoder.limit = 512
    (whole,) = asyncio.run(encoder.tokenize([text]))
    encoder.limit = limit
    (cut,) = asyncio.run(encoder.tokenize([text], side))  # type: ignore[arg-type]
    assert len(cut) == min(len(whole), limit)
    assert (cut[0], cut[-1]) == (whole[0], whole[-1])
    inner, body = cut[1:-1], whole[1:-1]
    assert inner == (body[: len(inner)] if side == "END" else body[len(body) - len(inner) :])
    if len(whole) > limit:
        with pytest.raises(InputTooLong) as caught:
            asyncio.run(encoder.tokenize([text]))
        assert (caught.value.length, caught.value.limit) == (len(whole), limit)


async def test_a_text_that_is_read_in_pieces_has_the_same_tokens(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder.limit = 512
    texts = ["The weir at Pellin Ford, naïve café 漢字 SP-3318. " * 9, "short", "one" * 40]
    whole = await encoder.tokenize(texts)
    monkeypatch.setattr(encoding, "TOGETHER", 20)
    assert await encoder.tokenize(texts) == whole


def test_files_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    weights = ResolvedWeights(
        name="broken",
        role="embedding",
        description="Broken",
        folder=tmp_path,
        files=(("model.onnx", ""), ("tokenizer.json", "")),
        licence="unknown",
        source="",
        engine="onnxruntime",
        max_tokens=512,
    )
    with pytest.raises(WeightsError, match="fetch --force") as caught:
        Encoder(weights)
    assert "\n" not in str(caught.value)


# --- reranking ------------------------------------------------------------------------------


def best_first(passages: list[str], logits: list[float]) -> list[str]:
    return [p for _, p in sorted(zip(logits, passages, strict=True), reverse=True)]


async def test_the_capital_is_ranked_first(reranking: RerankingEngine) -> None:
    passages = ["Lyon", "Paris", "London"]
    result = await reranking.rank("Capital of France", passages)
    assert best_first(passages, result.logits) == ["Paris", "Lyon", "London"]
    assert result.tokens == 3 * (3 + 3 + 1)


async def test_the_answer_is_ranked_first(reranking: RerankingEngine) -> None:
    passages = [
        "My name is Jean and I live in Paris.",
        "My name is Mark and I live in Berlin.",
        "My name is Giorgio and I live in Rome.",
    ]
    for place, passage in zip(("Paris", "Berlin", "Rome"), passages, strict=True):
        result = await reranking.rank(f"Who lives in {place}?", passages)
        assert best_first(passages, result.logits)[0] == passage


async def test_codes_and_dates_are_looked_up(reranking: RerankingEngine) -> None:
    for asked, text, codes in (
        ("What does error {} mean?", "Error {} means that the battery is low.", ["E17", "E41"]),
        ("Which sensor fits the {}?", "The {} takes the long cable.", ["RG-5", "RG-7", "DP-5"]),
        ("What happened on {}?", "On {} the gauge stopped.", ["14 March 2025", "15 March 2025"]),
    ):
        passages = [text.format(code) for code in codes]
        for place, code in enumerate(codes):
            logits = (await reranking.rank(asked.format(code), passages)).logits
            assert logits.index(max(logits)) == place, (asked, code, logits)


async def test_a_logit_depends_on_its_own_pair_only(reranking: RerankingEngine) -> None:
    passages = [f"passage {n} about rivers " + "and lakes " * (n % 9) for n in range(20)]
    together = (await reranking.rank("rivers", passages)).logits
    alone = [(await reranking.rank("rivers", [passage])).logits[0] for passage in passages]
    assert together == alone


@pytest.mark.parametrize("query", ["", "?", "the", "what is it", "何ですか", "😀 😀", "Что это?"])
async def test_queries_of_little_content_get_finite_logits(
    reranking: RerankingEngine, query: str
) -> None:
    result = await reranking.rank(
        query, ["Paris is in France.", "", "パリはフランスにある。", "😀"]
    )
    assert all(np.isfinite(result.logits))


async def test_query_and_passage_are_limited_together(reranking: RerankingEngine) -> None:
    long = "river " * 600
    for query, passage in ((long, "short"), ("short", long)):
        with pytest.raises(InputTooLong) as caught:
            await reranking.rank(query, [passage])
        assert str(caught.value) == "Input length 604 exceeds maximum allowed token size 512"
    result = await reranking.rank("river", ["short", long], "END")
    assert result.tokens == (3 + 1 + 1) + 512
    result = await reranking.rank(long, ["river", "tax law"], "END")
    assert result.tokens == 512 + 512
