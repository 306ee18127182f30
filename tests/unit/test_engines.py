"""Embedding and reranking engines on the real weights, and on tiny models with known answers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_endpoints import weights as store
from local_endpoints.engines import onnx_bert, relevance
from local_endpoints.engines.batching import Batcher, BatcherClosed
from local_endpoints.engines.embedding import EmbeddingEngine
from local_endpoints.engines.encoder import Encoder, FloatArray, InputTooLong, Tokens
from local_endpoints.engines.passages import PassageVectors, halved
from local_endpoints.engines.reranking import RerankingEngine
from local_endpoints.weights import ResolvedWeights
from nim_cookbook.errors import WeightsError
from nim_cookbook.models import Role, load_registry
from tests.unit import tiny_models

REFERENCE = Path(__file__).resolve().parent.parent / "reference" / "vectors.json"


def registered(role: Role) -> ResolvedWeights:
    return store.resolve(load_registry().weights_for(role), report=print)


def own(folder: Path, role: Role, tmp_path: Path) -> ResolvedWeights:
    return store.from_option([str(folder)], role, cache=tmp_path / "cache", report=print)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(registered("embedding").folder)


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


async def test_vectors_agree_with_sentence_transformers(embedding: EmbeddingEngine) -> None:
    reference = json.loads(REFERENCE.read_text(encoding="utf-8"))
    assert reference["model_sha256"] == dict(registered("embedding").files)["model.safetensors"]
    result = await embedding.embed([item["text"] for item in reference["items"]], "END")
    expected = np.array([item["vector"] for item in reference["items"]])
    np.testing.assert_allclose(result.vectors, expected, rtol=0, atol=5e-5)


async def test_vectors_have_length_one_and_their_tokens_are_counted(
    embedding: EmbeddingEngine,
) -> None:
    result = await embedding.embed(["Paris", "", "Who lives in Rome?"])
    assert result.vectors.shape == (3, embedding.dimensions) == (3, 384)
    assert result.vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(result.vectors, axis=1), 1, atol=1e-5)
    assert result.tokens == [3, 2, 7]  # [CLS] and [SEP] count


async def test_no_texts_give_no_vectors(embedding: EmbeddingEngine) -> None:
    result = await embedding.embed([])
    assert result.vectors.shape == (0, 384)
    assert result.tokens == []


async def test_concurrent_callers_get_their_own_vectors(embedding: EmbeddingEngine) -> None:
    """What shares a batch, and how it is padded, must not be seen in the result."""
    texts = [f"text number {n} " + "and more of it " * (n % 7) for n in range(24)]
    alone = np.vstack([(await embedding.embed([text])).vectors for text in texts])
    requests = [texts[start : start + 3] for start in range(0, len(texts), 3)]
    together = await asyncio.gather(*(embedding.embed(request) for request in requests))
    np.testing.assert_allclose(np.vstack([r.vectors for r in together]), alone, atol=1e-5)


async def test_too_long_a_text_is_refused_or_cut(embedding: EmbeddingEngine) -> None:
    text = "river " * 849
    with pytest.raises(InputTooLong) as caught:
        await embedding.embed(["short", text])
    assert str(caught.value) == "Input length 851 exceeds maximum allowed token size 512"
    for side in ("START", "END"):
        assert (await embedding.embed([text], side)).tokens == [512]
    assert (await embedding.embed(["river " * 10], "END", limit=8)).tokens == [8]


async def test_each_side_of_a_cut_text_is_kept(embedding: EmbeddingEngine) -> None:
    text = "one two three four five six"
    cut = {side: (await embedding.embed([text], side, 5)).vectors for side in ("START", "END")}
    np.testing.assert_allclose(
        cut["END"], (await embedding.embed(["one two three"])).vectors, atol=1e-5
    )
    np.testing.assert_allclose(
        cut["START"], (await embedding.embed(["four five six"])).vectors, atol=1e-5
    )


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(max_size=120),
    side=st.sampled_from(["START", "END"]),
    limit=st.integers(min_value=2, max_value=40),
)
def test_any_text_is_cut_to_exactly_the_limit(
    encoder: Encoder, text: str, side: str, limit: int
) -> None:
    count = encoder.count(text)
    (whole,) = encoder.tokenize([text])
    (cut,) = encoder.tokenize([text], side, limit)  # type: ignore[arg-type]
    assert len(whole) == count
    assert len(cut) == min(count, limit)
    assert (cut.ids[0], cut.ids[-1]) == (whole.ids[0], whole.ids[-1])
    inner = cut.ids[1:-1]
    body = whole.ids[1:-1]
    assert inner == (body[: len(inner)] if side == "END" else body[len(body) - len(inner) :])
    if count > limit:
        with pytest.raises(InputTooLong) as caught:
            encoder.tokenize([text], "NONE", limit)
        assert (caught.value.length, caught.value.limit) == (count, limit)


def test_encode_keeps_the_order_of_the_texts(encoder: Encoder) -> None:
    texts = ["a short one", "a longer text " * 40, "", "middling " * 12]
    for text, vectors in zip(texts, encoder.encode(texts), strict=True):
        assert vectors.shape == (encoder.count(text), 384)
        np.testing.assert_allclose(vectors, encoder.encode([text])[0], atol=1e-4)


# --- reranking ------------------------------------------------------------------------------


def best_first(passages: list[str], logits: list[float]) -> list[str]:
    return [p for _, p in sorted(zip(logits, passages, strict=True), reverse=True)]


async def test_the_capital_is_ranked_first(reranking: RerankingEngine) -> None:
    passages = ["Lyon", "Paris", "London"]
    result = await reranking.rank("Capital of France", passages)
    assert best_first(passages, result.logits) == ["Paris", "Lyon", "London"]
    assert result.tokens == 5 + 3 * 3
    result = await reranking.rank("What is the capital of France?", passages)
    assert best_first(passages, result.logits)[0] == "Paris"


async def test_passages_ranked_before_are_not_encoded_again(
    reranking: RerankingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = ["The gate opens at nine.", "Herons stand still.", "The gate opens at nine."]
    first = await reranking.rank("When does the gate open?", passages)
    encoded: list[int] = []
    run = reranking._shared.run

    async def spy(items: Sequence[Tokens], finish: Callable[[FloatArray], Any]) -> list[Any]:
        encoded.append(len(items))
        return await run(items, finish)

    monkeypatch.setattr(reranking._shared, "run", spy)
    second = await reranking.rank("When does the gate open?", [*passages, "A new one."])
    assert encoded == [1, 1]  # the query, and the new passage
    assert second.logits[:3] == first.logits
    assert first.logits[0] == first.logits[2] > first.logits[1]


def test_what_is_remembered_stays_within_its_bytes() -> None:
    vectors = halved(np.ones((10, 5), np.float32))
    memory = PassageVectors(capacity=3 * vectors.nbytes)
    for n in range(3):
        memory.keep((n,), vectors)
    assert memory.get((0,)) is vectors
    memory.keep((3,), vectors)  # drops 1, which was not asked for longest
    assert [memory.get((n,)) is not None for n in range(4)] == [True, False, True, True]
    memory.keep((4,), halved(np.ones((100, 5), np.float32)))  # larger than all there is
    assert memory.get((4,)) is None
    assert memory.get((3,)) is not None


async def test_the_answer_is_ranked_first(reranking: RerankingEngine) -> None:
    passages = [
        "My name is Jean and I live in Paris.",
        "My name is Mark and I live in Berlin.",
        "My name is Giorgio and I live in Rome.",
    ]
    for place, passage in zip(("Paris", "Berlin", "Rome"), passages, strict=True):
        result = await reranking.rank(f"Who lives in {place}?", passages)
        assert best_first(passages, result.logits)[0] == passage


async def test_a_logit_does_not_depend_on_the_other_passages(reranking: RerankingEngine) -> None:
    passages = [f"passage {n} about rivers " + "and lakes " * (n % 9) for n in range(20)]
    together = (await reranking.rank("rivers", passages)).logits
    alone = [(await reranking.rank("rivers", [passage])).logits[0] for passage in passages]
    np.testing.assert_allclose(together, alone, atol=1e-4)


async def test_a_passage_that_repeats_the_query_has_the_highest_logit(
    reranking: RerankingEngine,
) -> None:
    result = await reranking.rank("a red boat", ["a red boat", "a blue boat", "tax law", ""])
    assert best_first(["same", "blue", "tax", ""], result.logits)[:2] == ["same", "blue"]
    assert result.logits[0] > 0, "most likely right"
    assert max(result.logits[2:]) < -3, "most likely wrong"
    assert all(np.isfinite(result.logits))


async def test_more_of_the_query_gives_a_higher_logit(reranking: RerankingEngine) -> None:
    passages = [
        "The river rose by two metres in March.",
        "The river fell in summer.",
        "Bread is baked in an oven.",
    ]
    result = await reranking.rank("When did the river rise by two metres?", passages)
    assert result.logits == sorted(result.logits, reverse=True)
    assert result.logits[0] - result.logits[2] > 2


async def test_codes_and_dates_are_looked_up(reranking: RerankingEngine) -> None:
    for asked, text in (
        ("What does error {} mean?", "Error {} means that the battery is low."),
        ("Which sensor fits the {}?", "The {} takes the sensor with the long cable."),
        ("What happened on {}?", "On {} the gauge stopped sending."),
    ):
        codes = (
            ["14 March 2025", "15 March 2025", "14 April 2025"]
            if "happened" in asked
            else ["RG-5", "RG-7", "DP-5", "E41"]
        )
        passages = [text.format(code) for code in codes]
        for place, code in enumerate(codes):
            logits = (await reranking.rank(asked.format(code), passages)).logits
            assert logits.index(max(logits)) == place, (asked, code, logits)


async def test_equal_passages_have_equal_logits(reranking: RerankingEngine) -> None:
    """Whatever they are batched with, so that they stay in the order of the request."""
    filler = [f"passage {n} about rivers " + "and lakes " * (n % 40) for n in range(30)]
    twice = ["A lake is still water.", *filler[:15], "A lake is still water.", *filler[15:]]
    logits = (await reranking.rank("What is a lake?", twice)).logits
    assert logits[0] == logits[16]
    turned = (await reranking.rank("What is a lake?", twice[::-1])).logits[::-1]
    np.testing.assert_allclose(turned, logits, atol=2e-4)


@pytest.mark.parametrize("query", ["", "?", "the", "what is it", "何ですか", "😀 😀", "Что это?"])
async def test_queries_of_little_content_get_finite_logits(
    reranking: RerankingEngine, query: str
) -> None:
    result = await reranking.rank(
        query, ["Paris is in France.", "", "パリはフランスにある。", "😀"]
    )
    assert all(np.isfinite(result.logits))


async def test_stop_words_do_not_decide(reranking: RerankingEngine) -> None:
    passages = ["It is what it is, and that is what it is for.", "Turbines need water pressure."]
    result = await reranking.rank("What is it that the turbine is for?", passages)
    assert best_first(passages, result.logits)[0] == passages[1]


async def test_other_scripts_are_ranked(reranking: RerankingEngine) -> None:
    passages = ["Берлин стоит на Шпрее.", "Москва стоит на Москве-реке."]
    result = await reranking.rank("Берлин", passages)
    assert result.logits[0] > result.logits[1]


def test_rare_tokens_say_more() -> None:
    names = ["[PAD]", "[UNK]", "!", "7", "the", "of", "river", "##s", "dipper"]
    values = relevance.rarity(names)
    assert values[:3].tolist() == [0, 0, 0]
    assert values[3] == 0.5
    assert values[4] == 0
    assert (np.diff(values[4:]) > 0).all()
    assert values[-1] < 1
    assert relevance.rarity(["<s>", "▁zwei", ","]).tolist() == [0, 1, 0], "no order is known"


def test_the_features_are_what_the_formula_says() -> None:
    generator = np.random.default_rng(1)
    query = generator.normal(size=(4, 3)).astype(np.float32)
    passage = generator.normal(size=(45, 3)).astype(np.float32)
    ready = relevance.asked(query, [0, 1, 2, 0], np.array([0, 3, 1], np.float32))

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    own = passage[1:-1]
    best = [max(cosine(token, other) for other in own) for token in query[1:-1]]
    runs = [own[start : start + 24] for start in (0, 8, 16, 19)]
    expected = [
        0.75 * best[0] + 0.25 * best[1],
        max(cosine(query.mean(0), run.mean(0)) for run in runs),
        cosine(query.mean(0), passage.mean(0)),
        np.log(43 / 128),
    ]
    np.testing.assert_allclose(relevance.features(ready, passage), expected, atol=1e-5)
    weights = [relevance.MAXSIM, relevance.WINDOW, relevance.WHOLE, relevance.LENGTH]
    logit = float(np.dot(weights, expected)) + relevance.BIAS
    assert relevance.logit(ready, passage) == pytest.approx(logit, abs=1e-3)


async def test_query_and_passages_are_limited_each(reranking: RerankingEngine) -> None:
    long = "river " * 600
    for query, passage in ((long, "short"), ("short", long)):
        with pytest.raises(InputTooLong):
            await reranking.rank(query, [passage])
    result = await reranking.rank("river", ["short", long], "END")
    assert result.tokens == 3 + 3 + 512
    result = await reranking.rank(long, ["river", "tax law"], "END")
    assert result.tokens == 512 + 3 + 4
    assert result.logits[0] > result.logits[1]


# --- a user's own models --------------------------------------------------------------------


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows))


@pytest.mark.parametrize("extra", [(), ("token_type_ids",)])
async def test_token_vectors_are_averaged(tmp_path: Path, extra: tuple[str, ...]) -> None:
    tiny_models.write_tokenizer(tmp_path)
    tiny_models.write_model(tmp_path / "model.onnx", "tokens", extra)
    engine = EmbeddingEngine(own(tmp_path, "embedding", tmp_path))
    result = await engine.embed(["one two", "four"])
    rows = tiny_models.table()
    np.testing.assert_allclose(result.vectors[0], unit(rows[[2, 5, 6, 3]].mean(0)), atol=1e-6)
    np.testing.assert_allclose(result.vectors[1], unit(rows[[2, 8, 3]].mean(0)), atol=1e-6)
    assert engine.dimensions == tiny_models.WIDTH
    await engine.close()


async def test_the_model_chooses_its_pooling(tmp_path: Path) -> None:
    tiny_models.write_tokenizer(tmp_path)
    tiny_models.write_model(tmp_path / "model.onnx", "tokens")
    config = tmp_path / "1_Pooling" / "config.json"
    config.parent.mkdir()
    config.write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}')
    engine = EmbeddingEngine(own(tmp_path, "embedding", tmp_path))
    vector = (await engine.embed(["one two"])).vectors[0]
    np.testing.assert_allclose(vector, unit(tiny_models.table()[2]), atol=1e-6)
    await engine.close()
    config.write_text('{"pooling_mode_weightedmean_tokens": true}')
    with pytest.raises(WeightsError, match="weightedmean"):
        EmbeddingEngine(own(tmp_path, "embedding", tmp_path))


async def test_a_model_with_its_own_sentence_vector(tmp_path: Path) -> None:
    tiny_models.write_tokenizer(tmp_path)
    tiny_models.write_model(tmp_path / "onnx" / "model.onnx", "sentence")
    engine = EmbeddingEngine(own(tmp_path, "embedding", tmp_path))
    vectors = (await engine.embed(["one", "two three"])).vectors
    np.testing.assert_allclose(vectors, [unit(tiny_models.table()[2])] * 2, atol=1e-6)
    await engine.close()


async def test_a_cross_encoder_reads_pairs(tmp_path: Path) -> None:
    """The tiny one adds up the ids of the second text and of the [SEP] after it."""
    tiny_models.write_tokenizer(tmp_path)
    tiny_models.write_model(tmp_path / "model.onnx", "score")
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 8}')
    engine = RerankingEngine(own(tmp_path, "reranking", tmp_path))
    result = await engine.rank("four four", ["one", "two three", ""])
    assert result.logits == [5 + 3, 6 + 7 + 3, 3]
    assert result.tokens == 6 + 7 + 5
    with pytest.raises(InputTooLong) as caught:
        await engine.rank("four four", ["one", "one two three four"])
    assert (caught.value.length, caught.value.limit) == (9, 8)
    cut = await engine.rank("four four", ["one two three four"], "END")
    assert cut.logits == [5 + 6 + 7 + 3]
    cut = await engine.rank("four four", ["one two three four"], "START")
    assert cut.logits == [6 + 7 + 8 + 3]
    cut = await engine.rank("four " * 20, ["one"], "END")
    assert (cut.logits, cut.tokens) == ([3], 8)
    await engine.close()


async def test_own_token_vectors_can_rank(tmp_path: Path) -> None:
    tiny_models.write_tokenizer(tmp_path)
    tiny_models.write_model(tmp_path / "model.onnx", "tokens")
    engine = RerankingEngine(own(tmp_path, "reranking", tmp_path))
    result = await engine.rank("four", ["zero", "four"])
    assert result.logits[1] > result.logits[0]
    await engine.close()


def test_models_that_cannot_be_used_are_refused_in_a_sentence(tmp_path: Path) -> None:
    tiny_models.write_tokenizer(tmp_path)
    tiny_models.write_model(tmp_path / "model.onnx", "tokens", ["pixel_values"])
    with pytest.raises(WeightsError, match="pixel_values"):
        EmbeddingEngine(own(tmp_path, "embedding", tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match="no tokenizer that can be read"):
        EmbeddingEngine(own(tmp_path, "embedding", tmp_path))
    with pytest.raises(WeightsError, match="does not embed"):
        EmbeddingEngine(registered("chat"))
    with pytest.raises(WeightsError, match="does not rank"):
        RerankingEngine(registered("chat"))


def test_other_safetensors_than_bert_are_refused(tmp_path: Path) -> None:
    folder = registered("embedding").folder
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(WeightsError, match=r"missing|no safetensors"):
        onnx_bert.build(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(WeightsError, match="no safetensors file"):
        onnx_bert.build(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(WeightsError, match="gpt2"):
        onnx_bert.build(tmp_path)


async def test_engines_over_the_same_files_close_apart() -> None:
    first = EmbeddingEngine(registered("embedding"))
    second = RerankingEngine(registered("reranking"))
    await first.close()
    assert (await second.rank("a", ["b"])).tokens == 6
    await second.close()
    with pytest.raises(BatcherClosed):
        await second.rank("a", ["b"])


# --- batching -------------------------------------------------------------------------------


class Worker:
    """Computes squares, notes its batches, and can be held up."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.started = threading.Event()

    def __call__(self, batch: list[int]) -> list[int]:
        self.batches.append(batch)
        self.started.set()
        assert self.go.wait(10)
        if 13 in batch:
            raise ValueError("thirteen")
        return [item * item for item in batch]

    async def held(self) -> None:
        """Wait until a batch is in the worker."""
        await asyncio.to_thread(self.started.wait, 10)


