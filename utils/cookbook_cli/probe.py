"""`nim-cookbook probe`: the smallest real call to each model of the registry, and what it proves.

A listing proves nothing: NVIDIA lists models that are gone, or that an account may not use.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal, cast

import httpx
import tomlkit
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.table import Table
from rich.text import Text

import nim_cookbook
from cookbook_cli.connection import say, shown
from cookbook_cli.progress import LoggedProgress
from cookbook_cli.results import write_atomically
from nim_cookbook import endpoints, keys
from nim_cookbook.errors import ConfigurationError, DataError, MissingKeyError
from nim_cookbook.explain import said_by
from nim_cookbook.hosts import is_loopback
from nim_cookbook.models import ROLES, CatalogModel, Role, Status, load_registry, parse_registry

Verdict = Literal["alive", "gone", "forbidden", "rate-limited", "down", "unclear"]

PAUSE = 1.0  # seconds between two models
TRIES = 2  # calls to one model that asks to wait
USUAL_WAIT = 10.0  # seconds before the second, where the host does not say how many
LONGEST_WAIT = 60.0  # seconds; a host that asks for more is not asked again
# What a verdict makes of the registry's `status`; the other verdicts prove nothing about a model.
PROVES: dict[Verdict, Status] = {"alive": "alive", "gone": "retired"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What a call to one model gave."""

    model: CatalogModel
    default: bool  # whether recipes ask for it
    verdict: Verdict
    answer: str  # the status, or what was there in its place
    said: str  # the host's own words, on one line
    seconds: float


def probe(
    console: Console,
    *,
    role: Role | None = None,
    write: bool = False,
    json_file: Path | None = None,
) -> int:
    """Ask the models of one role or of all, one after another, and show what they answered.

    Args:
        console: Where it is shown.
        role: The only role to ask, or None for all.
        write: Whether the registry of this checkout gets what was proved.
        json_file: Where the dated findings are written as well.

    Returns:
        0 when every default model that was asked is alive, else 1.

    Raises:
        MissingKeyError: There is no key, or NVIDIA refuses it.
        ConfigurationError: The address cannot be used, or there is nothing to write to.
    """
    base, key = _address_and_key()
    registry = _registry_file(base) if write else None
    findings = _ask_all(console, [role] if role else ROLES, base, key)
    console.print(_table(findings))
    if json_file is not None:
        _write(json_file, json.dumps(_record(findings, base), indent=2, ensure_ascii=False) + "\n")
    if registry is not None:
        say(console, _update(registry, findings))
    dead = [f"{f.model.id} ({f.verdict})" for f in findings if f.default and f.verdict != "alive"]
    if dead:
        say(console, f"Not alive, though recipes ask for it by default: {', '.join(dead)}.")
    return 1 if dead else 0


def _address_and_key() -> tuple[str, str]:
    """Return the catalog's base URL and the key for it: NVIDIA's, or a stand-in's on loopback."""
    endpoints.read_env_file()
    text = os.environ.get("NVIDIA_BASE_URL", "").strip() or endpoints.HOSTED_URL
    base = endpoints.base_url(text, "NVIDIA_BASE_URL")
    key = keys.find_key(keys.NVIDIA_KEY) or ""
    if not (is_loopback(httpx.URL(base).host) and key.startswith("nvapi-local-")):
        key = keys.nvidia_key()
        keys.guard(key, base, key_variable=keys.NVIDIA_KEY, url_variable="NVIDIA_BASE_URL")
    return base, key


def _registry_file(base: str) -> Path:
    """Return the registry's file, which must be one of a checkout."""
    if base != endpoints.HOSTED_URL:
        raise ConfigurationError(
            "--write records what NVIDIA's own catalog answers, and NVIDIA_BASE_URL is another "
            "address: unset it, or leave out --write."
        )
    package = Path(nim_cookbook.__file__).resolve().parent
    if not (package.parent.parent / "pyproject.toml").is_file():
        raise ConfigurationError(
            f"--write edits the registry of a checkout, and {package} is an installed package: "
            "clone the repository and run `nim-cookbook probe --write` of its environment."
        )
    return package / "models.toml"


def _ask_all(console: Console, roles: Sequence[Role], base: str, key: str) -> list[Finding]:
    """Ask the models in turn.

    Raises:
        MissingKeyError: The key is refused before any model has answered.
    """
    registry = load_registry()
    models = [(role, model) for role in roles for model in registry.models(role)]
    findings: list[Finding] = []
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with LoggedProgress(console, *columns, transient=True) as progress:
        task = progress.add_task("", total=len(models))
        for number, (role, model) in enumerate(models):
            progress.update(task, completed=number, description=model.id)
            if number:
                time.sleep(PAUSE)
            found = ask(model, base, key, default=model == registry.default(role))
            if found.answer == "401" and not any(f.verdict == "alive" for f in findings):
                raise MissingKeyError(
                    f"The key in {keys.NVIDIA_KEY} is refused (401), so no other model was asked: "
                    f"set a key from {keys.KEY_PAGE}."
                )
            findings.append(found)
            progress.line(f"{number + 1}/{len(models)} {model.id}: {found.verdict}")
    return findings


