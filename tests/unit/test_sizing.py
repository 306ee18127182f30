"""Bytes a vector, and what fewer bytes cost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_a_started_byte_counts():
    assert sizing.bytes_per_vector(9, "binary") == 2


@pytest.mark.parametrize("encoding", sizing.ENCODINGS)
def test_the_bytes_computed_are_those_of_the_array(vectors, encoding):
    kept = sizing.quantise(vectors, encoding)
    assert kept.bytes_per_vector == sizing.bytes_per_vector(vectors.shape[1], encoding)


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


@given(
    limit=st.floats(1, 1e12),
    dimensions=st.integers(1, 4096),
    encoding=st.sampled_from(sizing.ENCODINGS),
)
def test_the_most_passages_fit_and_one_more_does_not(limit, dimensions, encoding):
    most = sizing.most_passages(limit, dimensions, encoding)
    assert most == 0 or sizing.memory(most, dimensions, encoding) <= limit
    assert sizing.memory(most + 1, dimensions, encoding) > limit


def test_the_rule_of_thumb_gives_the_example_of_qdrants_documentation():
    vectors = 1_000_000 * sizing.bytes_per_vector(1024)
    assert vectors * sizing.RULE_OF_THUMB == 6_144_000_000


def test_float32_finds_what_is_closest(vectors, queries):
    found = sizing.search(queries, sizing.quantise(vectors, "float32"), 5)
    for places, query in zip(found, queries, strict=True):
        cosines = vectors @ query
        assert list(places) == sorted(range(300), key=lambda n: -cosines[n])[:5]


def test_bits_are_compared_by_how_many_agree():
    vectors = np.float32([[1, 1, 1, 1], [1, 1, 1, -1], [-1, -1, -1, -1]])
    kept = sizing.quantise(vectors, "binary")
    assert sizing.search(np.float32([[-1, -1, 1, -1]]), kept, 3).tolist() == [[2, 1, 0]]
    assert kept.scores(np.float32([[-1, -1, 1, -1]])).tolist() == [[-3, -2, -1]]


def test_bits_of_many_queries_are_those_of_each_alone(vectors):
    many = unit_vectors(sizing._BLOCK // (300 * 8) + 5, 64, seed=3)  # more than one block
    kept = sizing.quantise(vectors, "binary")
    together = kept.scores(many)
    assert together.shape == (len(many), 300)
    assert (together[-1] == kept.scores(many[-1:])).all()


def test_int8_decodes_to_within_half_a_level(vectors):
    kept = sizing.quantise(vectors, "int8", quantile=1)
    decoded = kept.scores(np.eye(64, dtype=np.float32)).T
    level = (vectors.max() - vectors.min()) / 127
    assert kept.codes.min() == 0
    assert kept.codes.max() == 127
    assert np.abs(decoded - vectors).max() <= level / 2 + 1e-6


def test_values_outside_the_quantile_are_cut():
    values = np.zeros((1000, 2), np.float32)
    values[:, 0] = np.linspace(-1, 1, 1000)
    values[0, 1] = 100
    kept = sizing.quantise(values, "int8", quantile=0.99)
    assert kept.high.item() < 2
    assert kept.codes[0, 1] == 127


def test_a_range_for_each_dimension_keeps_small_dimensions():
    values = np.float32([[100, 0.01], [-100, 0.02], [50, 0.03]])
    one = sizing.quantise(values, "int8", quantile=1)
    each = sizing.quantise(values, "int8", quantile=1, per_dimension=True)
    assert len(set(one.codes[:, 1])) == 1
    assert len(set(each.codes[:, 1])) == 3


def test_a_dimension_in_which_nothing_varies_does_no_harm():
    values = np.float32([[1, 5], [2, 5]])
    kept = sizing.quantise(values, "int8", quantile=1, per_dimension=True)
    assert kept.scores(np.float32([[1, 0], [0, 1]])).tolist() == [[1, 2], [5, 5]]


def test_rescoring_finds_more_and_everything_in_the_end(vectors, queries):
    exact = sizing.search(queries, sizing.quantise(vectors, "float32"), 10)
    bits = sizing.quantise(vectors, "binary")
    recalls = [
        sizing.recall(sizing.search(queries, bits, 10, full=vectors, oversampling=f), exact)
        for f in (1, 3, 30)
    ]
    assert recalls[0] < recalls[1] < recalls[2] == 1
    whole = sizing.search(queries, bits, 10, full=vectors, oversampling=30)
    assert (whole == exact).all()


def test_recall_counts_places_whatever_their_order():
    wanted = np.array([[0, 1], [2, 3]])
    assert sizing.recall(np.array([[1, 0], [2, 9]]), wanted) == 0.75


@given(
    encoding=st.sampled_from(sizing.ENCODINGS),
    k=st.integers(1, 40),
    factor=st.floats(1, 5),
    seed=st.integers(0, 100),
)
def test_a_search_returns_different_vectors(encoding, k, factor, seed):
    kept, asked = unit_vectors(30, 12, seed), unit_vectors(3, 12, seed + 1)
    found = sizing.search(asked, sizing.quantise(kept, encoding), k, full=kept, oversampling=factor)
    assert found.shape == (3, min(k, 30))
    assert all(len(set(places)) == len(places) for places in found.tolist())


def test_the_comparison_has_a_row_an_encoding(vectors, queries):
    rows = sizing.compare(vectors, queries, k=5, oversampling=(1, 3))
    assert [row["bytes a vector"] for row in rows] == [256, 128, 64, 64, 8]
    assert [row["times smaller"] for row in rows] == [1, 2, 4, 4, 32]
    assert rows[0]["recall@5"] == rows[0]["rescored, 3 x 5"] == "1.000"
    assert float(rows[-1]["recall@5"]) < float(rows[-1]["rescored, 3 x 5"])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda v: sizing.bytes_per_vector(384, "int4"), "'int4'"),
        (lambda v: sizing.bytes_per_vector(0), "0 numbers"),
        (lambda v: sizing.graph_bytes(0), "0 vectors"),
        (lambda v: sizing.graph_bytes(5, m=0), "m=0"),
        (lambda v: sizing.memory(5, 384, "int4"), "'int4'"),
        (lambda v: sizing.disk(5, 384, "int8", -1), "-1 bytes"),
        (lambda v: sizing.quantise(v, "int4"), "'int4'"),
        (lambda v: sizing.quantise(v[:0], "int8"), "no vectors"),
        (lambda v: sizing.quantise(v, "int8", quantile=0), "quantile is 0"),
        (lambda v: sizing.search(v, sizing.quantise(v, "int8"), 0), "k is 0"),
        (lambda v: sizing.search(v, sizing.quantise(v, "int8"), oversampling=0.5), "0.5"),
        (lambda v: sizing.recall(np.zeros((1, 2), int), np.zeros((2, 2), int)), "same queries"),
    ],
)
def test_mistakes_are_told(vectors, wrong, told):
    with pytest.raises(DataError, match=told):
        wrong(vectors)