@pytest.fixture
def worker() -> Worker:
    return Worker()


def constant(item: int) -> int:
    return 10


async def test_results_come_in_the_order_of_the_items(worker: Worker) -> None:
    batcher: Batcher[int, int] = Batcher(worker, lambda item: item, budget=20)
    worker.go.set()
    assert await batcher.submit([3, 11, 1, 8, 2]) == [9, 121, 1, 64, 4]
    for batch in worker.batches:
        assert len(batch) * max(batch) <= 20
        assert min(batch) >= max(batch) / 2
    assert await batcher.submit([]) == []
    assert await batcher.submit([500]) == [250_000]
    await batcher.close()


async def test_what_comes_in_while_a_batch_runs_shares_the_next(worker: Worker) -> None:
    batcher = Batcher(worker, constant, budget=80)
    first = asyncio.create_task(batcher.submit([0]))
    await worker.held()
    others = [asyncio.create_task(batcher.submit([n])) for n in range(1, 9)]
    await asyncio.sleep(0)
    worker.go.set()
    assert await first == [0]
    assert await asyncio.gather(*others) == [[n * n] for n in range(1, 9)]
    assert [len(batch) for batch in worker.batches] == [1, 8]
    await batcher.close()


async def test_a_large_request_does_not_starve_a_small_one(worker: Worker) -> None:
    batcher = Batcher(worker, constant, budget=40)
    large = asyncio.create_task(batcher.submit(list(range(100, 500))))
    await worker.held()
    small = asyncio.create_task(batcher.submit([1, 2]))
    await asyncio.sleep(0)
    worker.go.set()
    assert await small == [1, 4]
    assert {1, 2} <= {item for batch in worker.batches[:3] for item in batch}
    assert len(await large) == 400
    await batcher.close()


