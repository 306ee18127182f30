"""Sparse vectors by BM25, for keyword search inside a vector database.

BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", Foundations
and Trends in Information Retrieval, 2009) is a sum over the words that a question and a chunk
share, so it is the dot product of two sparse vectors. The chunk's vector holds a weight for each
of its words, by how often it occurs and how long the chunk is; the question's says how often it
asks for each word; and how rare a word is, which changes with every chunk that comes or goes, is
left to the database (Qdrant's modifier `idf`). Words, stop words and stems are those of bm25s and
PyStemmer, which download nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import bm25s
import Stemmer
from haystack import Document
from haystack.dataclasses import SparseEmbedding

from nim_cookbook.errors import DataError


@dataclass(frozen=True, slots=True)
class BM25Encoder:
    """Makes the sparse vectors of chunks and questions, in BM25's variant of Lucene and bm25s.

    A word's position in the vector is a 32-bit hash of its stem. So there is no vocabulary to keep,
    and chunks with new words can be added at any time. Among n different stems the chance that
    any two share a position is about n² / 2³³: 0.3 % for 5,000 stems, 69 % for 100,000; and then
    two words of the 100,000 count as one, which hardly changes a ranking.

    Attributes:
        average_length: Words of an average chunk, stop words left out. It is a setting like the
            other two: fix it once (`average_length`), because all chunks' weights rest on it.
        k1: How soon more of the same word stops to count.
        b: How much long chunks are marked down, 0 to 1.
    """

    average_length: float
    k1: float = 1.5
    b: float = 0.75

    def chunk(self, text: str) -> SparseEmbedding:
        """Return the vector of a chunk: tf / (tf + k1 (1 - b + b length / average_length)).

        A text without words has an empty vector.
        """
        words = stems(text)
        norm = self.k1 * (1 - self.b + self.b * len(words) / self.average_length)
        return _vector({word: count / (count + norm) for word, count in Counter(words).items()})

    def question(self, text: str) -> SparseEmbedding:
        """Return the vector of a question: how often each word occurs."""
        return _vector(dict(Counter(stems(text))))

    def encode(self, documents: Iterable[Document]) -> list[Document]:
        """Return documents with the sparse vectors of their contents."""
        return [replace(d, sparse_embedding=self.chunk(d.content or "")) for d in documents]


def average_length(texts: Sequence[str]) -> float:
    """Return how many words an average text has, stop words left out; a sample will do.

    Raises:
        DataError: There are no words.
    """
    lengths = [len(stems(text)) for text in texts]
    if not sum(lengths):
        raise DataError("The average length of texts without words is unknown: give other texts.")
    return sum(lengths) / len(lengths)


def stems(text: str) -> list[str]:
    """Return the stemmed words of an English text in their order, without stop words."""
    # A stemmer of its own for each call: one object must not be used by two threads at once.
    (words,) = bm25s.tokenize(
        [text],
        stopwords="en",
        stemmer=Stemmer.Stemmer("english"),
        return_ids=False,
        show_progress=False,
    )
    return [str(word) for word in words]


def position(word: str) -> int:
    """Return a word's place in the vector, 0 to 2³² - 1; the same on every machine."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "big")


def _vector(weights: dict[str, float]) -> SparseEmbedding:
    places: Counter[int] = Counter()
    for word, weight in weights.items():
        places[position(word)] += weight  # type: ignore[assignment]  # Counter takes any number
    ordered = sorted(places)
    return SparseEmbedding(ordered, [float(places[place]) for place in ordered])
