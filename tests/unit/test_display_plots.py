"""Pictures of splitting, of vectors on a plane, and of memory."""

import io

import numpy as np
import pytest
from PIL import Image

from capacity import plots as capacity_plots
from capacity.load import Load
from capacity.plan import published_throughput
from nim_cookbook import pictures, plots
from nim_cookbook.errors import DataError

WEIGHTS = "Tiny, Q4_1 (local stand-in)"
TEXT = " ".join(f"word{n}" for n in range(100))
SPLITS = [(50, 0), (50, 10)]


def colours(picture):
    with Image.open(io.BytesIO(picture.png)) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(1_000_000)}


def near(wanted, found):
    """Whether a colour is there, give or take the palette's rounding."""
    red, green, blue = bytes.fromhex(wanted.removeprefix("#"))
    return any(abs(r - red) + abs(g - green) + abs(b - blue) < 24 for r, g, b in found)


def test_a_quote_on_a_border_is_cut_unless_passages_overlap():
    picture = plots.split_picture(TEXT, SPLITS, "Word48, word49 - WORD50 word51")
    assert "50 words with 0 shared: 2 passages, quote cut (at most 50% of it" in picture.alt
    assert "50 words with 10 shared: 3 passages, quote whole." in picture.alt


def test_a_quote_within_the_overlap_is_whole_twice():
    picture = plots.split_picture(TEXT, SPLITS, "word42 word43")
    assert "50 words with 10 shared: 3 passages, quote whole, 2 times." in picture.alt


def test_cut_and_whole_passages_differ_in_colour():
    cut = colours(plots.split_picture(TEXT, [(50, 0)], "word49 word50"))
    whole = colours(plots.split_picture(TEXT, [(50, 0)], "word10 word11"))
    assert near("#D55E00", cut)
    assert not near("#0072B2", cut)
    assert near("#0072B2", whole)
    assert not near("#D55E00", whole)


def test_a_quote_is_found_across_line_breaks():
    text = "one two three\nfour five six"
    assert "quote whole" in plots.split_picture(text, [(50, 0)], "three four").alt


@pytest.mark.parametrize("quote", ["word1 word3", "", "..."])
def test_a_quote_that_is_not_there_is_told(quote):
    with pytest.raises(DataError, match="does not hold the quote"):
        plots.split_picture(TEXT, SPLITS, quote)


@pytest.fixture
def clouds():
    """Two clouds that differ along one axis; the plane must show it."""
    noise = np.random.default_rng(1).normal(scale=0.05, size=(40, 8))
    noise[:20, 0] += 1
    noise[20:, 0] -= 1
    return noise, ["policy"] * 20 + ["report"] * 20


def test_the_map_says_which_passages_are_near_and_what_it_keeps(clouds):
    vectors, kinds = clouds
    picture = plots.passage_map(vectors, kinds, vectors[0], weights=WEIGHTS, nearest=3)
    assert WEIGHTS in picture.alt
    assert "40 passages of the kinds policy, report" in picture.alt
    assert "nearest to the question: policy, policy, policy" in picture.alt
    spread = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False) ** 2
    assert f"keeps {spread[:2].sum() / spread.sum():.0%} of the variance" in picture.alt


def test_near_is_decided_by_the_whole_vectors():
    # The third axis varies least and is not on the plane, but decides what is near.
    vectors = np.array([[9, 0, 0], [-9, 0, 0], [0, 5, 0], [0, -5, 0], [0, 0, 3], [0.1, 0, -3]])
    kinds = ["a", "a", "b", "b", "above", "below"]
    picture = plots.passage_map(vectors, kinds, [0, 0, -3], weights=WEIGHTS, nearest=1)
    assert "nearest to the question: below" in picture.alt


def test_memory_is_drawn_for_each_width_and_told():
    picture = capacity_plots.memory_plot(1000, (384, 1024), weights=WEIGHTS)
    assert WEIGHTS in picture.alt
    assert "1,000 passages, 1.62 MB" in picture.alt  # 1000 * (4 * 384 + 40 + 40) bytes
    assert "384 numbers: float32 9,569,377" in picture.alt  # 16e9 / (4 * 384 + 96 + 40)
    assert "1024 numbers: float32 3,787,878" in picture.alt  # 16e9 / (4 * 1024 + 88 + 40)


def test_longer_vectors_are_drawn_and_told():
    picture = capacity_plots.dimension_plot(1000, (1024, 384))
    assert "float32: 384 numbers 1.62 MB, 1024 numbers 4.18 MB" in picture.alt
    assert "binary: 384 numbers" in picture.alt


def test_latency_against_cost_is_told_for_every_point():
    (published,) = published_throughput()
    picture = capacity_plots.latency_cost_plot(published, 3.6)
    assert picture.alt.count("at once:") == len(published.points)
    # 2 GPUs at 3.6 an hour, 51.67 tokens a second; 0.40677 s and 499 tokens of 18.58 ms.
    assert "1 request at once: first token after 0.4 s, whole answer after 9.7 s" in picture.alt
    assert "38.71 USD" in picture.alt


def test_a_load_is_told_in_words():
    run = [Load("search", n, (0.1, 0.2, 0.3) * 4, 0, 2.0, 2.4) for n in (1, 8)]
    picture = capacity_plots.load_plot({"one process": run}, weights=WEIGHTS, goal=0.5)
    assert "one process, by number of clients: 1: 6.0/s, median 200 ms" in picture.alt
    assert "8: 6.0/s" in picture.alt
    assert "The goal for 95 % is 500 ms" in picture.alt
    assert len(picture.png) <= pictures.MAX_PNG_BYTES


def test_pictures_are_small_and_have_a_width(clouds):
    vectors, kinds = clouds
    drawn = [
        plots.split_picture(TEXT, SPLITS, "word1"),
        plots.passage_map(vectors, kinds, vectors[0], weights=WEIGHTS),
        capacity_plots.memory_plot(1000, (384, 1024, 2048), weights=WEIGHTS),
        capacity_plots.dimension_plot(1_000_000, (384, 1024, 2048, 4096)),
        capacity_plots.latency_cost_plot(published_throughput()[0], 6.88),
    ]
    for picture in drawn:
        assert len(picture.png) < pictures.MAX_PNG_BYTES
        assert 700 <= picture.width <= 1000
        assert repr(picture) == picture.alt
