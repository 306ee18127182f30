"""`nim-cookbook bundle`: a folder from which a room without a network installs the cookbook.

Wheels of the pinned versions, the model weights, the notebooks and an `install` script, for the
Python and the kind of machine that it is made on. It is built beside its place and moved there
complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console

from cookbook_cli import recipes as index
from cookbook_cli.fetch import of_set
from cookbook_cli.recipes import Recipe
from local_endpoints import weights as store
from local_endpoints.options import WeightSet
from nim_cookbook.errors import ConfigurationError

MANIFEST = "bundle.json"
#: What decides what is in a bundle, relative to the clone.
INPUTS = ("pyproject.toml", "constraints.txt", "utils", "data", "notebooks", "deploy", "tools")
README = """The NIM RAG Cookbook, for a room without a network.

Copy this folder to your disk or leave it where it is, and run

    python3 install

with Python {python} on {platform}. It installs into nim-rag-cookbook in your home folder, or into
the folder that you name, and ends with one line: ready, or what to do.
"""


def bundle(console: Console, folder: Path, wanted: Sequence[str], models: WeightSet) -> int:
    """Write the bundle; do nothing when it is there and nothing has changed.

    Args:
        console: Where progress is shown.
        folder: The bundle's folder, new or an older bundle.
        wanted: Numbers of the recipes that it must run; all when there is none.
        models: The set of model weights.

    Raises:
        ConfigurationError: This is no clone, the folder holds something else, or pip fails.
        WeightsError: The weights cannot be fetched.
    """
    notebooks = index.find_notebooks()
    clone = notebooks.resolve().parent
    if not (clone / "tools" / "install_bundle.py").is_file():
        raise ConfigurationError(
            f"{clone} is no clone of the cookbook: run `nim-cookbook bundle` inside one."
        )
    chosen = index.select(index.load(notebooks), wanted)
    extras = list(dict.fromkeys(["notebooks", *(e for one in chosen for e in one.extras)]))
    made: dict[str, object] = {
        "python": sys.version_info[:2],
        "platform": sysconfig.get_platform(),
        "extras": extras,
        "models": models,
        "recipes": [recipe.number for recipe in chosen],
    }
    made["of"] = of = _fingerprint(clone, json.dumps(made))
    if _is_that(folder, of):
        console.print(f"{folder} is up to date.", highlight=False, soft_wrap=True)
        return 0
    part = folder.resolve().with_name(f".{folder.resolve().name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        _wheels(console, clone, part / "wheels", extras)
        _weights(console, part / "weights", models)
        _scripts(clone, part, chosen)
        made["files"] = dict(_hashes(part))
        (part / MANIFEST).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        _replace(part, folder)
    except PermissionError as error:
        raise ConfigurationError(
            f"{error.filename} cannot be written: name another folder for the bundle."
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    console.print(
        f"{folder}: {size / 1e9:.1f} GB. Copy it, and run ./install in it.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    return 0


def _fingerprint(clone: Path, asked: str) -> str:
    """Return what changes with whatever decides what is in the bundle."""
    digest = hashlib.sha256(asked.encode())
    for name in INPUTS:
        top = clone / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(str(path.relative_to(clone)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _is_that(folder: Path, of: str) -> bool:
    """Return whether the folder holds this bundle.

    Raises:
        ConfigurationError: It holds something else, which a bundle would overwrite.
    """
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is a file: name another folder for the bundle.")
    manifest = folder / MANIFEST
    if not manifest.is_file():
        if any(folder.iterdir()):
            raise ConfigurationError(f"{folder} holds other files: name another for the bundle.")
        return False
    try:
        return bool(json.loads(manifest.read_text(encoding="utf-8"))["of"] == of)
    except (ValueError, KeyError, TypeError):
        return False  # a damaged one is made anew


def _wheels(console: Console, clone: Path, target: Path, extras: Sequence[str]) -> None:
    """Let pip collect the wheels, and build those that have none, ours among them."""
    needs = [f"{clone}[{','.join(extras)}]"]
    if "finetune" in extras:
        needs.append(f"torch=={_cpu_build()}")
    command = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check"]
    command += ["--wheel-dir", str(target), "-c", str(clone / "constraints.txt"), *needs]
    last: list[str] = []
    with console.status("Collecting packages ...") as status:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        assert process.stdout is not None
        count = 0
        for line in process.stdout:
            last = [*last[-9:], line.strip()]
            if line.startswith("Collecting "):
                count += 1
                status.update(f"Collecting packages ... {count}: {line.split()[1]}")
    if process.wait():
        errors = [line for line in last if line.startswith("ERROR")] or last[-1:]
        raise ConfigurationError(
            f"pip could not collect the packages ({' '.join(errors)}): check the network "
            "connection and run the same command again."
        )
    console.print(f"packages: {len(list(target.glob('*.whl')))} wheels", highlight=False)


def _cpu_build() -> str:
    """Return the version of PyTorch's CPU build; the usual one on Linux has gigabytes of CUDA.

    Raises:
        ConfigurationError: It is not what is installed here.
    """
    try:
        installed = version("torch")
    except PackageNotFoundError:
        installed = ""
    if sys.platform.startswith("linux") and not installed.endswith("+cpu"):
        raise ConfigurationError(
            "Recipes 09 and 10 train with PyTorch, and its CPU build is not installed here: run "
            "`make setup` with PIP_EXTRA_INDEX_URL set to PyTorch's index of CPU builds, or name "
            "the recipes without 09 and 10."
        )
    return installed


def _weights(console: Console, target: Path, models: WeightSet) -> None:
    def report(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    wanted = of_set(models)
    store.ensure(*wanted, report=report)
    for weights in wanted:
        source = store.folder_of(weights)
        (target / source.name).mkdir(parents=True)
        for file in weights.files:
            shutil.copy2(source / file.name, target / source.name / file.name)
    report(f"weights: {models}")


def _scripts(clone: Path, part: Path, chosen: Sequence[Recipe]) -> None:
    """Copy the notebooks, and what `install` needs."""
    (part / "notebooks").mkdir()
    for name in (index.INDEX, *(recipe.file for recipe in chosen)):
        shutil.copy(clone / "notebooks" / name, part / "notebooks" / name)
    shutil.copy(clone / "constraints.txt", part)
    shutil.copy(clone / "tools" / "bootstrap.py", part)
    shutil.copy(clone / "tools" / "install_bundle.py", part / "install")
    (part / "install").chmod(0o755)
    text = README.format(
        python="{}.{}".format(*sys.version_info[:2]),
        platform=sysconfig.get_platform(),
    )
    (part / "README.txt").write_text(text, encoding="utf-8")


def _hashes(part: Path) -> Iterator[tuple[str, str]]:
    """Yield each file's name, with slashes, and its SHA-256."""
    for path in sorted(part.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                yield (
                    path.relative_to(part).as_posix(),
                    hashlib.file_digest(file, "sha256").hexdigest(),
                )


def _replace(part: Path, folder: Path) -> None:
    """Move the finished bundle to its place; an older one goes when the new one is there."""
    old = part.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    part.replace(folder)
    shutil.rmtree(old, ignore_errors=True)
