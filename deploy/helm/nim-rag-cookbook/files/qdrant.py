"""What the chart asks of Qdrant's nodes over HTTP; only the standard library, for any image.

- `python qdrant.py wait COUNT URL`: wait until COUNT nodes have found each other.
- `python qdrant.py snapshot COLLECTION KEEP URL...`: a snapshot on each node; older ones go.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

#: Seconds to wait for the nodes.
WAIT = 900.0
EVERY = 2.0
#: Seconds for one request; a snapshot of a large collection takes long.
PATIENCE = 3600.0


def call(url: str, method: str = "GET", patience: float = PATIENCE) -> Any:  # noqa: ANN401
    """Return the `result` of an answer."""
    key = os.environ.get("QDRANT_API_KEY", "").strip()
    request = urllib.request.Request(url, method=method, headers={"api-key": key} if key else {})
    # Nodes are in the cluster and not behind a proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=patience) as answer:
        return json.load(answer)["result"]


def wait(count: int, url: str, limit: float = WAIT) -> int:
    """Wait until so many nodes are one cluster; return the exit status."""
    deadline = time.monotonic() + limit
    while True:
        try:
            found = len(call(f"{url}/cluster", patience=5.0).get("peers", {}))
            said = f"{found} of {count} nodes have found each other"
            if found >= count:
                print(said, flush=True)
                return 0
        except (OSError, ValueError, KeyError, AttributeError) as error:
            said = f"{url} does not answer ({error})"
        print(said, flush=True)
        if time.monotonic() > deadline:
            return 1
        time.sleep(EVERY)


def snapshot(collection: str, keep: int, urls: Sequence[str]) -> int:
    """Make a snapshot on each node and delete all but the newest; return the exit status."""
    failed = 0
    for url in urls:
        place = f"{url}/collections/{collection}/snapshots"
        try:
            made = call(place, "POST")["name"]
            held = sorted(call(place), key=lambda one: str(one.get("creation_time") or ""))
            # What was just made stays, whatever the clocks say.
            old = [one["name"] for one in held if one["name"] != made]
            for name in old[: max(0, len(old) - keep + 1)]:
                call(f"{place}/{name}", "DELETE")
            print(f"{url}: {made}", flush=True)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                print(f"{url}: there is no collection {collection} yet", flush=True)
                continue
            failed += 1
            print(f"{url}: {error}", file=sys.stderr, flush=True)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            failed += 1  # the other nodes' snapshots are of use all the same
            print(f"{url}: {error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def main(arguments: Sequence[str]) -> int:
    """Run one of the two commands; return the exit status."""
    match list(arguments):
        case ["wait", count, url]:
            return wait(int(count), url)
        case ["snapshot", collection, keep, *urls] if urls:
            return snapshot(collection, int(keep), urls)
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
