"""What a RAG service needs and what it costs, before anything is bought.

`plan` goes from documents and queries to memory, disk, nodes, GPUs and money a month. How many
bytes a chunk takes is computed (`capacity.sizing`) and can be measured
(`capacity.measured`); how many requests a replica or a GPU does has to be measured on your own
load, or taken from `published_throughput`. Prices are data with a date (`data/prices`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from capacity.prices import Prices as Prices
from capacity.prices import Published
from capacity.prices import published_throughput as published_throughput
from capacity.sizing import RULE_OF_THUMB, Encoding, disk, memory
from nim_cookbook.errors import DataError
from nim_cookbook.models import Role
from nim_cookbook.wording import count
from nim_cookbook.wording import size as in_bytes

#: Hours of a mean month: 365 days of 24 hours, divided by 12.
HOURS_A_MONTH = 365 * 24 / 12
#: Which GPU a role gets where nothing else is asked for. A choice: NVIDIA's embedding and
#: reranking models of a billion parameters run on the smallest of the list.
GPUS: Mapping[Role, str] = {"embedding": "L4", "reranking": "L4", "chat": "H100"}
#: Bytes of text a token, for the disk. English has about four letters a token.
BYTES_PER_TOKEN = 4
#: Share of a node's memory that a store may use; the rest is the system's and Kubernetes'. A
#: choice, not a measurement.
NODE_USABLE = 0.8


def chunks_of(tokens: int, chunk: int, overlap: int) -> int:
    """Return how many chunks a document is split into.

    Args:
        tokens: Of the document.
        chunk: Tokens of a chunk.
        overlap: Tokens that a chunk shares with the one before.

    Raises:
        DataError: There are no tokens, or the overlap is not smaller than the chunk.
    """
    if tokens < 1 or chunk < 1 or not 0 <= overlap < chunk:
        raise DataError(
            f"{tokens} tokens in chunks of {chunk} that share {overlap} is impossible: give 1 "
            "token or more, and an overlap smaller than the chunk."
        )
    return 1 + max(0, math.ceil((tokens - chunk) / (chunk - overlap)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is to be served."""

    documents: int  # how many
    tokens_per_document: int  # their mean length
    chunk_tokens: int = 256  # tokens of a chunk
    overlap_tokens: int = 32  # tokens that a chunk shares with the one before
    dimensions: int = 384  # numbers of a vector
    encoding: Encoding = "float32"  # how vectors are kept in memory; see `sizing.bytes_per_vector`
    copies: int = 1  # of each chunk, on different nodes (Qdrant's replication factor)
    queries_per_second: float = 1.0  # at the peak
    prompt_tokens: int = 2000  # of a query with its chunks, as the chat model gets it
    answer_tokens: int = 200  # of an answer
    spares: int = 0  # replicas and GPUs of each kind that may fail at the peak without harm

    def __post_init__(self) -> None:
        """Refuse what cannot be served.

        Raises:
            DataError: A value is impossible.
        """
        counts = ("documents", "copies", "prompt_tokens", "answer_tokens", "spares")
        for name in counts:
            if not isinstance(getattr(self, name), int):
                raise DataError(f"{name} is {getattr(self, name)!r}: give a whole number.")
        names = (*counts[:-1], "queries_per_second")
        _positive({name: getattr(self, name) for name in names})
        if self.spares < 0:
            raise DataError(f"spares is {self.spares}: give 0 or more.")
        memory(self.chunks, self.dimensions, self.encoding)

    @property
    def chunks(self) -> int:
        """How many chunks there are, in one copy."""
        return self.documents * chunks_of(
            self.tokens_per_document, self.chunk_tokens, self.overlap_tokens
        )

    @property
    def text_bytes(self) -> int:
        """Bytes of a chunk's text, about."""
        return min(self.chunk_tokens, self.tokens_per_document) * BYTES_PER_TOKEN


@dataclass(frozen=True, slots=True)
class StoreSize:
    """What the vector store takes, in bytes, at rest."""

    chunks: int  # in one copy
    memory: int  # of one copy
    disk: int  # of one copy
    copies: int  # how many there are

    @property
    def memory_all(self) -> int:
        """Memory of all copies."""
        return self.memory * self.copies

    @property
    def disk_all(self) -> int:
        """Disk of all copies."""
        return self.disk * self.copies

    def rows(self) -> list[dict[str, object]]:
        """Return a row for one copy, and one for all if there are more."""
        return [
            {
                "copies": copies,
                "chunks": f"{self.chunks:,}",
                "memory": in_bytes(copies * self.memory),
                "disk": in_bytes(copies * self.disk),
            }
            for copies in sorted({1, self.copies})
        ]


