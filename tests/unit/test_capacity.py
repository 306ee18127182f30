"""From documents and queries to memory, nodes, GPUs and money; and the figures behind them."""

from __future__ import annotations

import dataclasses
import math
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capacity import plan as capacity
from capacity import prices, sizing
from nim_cookbook import data
from nim_cookbook.errors import DataError

PRICES = capacity.Prices.load()
RATES = capacity.Rates(service=10, embedding=100, reranking=10, chat=800)
PACKAGED = data.data_path("prices/prices.toml").read_text("utf-8")


def work(**changes):
    return capacity.Workload(**{"documents": 1000, "tokens_per_document": 1000} | changes)


workloads = st.builds(
    capacity.Workload,
    documents=st.integers(1, 10**7),
    tokens_per_document=st.integers(1, 10**5),
    chunk_tokens=st.integers(64, 1024),
    overlap_tokens=st.integers(0, 63),
    dimensions=st.integers(8, 4096),
    encoding=st.sampled_from(sizing.ENCODINGS),
    copies=st.integers(1, 5),
    queries_per_second=st.floats(0.01, 1000),
    answer_tokens=st.integers(1, 2000),
    spares=st.integers(0, 2),
)


@pytest.mark.parametrize(
    ("tokens", "chunk", "overlap", "expected"),
    [(1, 256, 32, 1), (256, 256, 32, 1), (257, 256, 32, 2), (480, 256, 32, 2), (481, 256, 32, 3)],
)
def test_chunks_of_one_document(tokens, chunk, overlap, expected):
    assert capacity.chunks_of(tokens, chunk, overlap) == expected


@given(st.integers(1, 3000), st.integers(1, 300), st.data())
def test_chunks_cover_the_document_and_no_more(tokens, chunk, drawn):
    overlap = drawn.draw(st.integers(0, chunk - 1))
    starts = [0]
    while starts[-1] + chunk < tokens:  # as a splitter goes on
        starts.append(starts[-1] + chunk - overlap)
    assert capacity.chunks_of(tokens, chunk, overlap) == len(starts)


def test_the_store_is_what_sizing_computes():
    size = capacity.store_size(work(copies=3, encoding="int8", dimensions=1024))
    assert size.chunks == 1000 * 5
    assert size.memory == sizing.memory(5000, 1024, "int8")
    assert size.disk == sizing.disk(5000, 1024, "int8", 256 * capacity.BYTES_PER_TOKEN)
    assert (size.memory_all, size.disk_all) == (3 * size.memory, 3 * size.disk)
    assert [row["copies"] for row in size.rows()] == [1, 3]


def test_a_plan_worked_out_by_hand():
    plan = capacity.plan(work(queries_per_second=14, answer_tokens=100), RATES, PRICES)
    assert plan.replicas == 2  # 14 / (10 * 0.7)
    assert plan.service_nodes == plan.store_nodes == 1
    assert plan.gpus == {"embedding": 1, "reranking": 2, "chat": 3}  # 1400 / (800 * 0.7) = 2.5
    costs = {cost.part: cost.month for cost in plan.costs}
    assert costs["chat NIM"] == pytest.approx(PRICES.gpu("H100").hour * 730)  # of eight GPUs
    assert plan.month_of("chat NIM", "embedding NIM") == costs["chat NIM"] + costs["embedding NIM"]
    assert costs["embedding NIM"] == pytest.approx(PRICES.gpu("L4").hour * 730)
    assert costs["NVIDIA AI Enterprise"] == pytest.approx(6 * PRICES.licence.gpu_year / 12)
    assert costs["vector store"] == pytest.approx(PRICES.node("r7i.xlarge").hour * 730)
    assert plan.rows()[-1] == {
        "part": "together",
        "quantity": "",
        "USD a month": f"{plan.month:,.0f}",
    }


def test_a_role_that_others_run_costs_nothing_here():
    rates = capacity.Rates(service=10)
    plan = capacity.plan(work(), rates, PRICES)
    assert set(plan.gpus.values()) == {0}
    assert [cost.part for cost in plan.costs] == ["vector store", "its disks", "query service"]


