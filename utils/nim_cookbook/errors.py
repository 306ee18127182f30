"""Errors a user can put right: one sentence each, and no stack trace in a notebook."""

from __future__ import annotations

from collections.abc import Iterator


class CookbookError(Exception):
    """Something the user can put right; the message is one sentence that says how."""

    def _render_traceback_(self) -> list[str]:
        """Tell IPython to show the sentence alone.

        IPython calls this hook in place of its own formatter; a trace through the helper package
        would hide the one line that matters.
        """
        return [f"{type(self).__name__}: {self}"]


class ConfigurationError(CookbookError):
    """A setting (environment variable, `.env` line, argument) has a value that cannot be used."""


class MissingKeyError(CookbookError):
    """An API key is needed and was found nowhere, or what was found is no such key."""


class EndpointUnreachable(CookbookError):
    """An endpoint does not answer, or does not become ready."""


class WeightsError(CookbookError):
    """Model weights could not be fetched, or are not the bytes they should be."""


class WeightsUnavailableError(WeightsError):
    """No source of a weights file can be had: no network, or none of them has the right bytes."""


class PortInUseError(CookbookError):
    """A port that a local server needs is taken by something else."""


class UnknownModelError(CookbookError):
    """A model id that the registry does not know."""


class DataError(CookbookError):
    """A data file is missing or cannot be read."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and what it was raised `from`.

    An exception that was merely raised while another was handled may be about something else.
    """
    current: BaseException | None = error
    seen: set[int] = set()  # `raise error from error` makes a circle
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__
