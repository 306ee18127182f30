"""A health check for images without curl and wget: `python -m rag_service.probe URL`.

It imports nothing but the standard library, because it runs every few seconds.
"""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Sequence

SECONDS = 4.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when the URL answers 200."""
    urls = list(sys.argv[1:] if arguments is None else arguments)
    if len(urls) != 1 or not urls[0].startswith(("http://", "https://")):
        print("Error: give one URL.", file=sys.stderr)
        return 2
    # Probes ask their own container, which is not behind a proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urls[0], timeout=SECONDS) as answer:
            return 0 if answer.status == 200 else 1
    except (OSError, ValueError) as error:
        print(f"Error: {urls[0]} is not ready ({error}).", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
