"""Prices and published throughput: other people's figures, each with its day and its source."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field

from nim_cookbook.data import Text, data_path, read_text, validated
from nim_cookbook.errors import DataError
from nim_cookbook.wording import count

Count = Annotated[int, Field(gt=0, strict=True)]
Amount = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Address = Annotated[str, Field(pattern="^https://")]
Day = Annotated[date, Field(strict=True)]
_COMPLETE = ConfigDict(extra="forbid")

#: Days after which a price should be looked up again.
STALE_AFTER = 180


@dataclass(frozen=True, slots=True)
class GpuPrice:
    """A machine with GPUs; `hour` is for the whole machine."""

    name: Text
    machine: Text
    gpus: Count
    hour: Amount
    as_of: Day
    source: Address
    __pydantic_config__ = _COMPLETE


@dataclass(frozen=True, slots=True)
class NodePrice:
    """A machine without a GPU."""

    name: Text
    vcpus: Count
    memory_gib: Count
    hour: Amount
    as_of: Day
    source: Address
    __pydantic_config__ = _COMPLETE


@dataclass(frozen=True, slots=True)
class StoragePrice:
    """A GB (1e9 bytes) of block storage for a month."""

    name: Text
    gb_month: Amount
    as_of: Day
    source: Address
    __pydantic_config__ = _COMPLETE


@dataclass(frozen=True, slots=True)
class LicencePrice:
    """The licence that NIMs need in production, a GPU for a year."""

    name: Text
    gpu_year: Amount
    as_of: Day
    source: Address
    __pydantic_config__ = _COMPLETE


@dataclass(frozen=True, slots=True)
class HostedPrice:
    """A million tokens of a model that somebody else runs."""

    name: Text
    prompt_million: Amount
    answer_million: Amount
    as_of: Day
    source: Address
    __pydantic_config__ = _COMPLETE

    def month(self, queries: int, prompt_tokens: int, answer_tokens: int) -> float:
        """Return the price of a month's queries.

        Args:
            queries: How many a month has; a plan's peak does not tell that.
            prompt_tokens: Of a query with its chunks.
            answer_tokens: Of an answer.
        """
        prompt, answer = prompt_tokens * self.prompt_million, answer_tokens * self.answer_million
        return queries * (prompt + answer) / 1e6


Price = GpuPrice | NodePrice | StoragePrice | LicencePrice | HostedPrice


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices with the day and the place they come from."""

    currency: Text  # of all of them
    gpus: Annotated[tuple[GpuPrice, ...], Field(alias="gpu", min_length=1)]  # machines with GPUs
    nodes: Annotated[tuple[NodePrice, ...], Field(alias="node", min_length=1)]  # machines without
    storage: StoragePrice  # block storage
    licence: LicencePrice  # NVIDIA AI Enterprise
    hosted: tuple[HostedPrice, ...] = ()  # models that somebody else runs, for comparison
    __pydantic_config__ = _COMPLETE

    @classmethod
    def load(cls, path: str | Path | None = None) -> Prices:
        """Read prices from a file, by default the packaged one.

        Raises:
            DataError: The file cannot be read, or lacks something.
        """
        file = Path(path) if path else data_path("prices/prices.toml")
        return validated(cls, _toml(file), file.name)

    def all(self) -> list[Price]:
        """Return every price."""
        return [*self.gpus, *self.nodes, self.storage, self.licence, *self.hosted]

    def gpu(self, name: str) -> GpuPrice:
        """Return a GPU's price.

        Raises:
            DataError: It is not listed; the message names what is.
        """
        return _named(self.gpus, name)

    def node(self, name: str) -> NodePrice:
        """Return a node's price.

        Raises:
            DataError: It is not listed; the message names what is.
        """
        return _named(self.nodes, name)

    def age(self, today: date | None = None) -> str:
        """Return in words how old the prices are, and which should be looked up again.

        Args:
            today: The day to compare with, by default today.
        """
        today = today or date.today()
        oldest = min(self.all(), key=lambda price: price.as_of)
        days = (today - oldest.as_of).days
        old = [price.name for price in self.all() if (today - price.as_of).days > STALE_AFTER]
        said = f"The oldest price is from {oldest.as_of} ({oldest.name}, {count(days, 'day')} ago)."
        if not old:
            return said
        return f"{said} Older than {STALE_AFTER} days, look them up again: {', '.join(old)}."

    def rows(self) -> list[dict[str, object]]:
        """Return a row for each price: what, how much, for what, from when and from which site."""
        listed: list[tuple[Price, float, str]] = [
            *((g, g.hour, f"hour of {g.machine}, {count(g.gpus, 'GPU')}") for g in self.gpus),
            *((n, n.hour, f"hour, {n.vcpus} vCPUs, {n.memory_gib} GiB") for n in self.nodes),
            (self.storage, self.storage.gb_month, "GB for a month"),
            (self.licence, self.licence.gpu_year, "GPU for a year"),
            *((h, h.prompt_million, "million prompt tokens") for h in self.hosted),
            *((h, h.answer_million, "million answer tokens") for h in self.hosted),
        ]
        return [
            {
                "what": price.name,
                self.currency: f"{value:,.4g}" if value < 1000 else f"{value:,.0f}",
                "for": unit,
                "as of": price.as_of.isoformat(),
                "source": urlsplit(price.source).hostname,
            }
            for price, value, unit in listed
        ]


