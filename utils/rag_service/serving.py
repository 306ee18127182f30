"""The query service's settings, each an environment variable or a line of `.env`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

from nim_cookbook.endpoints import read_env_file
from nim_cookbook.errors import ConfigurationError, MissingKeyError

TOKEN = "COOKBOOK_SERVICE_TOKEN"
ORIGINS = "COOKBOOK_SERVICE_ORIGINS"
QUERY_URL = "COOKBOOK_QUERY_URL"
UPLOAD_MB = "COOKBOOK_UPLOAD_MB"
START_WAIT = "COOKBOOK_START_WAIT"
OTLP = "OTEL_EXPORTER_OTLP_ENDPOINT"

#: Fewest characters of a token: 128 bits as `openssl rand -hex 16` writes them.
TOKEN_LENGTH = 32
_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """What the query service needs to know beside endpoints and store.

    Attributes:
        token: What a request must carry as its bearer token; never shown.
        origins: Origins of the web pages that may call the service from a browser.
        upload_bytes: Largest upload.
        start_wait: Seconds that a start waits for NIMs that are still loading.
        traced: Whether traces are sent to an OpenTelemetry collector.
    """

    token: str = field(repr=False)
    origins: tuple[str, ...] = ()
    upload_bytes: int = 50 * 1024 * 1024
    start_wait: float = 300.0
    traced: bool = False

    @classmethod
    def from_environment(cls) -> Self:
        """Read the settings.

        Raises:
            MissingKeyError: There is no token, or it is too short or cannot be sent.
            ConfigurationError: Another setting cannot be used.
        """
        read_env_file()
        return cls(
            token=service_token(),
            origins=_origins(os.environ.get(ORIGINS, "")),
            upload_bytes=_whole(UPLOAD_MB, 50, least=1) * 1024 * 1024,
            start_wait=float(_whole(START_WAIT, 300, least=0)),
            traced=bool(os.environ.get(OTLP, "").strip()),
        )


def service_token() -> str:
    """Return the service's bearer token, `COOKBOOK_SERVICE_TOKEN`.

    Raises:
        MissingKeyError: It is not set, too short to be safe, or no header can carry it.
    """
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise MissingKeyError(
            f"{TOKEN} is not set: set it to a long random text, such as "
            "`openssl rand -hex 32` prints; requests must carry it as their bearer token."
        )
    if len(token) < TOKEN_LENGTH or _TOKEN.fullmatch(token) is None:
        raise MissingKeyError(
            f"{TOKEN} is shorter than {TOKEN_LENGTH} characters or holds white space: set it to "
            "what `openssl rand -hex 32` prints."
        )
    return token


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(dict.fromkeys(re.split(r"[\s,]+", text.strip(" ,\t\r\n")))) if text else ()
    for origin in filter(None, origins):
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.hostname or origin.endswith("/"):
            raise ConfigurationError(
                f"{ORIGINS} holds {origin[:80]!r}: write each origin in full, such as "
                "https://chat.example.com, without a slash at its end; * is not allowed."
            )
    return tuple(filter(None, origins))


def _whole(variable: str, default: int, least: int) -> int:
    text = os.environ.get(variable, "").strip()
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 6 or int(text) < least:
        raise ConfigurationError(
            f"{variable} is {text[:40]!r}: set it to a whole number from {least} to 999999."
        )
    return int(text)