def test_spares_and_copies_are_the_price_of_availability():
    single = capacity.plan(work(), RATES, PRICES)
    spared = capacity.plan(work(copies=2, spares=1), RATES, PRICES)
    assert spared.replicas == single.replicas + 1
    assert (single.store_nodes, spared.store_nodes) == (1, 2)  # copies are on different nodes
    assert (single.service_nodes, spared.service_nodes) == (1, 2)
    assert all(spared.gpus[role] == single.gpus[role] + 1 for role in capacity.GPUS)


def test_a_model_on_several_gpus_comes_and_fails_as_a_whole():
    rates = dataclasses.replace(RATES, chat_gpus=2)
    plan = capacity.plan(work(queries_per_second=3, answer_tokens=200, spares=1), rates, PRICES)
    assert plan.gpus["chat"] == 2 * (2 + 1)  # 600 / 560, and a spare


def test_a_machine_is_paid_for_whole(tmp_path):
    file = tmp_path / "prices.toml"
    eight = PACKAGED.replace('machine = "p5.4xlarge"\ngpus = 1', 'machine = "big"\ngpus = 8')
    file.write_text(eight, encoding="utf-8")
    plan = capacity.plan(work(), RATES, capacity.Prices.load(file))
    costs = {cost.part: cost.month for cost in plan.costs}
    assert plan.gpus["chat"] == 1
    assert costs["chat NIM"] == pytest.approx(PRICES.gpu("H100").hour * 730)


@given(workloads)
def test_the_parts_add_up(workload):
    plan = capacity.plan(workload, RATES, PRICES)
    assert plan.month == pytest.approx(math.fsum(cost.month for cost in plan.costs))
    assert all(cost.month > 0 for cost in plan.costs)
    assert plan.store_nodes >= workload.copies


@given(workloads, st.data())
def test_more_never_needs_less(workload, drawn):
    name = drawn.draw(
        st.sampled_from(["documents", "copies", "queries_per_second", "answer_tokens", "spares"])
    )
    more = dataclasses.replace(workload, **{name: getattr(workload, name) * 2 + 1})
    before, after = (capacity.plan(w, RATES, PRICES) for w in (workload, more))
    assert after.store.memory_all >= before.store.memory_all
    assert after.store.disk_all >= before.store.disk_all
    assert after.month >= before.month


@given(workloads)
def test_shorter_codes_never_need_more_memory(workload):
    sizes = [
        capacity.store_size(dataclasses.replace(workload, dimensions=512, encoding=encoding)).memory
        for encoding in sizing.ENCODINGS
    ]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda: work(documents=0), "documents is 0"),
        (lambda: work(documents=1e6), "documents is 1000000.0: give a whole number"),
        (lambda: work(tokens_per_document=0), "0 tokens"),
        (lambda: work(overlap_tokens=256), "share 256"),
        (lambda: work(overlap_tokens=-1), "share -1"),
        (lambda: work(dimensions=0), "of 0 numbers"),
        (lambda: work(encoding="int4"), "'int4'"),
        (lambda: work(copies=0), "copies is 0"),
        (lambda: work(queries_per_second=math.nan), "queries_per_second is nan"),
        (lambda: work(spares=-1), "spares is -1"),
        (lambda: capacity.Rates(service=0), "service is 0"),
        (lambda: capacity.Rates(service=1, chat=-1), "chat is -1"),
        (lambda: capacity.Rates(service=1, utilisation=1.2), "utilisation is 1.2"),
        (lambda: PRICES.gpu("T4"), "'T4': those listed are L4, L40S, H100"),
        (lambda: PRICES.node("m1"), "m7i.xlarge, r7i.xlarge"),
        (lambda: capacity.plan(work(), RATES, PRICES, gpus={"chat": "H100"}), "for embedding"),
    ],
)
def test_mistakes_are_told_in_one_sentence(wrong, told):
    with pytest.raises(DataError, match=told) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_every_packaged_price_has_a_day_and_a_source():
    assert PRICES.currency == "USD"
    assert {gpu for gpu in capacity.GPUS.values()} <= {gpu.name for gpu in PRICES.gpus}
    for price in PRICES.all():
        assert date(2025, 1, 1) <= price.as_of <= date.today()
        assert price.source.startswith("https://")
    rows = PRICES.rows()
    assert {row["what"] for row in rows} == {price.name for price in PRICES.all()}
    assert all(row["as of"] and row["source"] for row in rows)


