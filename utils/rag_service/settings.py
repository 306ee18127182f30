"""The services' settings, each an environment variable or a line of `.env`."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator

from nim_cookbook.endpoints import read_env_file
from nim_cookbook.errors import ConfigurationError, MissingKeyError
from nim_cookbook.explain import needing_extra

with needing_extra():
    from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

NATS_URL = "COOKBOOK_NATS_URL"
STORE_URL = "COOKBOOK_STORE_URL"
QDRANT_KEY = "QDRANT_API_KEY"
FILES = "COOKBOOK_FILES"
INDEX = "COOKBOOK_INDEX"
TOKEN = "COOKBOOK_SERVICE_TOKEN"
ORIGINS = "COOKBOOK_SERVICE_ORIGINS"
QUERY_URL = "COOKBOOK_QUERY_URL"
UPLOAD_MB = "COOKBOOK_UPLOAD_MB"
START_WAIT = "COOKBOOK_START_WAIT"
FOLLOW_UPS = "COOKBOOK_FOLLOW_UPS"
OTLP = "OTEL_EXPORTER_OTLP_ENDPOINT"

#: The default address of a NATS server.
DEFAULT_NATS_URL = "nats://127.0.0.1:4222"
#: Fewest characters of a token: 128 bits as `openssl rand -hex 16` writes them.
TOKEN_LENGTH = 32


class _Environment(BaseSettings):
    model_config = SettingsConfigDict(
        env_ignore_empty=True, frozen=True, str_strip_whitespace=True, case_sensitive=True
    )

    @classmethod
    def from_environment(cls) -> Self:
        """Read the settings.

        Raises:
            ConfigurationError: One cannot be used.
        """
        read_env_file()
        try:
            return cls()
        except ValidationError as error:
            first = error.errors()[0]
            why = _FAULTS.get(first["type"], first["msg"].removeprefix("Value error, "))
            raise ConfigurationError(f"{first['loc'][0]} {why.format(**first)}.") from None


_WHOLE = "is {input!r:.40}: set it to a whole number from 0 to 999999"
_FAULTS = {
    "int_parsing": _WHOLE,
    "greater_than_equal": _WHOLE,
    "less_than_equal": _WHOLE,
    "literal_error": "is {input!r:.40}: set it to {ctx[expected]}",
}


class Settings(_Environment):
    """Where the services find each other.

    Attributes:
        nats_url: The NATS server, with a token before an `@` if it wants one; never shown.
        store_url: The document store; see `rag_service.stores`; never shown.
        files: The file store: a folder, or an fsspec URL such as `s3://bucket/files`.
        index: Name of the table or collection, and of the queue that leads to it.
    """

    nats_url: str = Field(DEFAULT_NATS_URL, validation_alias=NATS_URL, repr=False)
    store_url: str = Field("", validation_alias=STORE_URL, repr=False)
    files: str = Field("", validation_alias=FILES)
    index: str = Field("company", validation_alias=INDEX)

    def require(self, variable: str) -> str:
        """Return the value of `COOKBOOK_STORE_URL` or `COOKBOOK_FILES`.

        Raises:
            ConfigurationError: It is not set.
        """
        value = {STORE_URL: self.store_url, FILES: self.files}[variable]
        if not value:
            raise ConfigurationError(f"{variable} is not set: set it to {_EXAMPLES[variable]}.")
        return value


_EXAMPLES = {
    STORE_URL: "the document store, such as postgresql://user@host/database or "
    "http://localhost:6333 for Qdrant",
    FILES: "the folder where uploaded files are kept, or to a URL such as s3://bucket/files",
}


class ServingSettings(_Environment):
    """What the query service needs to know beside endpoints and store.

    Attributes:
        origins: Origins of the web pages that may call the service from a browser.
        upload_mb: Largest upload in MiB.
        start_wait: Seconds that a start waits for NIMs that are still loading.
        follow_ups: What is searched for in the place of a follow-up question: the earlier questions
            and this one (`joined`), what the chat model makes of them (`rewritten`), or the
            question alone (`off`).
        collector: Where traces are sent; empty for nowhere.
    """

    origins: Annotated[tuple[str, ...], NoDecode] = Field((), validation_alias=ORIGINS)
    upload_mb: int = Field(50, validation_alias=UPLOAD_MB, ge=1, le=999_999)
    start_wait: int = Field(300, validation_alias=START_WAIT, ge=0, le=999_999)
    follow_ups: Literal["joined", "rewritten", "off"] = Field("joined", validation_alias=FOLLOW_UPS)
    collector: str = Field("", validation_alias=OTLP)

    @field_validator("origins", mode="before")
    @classmethod
    def _origins(cls, text: Any) -> Any:  # noqa: ANN401
        if not isinstance(text, str):  # the default
            return text
        origins = [origin for origin in re.split(r"[\s,]+", text) if origin]
        for origin in origins:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or not parts.hostname or origin.endswith("/"):
                raise ValueError(
                    f"holds {origin[:80]!r}: write each origin in full, such as "
                    "https://chat.example.com, without a slash at its end; * is not allowed"
                )
        return tuple(dict.fromkeys(origins))


def service_token() -> str:
    """Return the service's bearer token, `COOKBOOK_SERVICE_TOKEN`.

    Raises:
        MissingKeyError: It is not set, too short to be safe, or no header can carry it.
    """
    read_env_file()
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise MissingKeyError(
            f"{TOKEN} is not set: set it to a long random text, such as "
            "`openssl rand -hex 32` prints; requests must carry it as their bearer token."
        )
    if len(token) < TOKEN_LENGTH or re.fullmatch(r"[\x21-\x7e]+", token) is None:
        raise MissingKeyError(
            f"{TOKEN} is shorter than {TOKEN_LENGTH} characters or holds white space: set it to "
            "what `openssl rand -hex 32` prints."
        )
    return token