def store_size(workload: Workload) -> StoreSize:
    """Return what the vector store takes, without room for its rebuilding."""
    chunks, width, encoding = workload.chunks, workload.dimensions, workload.encoding
    return StoreSize(
        chunks,
        memory(chunks, width, encoding),
        disk(chunks, width, encoding, workload.text_bytes),
        workload.copies,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How much one replica or GPU does, measured on your load or published for one like it.

    A role whose rate is None is not run by you, and gets no GPU.

    Attributes:
        service: Queries a second of a replica of the query service.
        embedding: Queries a second that one GPU embeds.
        reranking: Queries a second whose chunks one GPU reranks.
        chat: Answer tokens a second of one instance of the chat model.
        chat_gpus: GPUs of such an instance.
        utilisation: The share of these rates to plan with. A choice: at a share of 1 a queue grows
            without end as soon as the load varies.
    """

    service: float
    embedding: float | None = None
    reranking: float | None = None
    chat: float | None = None
    chat_gpus: int = 1
    utilisation: float = 0.7

    def __post_init__(self) -> None:
        """Refuse rates at which nothing is done.

        Raises:
            DataError: A rate is not above 0, or the share not above 0 and at most 1.
        """
        names = ("service", *GPUS, "chat_gpus", "utilisation")
        given = {name: getattr(self, name) for name in names}
        _positive({name: value for name, value in given.items() if value is not None})
        if self.utilisation > 1:
            raise DataError(f"utilisation is {self.utilisation}: give a share of at most 1.")


@dataclass(frozen=True, slots=True)
class Cost:
    """A part of a plan."""

    part: str  # what is paid for
    quantity: str  # how many, with their unit
    month: float  # what they cost a month


@dataclass(frozen=True, slots=True)
class Plan:
    """What a workload needs and costs."""

    workload: Workload  # what is served
    store: StoreSize  # memory and disk of the vector store at rest
    store_nodes: int  # nodes of the store
    replicas: int  # of the query service
    service_nodes: int  # nodes that these run on
    gpus: Mapping[Role, int]  # by role; 0 for a role that somebody else runs
    currency: str  # of the costs
    costs: tuple[Cost, ...]  # the parts and what each costs a month

    @property
    def month(self) -> float:
        """What everything costs a month."""
        return sum(cost.month for cost in self.costs)

    def month_of(self, *parts: str) -> float:
        """Return what some parts cost a month together.

        Args:
            *parts: By their names in `costs`; one that the plan does not have costs nothing.
        """
        return sum(cost.month for cost in self.costs if cost.part in parts)

    def rows(self) -> list[dict[str, object]]:
        """Return a row for each part and one for their sum."""
        title = f"{self.currency} a month"
        rows: list[dict[str, object]] = [
            {"part": c.part, "quantity": c.quantity, title: f"{c.month:,.0f}"} for c in self.costs
        ]
        return [*rows, {"part": "together", "quantity": "", title: f"{self.month:,.0f}"}]


def plan(
    workload: Workload,
    rates: Rates,
    prices: Prices,
    *,
    store_node: str = "r7i.xlarge",
    service_node: str = "m7i.xlarge",
    gpus: Mapping[Role, str] = GPUS,
) -> Plan:
    """Return what a workload needs and costs.

    The store's memory and disk get half as much again (`sizing.RULE_OF_THUMB`), because Qdrant
    writes a new segment before it drops the old one. Copies are on different nodes. A replica of
    the query service is one process, and gets a vCPU. Machines are paid for whole and all month.

    Args:
        workload: What is served.
        rates: How much a replica or a GPU does.
        prices: From `Prices.load`.
        store_node: The store's kind of node, by its name in the prices.
        service_node: The query service's.
        gpus: The GPU of each role, by its name in the prices.

    Raises:
        DataError: A node or GPU is not in the prices, a role has none, or an instance of the chat
            model needs more GPUs than the machine has.
    """
    store = store_size(workload)
    kept, served = prices.node(store_node), prices.node(service_node)
    usable = kept.memory_gib * 2**30 * NODE_USABLE
    room = math.ceil(store.disk_all * RULE_OF_THUMB / 1e9)
    nodes = max(workload.copies, math.ceil(store.memory_all * RULE_OF_THUMB / usable))
    replicas = _needed(workload.queries_per_second, rates.service, rates, workload)
    # So that what is left after a loss holds the replicas that the peak needs.
    hosts = math.ceil((replicas - workload.spares) / served.vcpus) + workload.spares
    counts = _gpu_counts(workload, rates)
    costs = [
        Cost("vector store", f"{nodes} x {kept.name}", nodes * kept.hour * HOURS_A_MONTH),
        Cost("its disks", f"{room:,} GB {prices.storage.name}", room * prices.storage.gb_month),
        Cost(
            "query service",
            f"{count(replicas, 'replica')} on {hosts} x {served.name}",
            hosts * served.hour * HOURS_A_MONTH,
        ),
    ]
    for role in GPUS:
        if counts[role]:
            if role not in gpus:
                raise DataError(f"No GPU is named for {role}: add it to gpus.")
            gpu, each = prices.gpu(gpus[role]), _gpus_each(role, rates)
            if gpu.gpus < each:
                raise DataError(
                    f"{gpu.machine} has {count(gpu.gpus, 'GPU')}, and an instance of the {role} "
                    f"model needs {each} in one machine: name another GPU."
                )
            machines = math.ceil(counts[role] / each / (gpu.gpus // each))
            quantity = f"{counts[role]} x {gpu.name} in {machines} x {gpu.machine}"
            costs.append(Cost(f"{role} NIM", quantity, machines * gpu.hour * HOURS_A_MONTH))
    licensed = sum(counts.values())
    if licensed:
        year = licensed * prices.licence.gpu_year
        costs.append(Cost(prices.licence.name, count(licensed, "GPU"), year / 12))
    return Plan(workload, store, nodes, replicas, hosts, counts, prices.currency, tuple(costs))


def chart_values(plan: Plan, published: Published, *, in_flight: int) -> dict[str, Any]:
    """Return the values with which the Helm chart deploys a plan.

    Args:
        plan: What is needed.
        published: The chat model whose figures the plan rests on; the chart deploys the same.
        in_flight: The autoscaler's target: requests open at the same time in a pod.

    Raises:
        DataError: The plan has no GPUs for a chat model.
    """
    if not plan.gpus["chat"]:
        raise DataError("The plan runs no chat model: give Rates a rate for chat.")
    each = RULE_OF_THUMB / plan.store_nodes / 2**30
    memory = f"{math.ceil(plan.store.memory_all * each)}Gi"
    disk = math.ceil(plan.store.disk_all * each)
    return {
        "query": {
            "workers": 1,
            "autoscaling": {
                "minReplicas": plan.replicas,
                "maxReplicas": 2 * plan.replicas,
                "requestsInFlight": {"enabled": True, "target": str(in_flight)},
            },
        },
        "qdrant": {
            "replicas": plan.store_nodes,
            "replicationFactor": plan.workload.copies,
            "persistence": {"size": f"{disk}Gi"},
            "snapshots": {"size": f"{4 * disk}Gi"},  # a new one beside three
            "resources": {"requests": {"memory": memory}, "limits": {"memory": memory}},
        },
        "nims": {
            "chat": {
                "repository": f"nvcr.io/nim/meta/{published.model.lower()}",
                "tag": published.version,
                "gpus": published.gpus,
                "replicas": plan.gpus["chat"] // published.gpus,
            },
            **{
                role: {"replicas": gpus}  # one GPU each
                for role, gpus in plan.gpus.items()
                if role != "chat" and gpus
            },
        },
    }


def _needed(load: float, rate: float, rates: Rates, workload: Workload) -> int:
    """Return how many replicas of that rate a load needs, with spares."""
    return math.ceil(load / (rate * rates.utilisation)) + workload.spares


def _gpu_counts(workload: Workload, rates: Rates) -> dict[Role, int]:
    queries = workload.queries_per_second
    load: dict[Role, float] = {
        "embedding": queries,
        "reranking": queries,
        "chat": queries * workload.answer_tokens,
    }
    found: dict[Role, int] = {}
    for role in GPUS:
        rate: float | None = getattr(rates, role)
        instances = 0 if rate is None else _needed(load[role], rate, rates, workload)
        found[role] = _gpus_each(role, rates) * instances
    return found


def _gpus_each(role: Role, rates: Rates) -> int:
    """Return the GPUs of one instance."""
    return rates.chat_gpus if role == "chat" else 1


def _positive(values: Mapping[str, float]) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise DataError(f"{name} is {value}: give a number above 0.")
