"""Prices and published throughput: other people's figures, each with its day and its source."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from nim_cookbook.data import data_path
from nim_cookbook.errors import DataError
from nim_cookbook.wording import count

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    _Record = TypeVar("_Record", bound=DataclassInstance)

#: Days after which a price should be looked up again.
STALE_AFTER = 180


@dataclass(frozen=True, slots=True)
class GpuPrice:
    """A machine with GPUs; `hour` is for the whole machine."""

    name: str
    machine: str
    gpus: int
    hour: float
    as_of: date
    source: str


@dataclass(frozen=True, slots=True)
class NodePrice:
    """A machine without a GPU."""

    name: str
    vcpus: int
    memory_gib: int
    hour: float
    as_of: date
    source: str


@dataclass(frozen=True, slots=True)
class StoragePrice:
    """A GB (1e9 bytes) of block storage for a month."""

    name: str
    gb_month: float
    as_of: date
    source: str


@dataclass(frozen=True, slots=True)
class LicencePrice:
    """The licence that NIMs need in production, a GPU for a year."""

    name: str
    gpu_year: float
    as_of: date
    source: str


@dataclass(frozen=True, slots=True)
class HostedPrice:
    """A million tokens of a model that somebody else runs."""

    name: str
    prompt_million: float
    answer_million: float
    as_of: date
    source: str

    def month(self, queries: int, prompt_tokens: int, answer_tokens: int) -> float:
        """Return the price of a month's queries.

        Args:
            queries: How many a month has; a plan's peak does not tell that.
            prompt_tokens: Of a query with its passages.
            answer_tokens: Of an answer.

        Raises:
            DataError: A number is below 0.
        """
        if min(queries, prompt_tokens, answer_tokens) < 0:
            raise DataError("Queries and their tokens cannot be fewer than none: give 0 or more.")
        prompt, answer = prompt_tokens * self.prompt_million, answer_tokens * self.answer_million
        return queries * (prompt + answer) / 1e6


Price = GpuPrice | NodePrice | StoragePrice | LicencePrice | HostedPrice


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices with the day and the place they come from.

    Attributes:
        currency: Of all of them.
        gpus: Machines with GPUs.
        nodes: Machines without.
        storage: Block storage.
        licence: NVIDIA AI Enterprise.
        hosted: Models that somebody else runs, for comparison.
    """

    currency: str
    gpus: tuple[GpuPrice, ...]
    nodes: tuple[NodePrice, ...]
    storage: StoragePrice
    licence: LicencePrice
    hosted: tuple[HostedPrice, ...]

    @classmethod
    def load(cls, path: str | Path | None = None) -> Prices:
        """Read prices from a file, by default the packaged one.

        Args:
            path: A TOML file like `data/prices/prices.toml`.

        Raises:
            DataError: The file cannot be read, or lacks something.
        """
        file = Path(path) if path else data_path("prices/prices.toml")
        content = _toml(file)
        if unknown := set(content) - {"currency", "gpu", "node", "storage", "licence", "hosted"}:
            raise DataError(f"{file.name} has an unknown part {min(unknown)!r}: remove it.")
        currency = content.get("currency")
        if not isinstance(currency, str) or not currency:
            raise DataError(f'{file.name} names no currency: add a line like currency = "USD".')
        return cls(
            currency,
            _records(GpuPrice, content, "gpu", file.name),
            _records(NodePrice, content, "node", file.name),
            _record(StoragePrice, content.get("storage"), f"[storage] in {file.name}"),
            _record(LicencePrice, content.get("licence"), f"[licence] in {file.name}"),
            _records(HostedPrice, content, "hosted", file.name, least=0),
        )

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

    concurrency: int
    ttft_ms: float
    itl_ms: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Published:
    """What somebody measured of a chat model and published.

    Attributes:
        model: Which.
        version: Of the NIM.
        gpu: The GPU's name, as in the prices.
        gpus: How many served the model together.
        hardware: As the source writes it.
        precision: As the source writes it.
        prompt_tokens: Of each request.
        answer_tokens: Of each answer.
        as_of: When the source was read.
        source: Where it is.
        points: By rising concurrency.
    """

    model: str
    version: str
    gpu: str
    gpus: int
    hardware: str
    precision: str
    prompt_tokens: int
    answer_tokens: int
    as_of: date
    source: str
    points: tuple[Point, ...]

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
    return _records(Published, _toml(file), "chat", file.name)


def _named(prices: Iterable[_Record], name: str) -> _Record:
    listed = {getattr(price, "name", ""): price for price in prices}
    if name not in listed:
        raise DataError(f"There is no price of {name!r}: those listed are {', '.join(listed)}.")
    return listed[name]


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path.name} cannot be read ({error}): correct it.") from None


def _records(
    kind: type[_Record], content: Mapping[str, Any], part: str, file: str, *, least: int = 1
) -> tuple[_Record, ...]:
    entries = content.get(part, [])
    if not isinstance(entries, list) or len(entries) < least:
        raise DataError(f"{file} has no [[{part}]]: add one.")
    return tuple(
        _record(kind, entry, f"[[{part}]] number {number} in {file}")
        for number, entry in enumerate(entries, 1)
    )


def _record(kind: type[_Record], entry: object, where: str) -> _Record:
    """Return a record of a file's entry, each field of the type that the class asks for."""
    if not isinstance(entry, Mapping):
        raise DataError(f"{where} is missing: add it.")
    wanted = {field.name: str(field.type) for field in fields(kind)}
    if unlike := sorted(set(entry) ^ set(wanted)):
        verb = "lacks" if unlike[0] in wanted else "has an unknown"
        raise DataError(f"{where} {verb} {unlike[0]!r}: correct it.")
    return kind(
        **{name: _value(entry[name], kind, f"{name} of {where}") for name, kind in wanted.items()}
    )


def _value(value: object, kind: str, where: str) -> object:
    """Return a file's value as a field's type, which `from __future__` gives as a text."""
    if kind.startswith("tuple") and isinstance(value, list) and value:
        return tuple(_record(Point, point, where) for point in value)
    if kind == "date" and type(value) is date:
        return value
    if kind == "str" and isinstance(value, str) and value:
        if where.startswith("source of") and not value.startswith("https://"):
            raise DataError(f"{where} is {value!r}: give an address that begins with https://.")
        return value
    number = isinstance(value, int) or (kind == "float" and isinstance(value, float))
    if kind in ("int", "float") and number and not isinstance(value, bool):
        amount: float = value  # type: ignore[assignment]
        if amount > 0 and math.isfinite(amount):
            return amount
    what = {"str": "a text", "date": "a day", "int": "a whole number above 0"}.get(kind)
    raise DataError(f"{where} is {value!r}: give {what or 'a number above 0'}.")
