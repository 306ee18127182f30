"""Sparse vectors by BM25, against bm25s and inside embedded Qdrant."""

import bm25s
import numpy as np
import pytest
import Stemmer
from haystack import Document
from haystack_integrations.components.retrievers.qdrant import QdrantSparseEmbeddingRetriever
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

from nim_cookbook import sparse
from nim_cookbook.errors import DataError

TEXTS = [
    "The river gauge measures the level of the river, and the river rises.",
    "Gauges are calibrated each spring.",
    "Spare part SP-3318 fits the gauge MT-12 and no other instrument of the company at all.",
    "The canteen opens at noon.",
    "Noon is when the river is lowest; the canteen is empty, the gauges are silent.",
]
POSITION = 1501277805  # of "gaug"; vectors in databases rest on it
QUESTIONS = ["Which gauge measures rivers?", "SP-3318", "When does the canteen open, at noon?"]


@pytest.fixture
def encoder():
    return sparse.BM25Encoder(sparse.average_length(TEXTS))


def reference(question):
    """Scores of bm25s for all texts, shape (n,)."""
    stemmer = Stemmer.Stemmer("english")
    index = bm25s.BM25()
    index.index(
        bm25s.tokenize(TEXTS, stopwords="en", stemmer=stemmer, show_progress=False),
        show_progress=False,
    )
    words = bm25s.tokenize(
        question, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
    )[0]
    return index.get_scores(words)


def test_stems():
    assert sparse.stems("The gauges are MEASURING: a gauge, SP-3318.") == [
        "gaug", "measur", "gaug", "sp", "3318",
    ]  # fmt: skip
    assert sparse.stems("") == sparse.stems("the and of") == []


def test_positions_are_the_same_everywhere():
    assert sparse.position("gaug") == POSITION
    assert sparse.position("gaug") != sparse.position("river")


def test_weights_by_hand():
    vector = sparse.BM25Encoder(4.0, k1=2.0, b=0.5).chunk("river river gauge")
    norm = 2.0 * (0.5 + 0.5 * 3 / 4)
    weights = dict(zip(vector.indices, vector.values, strict=True))
    assert weights == pytest.approx(
        {sparse.position("river"): 2 / (2 + norm), sparse.position("gaug"): 1 / (1 + norm)}
    )
    assert vector.indices == sorted(vector.indices)


def test_question_counts_words(encoder):
    vector = encoder.question("the river, the gauge, the river")
    assert dict(zip(vector.indices, vector.values, strict=True)) == {
        sparse.position("river"): 2.0,
        sparse.position("gaug"): 1.0,
    }


def test_no_words(encoder):
    assert encoder.chunk("the").indices == encoder.question("").indices == []


@pytest.mark.parametrize("question", QUESTIONS)
def test_embedded_qdrant_scores_as_bm25s_does(encoder, question):
    store = QdrantDocumentStore(
        ":memory:", embedding_dim=2, use_sparse_embeddings=True, sparse_idf=True, progress_bar=False
    )
    documents = [
        Document(id=str(n), content=text, embedding=[1.0, 0.0]) for n, text in enumerate(TEXTS)
    ]
    store.write_documents(encoder.encode(documents))
    found = QdrantSparseEmbeddingRetriever(store, top_k=5).run(encoder.question(question))
    scores = np.zeros(len(TEXTS))
    for document in found["documents"]:
        scores[int(document.id)] = document.score
    assert scores.max() > 0
    np.testing.assert_allclose(scores, reference(question), rtol=1e-4, atol=1e-6)


def test_encode_keeps_the_documents(encoder):
    before = Document(id="x", content=TEXTS[0], meta={"title": "Gauges"}, embedding=[1.0])
    (after,) = encoder.encode([before])
    assert (after.id, after.content, after.meta, after.embedding) == (
        before.id, before.content, before.meta, before.embedding,
    )  # fmt: skip
    assert after.sparse_embedding == encoder.chunk(TEXTS[0])
    assert before.sparse_embedding is None
    assert encoder.encode([Document()])[0].sparse_embedding.indices == []


def test_average_length():
    assert sparse.average_length(["river gauge", "the gauge of a river in spring rain"]) == 3
    for texts in ([], ["", "the"]):
        with pytest.raises(DataError, match="without words"):
            sparse.average_length(texts)