def test_old_prices_are_named():
    oldest = min(price.as_of for price in PRICES.all())
    assert "0 days ago" in PRICES.age(oldest)
    assert "look them up" not in PRICES.age(oldest)
    later = date(oldest.year + 3, oldest.month, oldest.day)
    said = PRICES.age(later)
    assert "look them up again" in said
    assert all(price.name in said for price in PRICES.all())


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('currency = "USD"', "", "'currency': Field required"),
        ('currency = "USD"', 'currency = "USD"\ntax = 3', "'tax': Unexpected"),
        ("gb_month = 0.08\n", "", "p.toml: 'storage.gb_month': Field required"),
        ("hour = 1.861\n", "", "p.toml: 'gpu.1.hour': Field required"),
        ("hour = 1.861", 'hour = "1.861"', "'gpu.1.hour'.* valid number, not '1.861'"),
        ("hour = 1.861", "hour = -1", "greater than 0, not -1"),
        ("hour = 1.861", "hour = nan", "'gpu.1.hour'"),
        ("hour = 1.861", "hour = true", "not True"),
        ("vcpus = 4", "vcpus = 4.5", "valid integer, not 4.5"),
        ('name = "gp3"', 'name = ""', "'storage.name'"),
        ("as_of = 2026-04-01", 'as_of = "2026-04-01"', "valid date, not '2026-04-01'"),
        ("as_of = 2026-04-01", "as_of = 2026-04-01T00:00:00", "valid date"),
        ('source = "https://www.w', 'source = "www.w', "'storage.source'.*https://"),
        ("[storage]", "[storage", "p.toml cannot be read"),
    ],
)
def test_a_broken_price_file_is_told(tmp_path, old, new, told):
    file = tmp_path / "p.toml"
    assert old in PACKAGED
    file.write_text(PACKAGED.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DataError, match=told) as caught:
        capacity.Prices.load(file)
    assert "\n" not in str(caught.value)


def test_a_price_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"none\.toml cannot be read"):
        capacity.Prices.load(tmp_path / "none.toml")


def test_a_hosted_model_costs_by_the_token():
    price = prices.HostedPrice("x", 0.5, 2.0, date(2026, 1, 1), "https://example.org")
    assert price.month(1000, 2000, 500) == pytest.approx(1.0 + 1.0)


def test_published_throughput_fits_its_own_latency():
    published = capacity.published_throughput()
    assert published
    for table in published:
        assert table.source.startswith("https://docs.nvidia.com/")
        assert table.gpu in {gpu.name for gpu in PRICES.gpus}
        busy = [point.concurrency for point in table.points]
        assert busy == sorted(set(busy))
        for point in table.points:
            # By Little's law the requests at once are the answers a second times their time.
            answers = point.tokens_per_second / table.answer_tokens
            assert answers * table.seconds(point) == pytest.approx(point.concurrency, rel=0.05)


def test_cost_falls_as_requests_wait_longer():
    (table, *_) = capacity.published_throughput()
    first, last = table.points[0], table.points[-1]
    assert table.million(first, 10) == pytest.approx(2 * 10 / (51.67 * 3600) * 1e6)
    assert table.million(last, 10) < table.million(first, 10)
    assert table.seconds(last) > table.seconds(first)


def test_the_gpus_of_an_instance_are_in_one_machine():
    rates = dataclasses.replace(RATES, chat_gpus=3)  # two such instances fit into eight GPUs
    plan = capacity.plan(work(queries_per_second=14, answer_tokens=100), rates, PRICES)
    assert plan.gpus["chat"] == 9
    assert plan.month_of("chat NIM") == pytest.approx(2 * PRICES.gpu("H100").hour * 730)
    with pytest.raises(DataError, match="an instance of the chat model needs 3 in one machine"):
        capacity.plan(work(), rates, PRICES, gpus={**capacity.GPUS, "chat": "L4"})


def test_a_lost_node_leaves_enough_for_the_peak():
    plan = capacity.plan(work(queries_per_second=28, spares=1), RATES, PRICES)
    assert (plan.replicas, plan.service_nodes) == (5, 2)  # four vCPUs each hold the four needed