@dataclass(frozen=True, slots=True)
class Point:
    """One line of a published table: `concurrency` requests at once."""

    concurrency: Count
    ttft_ms: Amount
    itl_ms: Amount
    tokens_per_second: Amount
    __pydantic_config__ = _COMPLETE


@dataclass(frozen=True, slots=True)
class Published:
    """What somebody measured of a chat model and published."""

    model: Text  # which
    version: Text  # of the NIM
    gpu: Text  # the GPU's name, as in the prices
    gpus: Count  # how many served the model together
    hardware: Text  # as the source writes it
    precision: Text  # as the source writes it
    prompt_tokens: Count  # of each request
    answer_tokens: Count  # of each answer
    as_of: Day  # when the source was read
    source: Address  # where it is
    points: Annotated[tuple[Point, ...], Field(min_length=1)]  # by rising concurrency
    __pydantic_config__ = _COMPLETE

    def seconds(self, point: Point) -> float:
        """Return how long a whole answer takes."""
        return (point.ttft_ms + point.itl_ms * (self.answer_tokens - 1)) / 1000

    def million(self, point: Point, gpu_hour: float) -> float:
        """Return what a million answer tokens cost, the prompts included, at full load.

        Args:
            point: At which concurrency.
            gpu_hour: The price of a GPU for an hour, with its licence if that is to count.
        """
        return self.gpus * gpu_hour / (point.tokens_per_second * 3600) * 1e6


def published_throughput(path: str | Path | None = None) -> tuple[Published, ...]:
    """Read what NVIDIA publishes about chat NIMs.

    Args:
        path: A TOML file like `data/prices/throughput.toml`, the default.

    Raises:
        DataError: The file cannot be read, or lacks something.
    """
    file = Path(path) if path else data_path("prices/throughput.toml")
    return validated(_Throughput, _toml(file), file.name).chat


@dataclass(frozen=True, slots=True)
class _Throughput:
    """The file of `published_throughput`."""

    chat: tuple[Published, ...]
    __pydantic_config__ = _COMPLETE


_Named = TypeVar("_Named", GpuPrice, NodePrice)


def _named(prices: Iterable[_Named], name: str) -> _Named:
    listed = {price.name: price for price in prices}
    if name not in listed:
        raise DataError(f"There is no price of {name!r}: those listed are {', '.join(listed)}.")
    return listed[name]


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path.name} cannot be read ({error}): correct it.") from None
