"""Fetch the definitions of KEDA's and the NIM Operator's objects, to check the chart against.

They come from the projects' repositories at a tag, are compared with the SHA-256 that is written
here, and go into `build/crds`, where the tests look (or into the folder that `CRD_DIR` names).
Nothing is fetched twice; a file that is not what it should be is not kept.

The hashes are those of the published files that the chart was written against. That the tags below
have these very files could not be looked up when they were written: ScaledJob's strategy `default`
is in KEDA since 2.20.2, `multiNode.ray` in the NIM Operator since 3.1.1. Should a hash differ, see
what changed, run the tests with `--accept`, and write the new hash here.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "build/crds"
SOURCE = "https://raw.githubusercontent.com"
#: Seconds without a byte.
PATIENCE = 30.0


@dataclass(frozen=True)
class Definition:
    """One file.

    Attributes:
        path: Repository, tag and path.
        sha256: 64 hexadecimal digits.
    """

    path: str
    sha256: str

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.path.rpartition("/")[2]


KEDA = "kedacore/keda/v2.20.2/config/crd/bases"
NIM_OPERATOR = "NVIDIA/k8s-nim-operator/v3.1.2/config/crd/bases"
DEFINITIONS = (
    Definition(
        f"{KEDA}/keda.sh_scaledobjects.yaml",
        "207afc4ca44fd9e3f4bbfb1c8fae08f3a365e098a52714fe8eb672bbd239cbcd",
    ),
    Definition(
        f"{NIM_OPERATOR}/apps.nvidia.com_nimcaches.yaml",
        "89eb6a2464810d6ee8ba3757af2f2bb1a131d94e128ad6da8ea69d17f5791df2",
    ),
    Definition(
        f"{NIM_OPERATOR}/apps.nvidia.com_nimservices.yaml",
        "dc82e5508ee2e4ca15494ee37b894ad1f46a2d4faec6586e61f602678c626f27",
    ),
)


def digest(content: bytes) -> str:
    """Return the SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def fetched(url: str) -> bytes:
    """Return what is at a URL.

    Raises:
        RuntimeError: It cannot be had; with a sentence.
    """
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            content: bytes = answer.read()
            return content
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{url} answered {error.code}: the tag or the path is wrong.") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise RuntimeError(
            f"{url} cannot be reached ({reason}): connect to the internet, or put the file there "
            "by hand. The tests of the chart skip what needs it."
        ) from None


def fetch(
    folder: Path,
    definitions: Sequence[Definition] = DEFINITIONS,
    source: str = SOURCE,
    accept: bool = False,
) -> None:
    """Put what is missing into a folder, each file at once or not at all.

    Args:
        folder: Where to; made when it is missing.
        definitions: The files.
        source: URL before the files' paths.
        accept: Keep a file with another hash, too, and show that.

    Raises:
        RuntimeError: A file cannot be had, or is another than the one that is pinned.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for one in definitions:
        target = folder / one.name
        if target.is_file() and digest(target.read_bytes()) == one.sha256:
            print(f"{target} is there")
            continue
        content = fetched(f"{source}/{one.path}")
        found = digest(content)
        if found != one.sha256:
            said = f"{one.path} has the SHA-256 {found}, and {one.sha256} is pinned"
            if not accept:
                raise RuntimeError(f"{said}: see what changed, and pin it in tools/fetch_crds.py.")
            print(said)
        handle, part = tempfile.mkstemp(dir=folder, prefix=".part-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(part, target)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
        print(f"{target} fetched")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch them; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path(os.environ.get("CRD_DIR") or ROOT / FOLDER),
        help=f"where to (default: CRD_DIR, or {FOLDER})",
    )
    parser.add_argument("--source", default=SOURCE, help=f"a mirror (default {SOURCE})")
    parser.add_argument("--accept", action="store_true", help="keep files with another hash, too")
    options = parser.parse_args(arguments)
    try:
        fetch(options.folder, source=options.source, accept=options.accept)
    except (RuntimeError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