def ask(model: CatalogModel, base: str, key: str, *, default: bool = False) -> Finding:
    """Make the smallest real call to a model, and a second one if the host asks to wait."""
    verdict: Verdict = "down"
    said = ""
    began = time.perf_counter()
    try:
        response = _call(model, base, key)
        verdict, answer = classify(response, model.role), str(response.status_code)
        if verdict != "alive":
            words = said_by(response.text, most=160).replace(key, "...")
            said = "".join(letter for letter in words if letter.isprintable())
    except httpx.TimeoutException:
        answer = "no answer in time"
    except httpx.HTTPError:
        answer = "no connection"
    return Finding(model, default, verdict, answer, said, time.perf_counter() - began)


def _call(model: CatalogModel, base: str, key: str) -> httpx.Response:
    path, body = endpoints.CHECK_CALLS[model.role]
    url = f"{base}/{path}"
    if model.hosted_url is not None:  # of this model alone, and on another host than `base`
        url = model.hosted_url
        if not keys.is_nvidia_url(base):  # a stand-in has the same paths
            url = str(httpx.URL(base).copy_with(path=httpx.URL(url).path))
    for _ in range(TRIES - 1):
        response = endpoints.request("POST", url, key, {**body, "model": model.id})
        told = response.headers.get("Retry-After", "")
        wait = float(told) if told.isascii() and told.isdecimal() else USUAL_WAIT
        if response.status_code not in (202, 429) or wait > LONGEST_WAIT:
            return response
        time.sleep(wait)
    return endpoints.request("POST", url, key, {**body, "model": model.id})


def classify(response: httpx.Response, role: Role) -> Verdict:
    """Return what an answer proves about the model."""
    status = response.status_code
    if status == 200 and _has_content(response, role):
        return "alive"
    if status in (404, 410):
        # "Function ...: Not found for account ..." is said of models that others may use.
        return "forbidden" if "for account" in said_by(response.text) else "gone"
    if status == 202:
        # Where the result can be polled, the model is being started.
        return "down" if "NVCF-REQID" in response.headers else "gone"
    if status in (401, 402, 403):
        return "forbidden"
    if status == 429:
        return "rate-limited"
    return "down" if status >= 500 else "unclear"


def _has_content(response: httpx.Response, role: Role) -> bool:
    """Return whether a body has what a model of this role answers.

    A reasoning model's content is empty, or null, after so few tokens.
    """
    try:
        body = response.json()
        if role == "chat":
            return isinstance(body["choices"][0]["message"].get("content"), str | None)
        if role == "embedding":
            return isinstance(body["data"][0]["embedding"][0], int | float)
        return isinstance(body["rankings"][0]["logit"], int | float)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(
        title="Models of the registry",
        caption="*: recipes ask for it by default",
        caption_justify="left",
    )
    for column in ("Role", "Model", "Verdict", "Answer", "Registry"):
        table.add_column(column, overflow="fold", no_wrap=column == "Verdict")
    table.add_column("Seconds", justify="right", no_wrap=True)
    for f in findings:
        style = "green" if f.verdict == "alive" else "red" if f.verdict == "gone" else "yellow"
        table.add_row(
            f.model.role,
            Text(f"{f.model.id}{' *' if f.default else ''}"),
            Text(f.verdict, style=style),
            Text(f"{f.answer} {f.said}".strip()),
            Text(f.model.standing),
            f"{f.seconds:.1f}",
        )
    return table


def _record(findings: Sequence[Finding], base: str) -> dict[str, Any]:
    """Return the dated findings, ready for JSON; they hold no key."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "address": base,
        "models": [
            {
                "id": f.model.id,
                "role": f.model.role,
                "default": f.default,
                "verdict": f.verdict,
                "answer": f.answer,
                "said": f.said,
                "seconds": round(f.seconds, 2),
            }
            for f in findings
        ],
    }


def _update(registry: Path, findings: Sequence[Finding]) -> str:
    """Write what was proved into the registry's file; return a sentence on it."""
    if not any(f.verdict == "alive" for f in findings):
        return (
            "Nothing was written: no model answered, which may be the address, the key or the "
            "network."
        )
    text = edited(registry.read_text("utf-8"), findings, datetime.now(UTC).date())
    parse_registry(text)  # rather an error now than a registry that nobody can load
    _write(registry, text)
    proved = sum(f.verdict in PROVES for f in findings)
    return f"Written to {shown(registry)}: {proved} of {len(findings)} models."


def edited(text: str, findings: Sequence[Finding], today: date) -> str:
    """Return the registry's text with the findings; comments and order stay.

    A model whose end is announced stays `deprecated` as long as it answers.
    """
    document = tomlkit.parse(text)
    entries = {entry["id"]: entry for entry in cast(Any, document)["model"]}
    for found in findings:
        status, entry = PROVES.get(found.verdict), entries.get(found.model.id)
        if status is None or entry is None:
            continue
        if status == "alive" and entry["status"] == "deprecated":
            entry["how"] = "live call: it still answers"
        else:
            entry["status"] = status
            entry["how"] = "live call" if status == "alive" else f"live call: {found.answer}"
        entry["checked"] = today
    return tomlkit.dumps(document)


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}).") from None