async def test_items_of_another_size_get_their_turn(worker: Worker) -> None:
    batcher: Batcher[int, int] = Batcher(worker, lambda item: item, budget=200)
    large = asyncio.create_task(batcher.submit([100] * 50))
    await worker.held()
    small = asyncio.create_task(batcher.submit([1]))
    await asyncio.sleep(0)
    worker.go.set()
    assert await small == [1]
    assert [1] in worker.batches[:3]
    await large
    await batcher.close()


async def test_a_caller_that_goes_away_stops_costing(worker: Worker) -> None:
    batcher = Batcher(worker, constant, budget=40)
    gone = asyncio.create_task(batcher.submit(list(range(400))))
    stays = asyncio.create_task(batcher.submit([1000]))
    await worker.held()
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    worker.go.set()
    assert await stays == [1_000_000]
    assert await batcher.submit([5]) == [25]
    ran = [item for batch in worker.batches for item in batch if item < 400 and item != 5]
    assert len(ran) <= 4
    await batcher.close()


async def test_an_error_reaches_the_callers_in_the_batch_only(worker: Worker) -> None:
    batcher = Batcher(worker, constant, budget=10)
    worker.go.set()
    good, bad = await asyncio.gather(
        batcher.submit([1, 2]), batcher.submit([13, 14]), return_exceptions=True
    )
    assert good == [1, 4]
    assert isinstance(bad, ValueError)
    assert await batcher.submit([3]) == [9]
    await batcher.close()


async def test_closing_fails_what_waits_and_finishes_what_runs(worker: Worker) -> None:
    batcher = Batcher(worker, constant, budget=10)
    running = asyncio.create_task(batcher.submit([1]))
    await worker.held()
    waiting = asyncio.create_task(batcher.submit([2]))
    await asyncio.sleep(0)
    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0)
    worker.go.set()
    await closing
    assert await running == [1]
    with pytest.raises(BatcherClosed):
        await waiting
    with pytest.raises(BatcherClosed):
        await batcher.submit([3])
    await batcher.close()
