"""Bytes a vector, and what fewer bytes cost."""

import numpy as np
import pytest

from capacity import sizing
from nim_cookbook.errors import DataError


def unit_vectors(n, dimensions, seed):
    rows = np.random.default_rng(seed).normal(size=(n, dimensions)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def vectors():
    return unit_vectors(300, 64, seed=1)


@pytest.fixture(scope="module")
def queries():
    return unit_vectors(40, 64, seed=2)


@pytest.mark.parametrize(
    ("encoding", "expected"), [("float32", 1536), ("float16", 768), ("int8", 384), ("binary", 48)]
)
def test_bytes_of_one_vector(encoding, expected):
    assert sizing.bytes_per_vector(384, encoding) == expected
    assert sizing.bytes_per_vector(9, "binary") == 2  # a started byte counts


def test_a_link_takes_as_many_bits_as_a_place_needs():
    assert sizing.graph_bytes(1024) == 2 * 16 * 10 / 8
    assert sizing.graph_bytes(1025) == 2 * 16 * 11 / 8
    assert sizing.graph_bytes(1) == 2 * 16  # at least a byte
    assert sizing.graph_bytes(1024, m=32) == 2 * sizing.graph_bytes(1024)


def test_memory_counts_numbers_links_and_ids():
    assert sizing.memory(1000, 384) == 1000 * (1536 + 40 + 40)
    assert sizing.memory(1000, 384, "int8") == 1000 * (384 + 4 + 40 + 40)


def test_quantised_vectors_are_filled_up_as_in_qdrant():
    rest = 40 + 40
    assert sizing.memory(1000, 200, "int8") == 1000 * (208 + 4 + rest)
    assert sizing.memory(1000, 200, "binary") == 1000 * (32 + rest)


def test_disk_counts_the_full_vectors_beside_the_short_ones():
    short = 384 + 4
    assert sizing.disk(1000, 384, "int8", 900) - sizing.disk(1000, 384, "float32", 900) == (
        1000 * short
    )
    assert sizing.disk(1000, 384, "float16", 900) < sizing.disk(1000, 384, "float32", 900)
    blocks = sizing.disk(1, 384, "float32", 129) - sizing.disk(1, 384, "float32", 128)
    assert blocks == 128  # a started block counts


def test_the_rule_of_thumb_gives_the_example_of_qdrants_documentation():
    vectors = 1_000_000 * sizing.bytes_per_vector(1024)
    assert vectors * sizing.RULE_OF_THUMB == 6_144_000_000


def test_the_comparison_has_a_row_an_encoding(vectors, queries):
    rows = sizing.compare(vectors, queries, k=5, oversampling=(1, 3, 60))
    assert [row["bytes a vector"] for row in rows] == [256, 128, 64, 64, 8]
    assert [row["times smaller"] for row in rows] == [1, 2, 4, 4, 32]
    assert rows[0]["recall@5"] == rows[0]["rescored, 3 x 5"] == "1.000"
    assert all(float(row["rescored, 60 x 5"]) == 1 for row in rows)  # everything is scored again
    assert 0.2 < float(rows[-1]["recall@5"]) < float(rows[-1]["rescored, 3 x 5"]) < 1
    assert float(rows[2]["recall@5"]) > float(rows[-1]["recall@5"])


def test_recall_by_hand():
    """One range for both dimensions rounds the small one away."""
    kept = np.float32([[100, 0.1], [-100, -0.2], [50, -0.3], [50, 0.3]])
    rows = sizing.compare(kept, np.float32([[0, 1]]), k=2, oversampling=(1, 2))
    assert {row["encoding"]: row["recall@2"] for row in rows} == {
        "float32": "1.000", "float16": "1.000", "int8, one range": "0.500",
        "int8, a range a dimension": "1.000", "binary": "0.500",
    }  # fmt: skip
    assert rows[2]["rescored, 2 x 2"] == "1.000"


def test_impossible_vectors_are_told():
    for dimensions, encoding in ((384, "int4"), (0, "int8")):
        with pytest.raises(DataError, match="impossible"):
            sizing.memory(5, dimensions, encoding)
