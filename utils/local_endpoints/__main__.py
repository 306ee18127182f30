"""``python -m local_endpoints``: the servers alone, as the helper package starts them."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import get_args

from local_endpoints.options import Like, Nim, ServeOptions, WeightSet
from nim_cookbook.errors import ConfigurationError


def parse(arguments: list[str] | None = None) -> ServeOptions:
    """Return the options given on the command line."""
    parser = argparse.ArgumentParser(prog="python -m local_endpoints", description=__doc__)
    defaults = ServeOptions()
    parser.add_argument("--host", default=defaults.host)
    parser.add_argument("--port-base", type=int, default=defaults.port_base)
    parser.add_argument("--models", choices=get_args(WeightSet), default=defaults.models)
    parser.add_argument("--chat-model", type=Path, metavar="FILE.gguf")
    parser.add_argument("--nim", choices=get_args(Nim), default=defaults.nim)
    parser.add_argument("--stop-with-stdin", action="store_true")
    parser.add_argument("--like", choices=get_args(Like), default=defaults.like)
    parser.add_argument("--fault", dest="faults", action="append", default=[])
    return ServeOptions(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    try:
        options = parse()
    except ConfigurationError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    from local_endpoints.server import main  # after parsing, so that --help is quick

    code = main(options)
    # llama.cpp's threads may still wind down; everything of ours is closed by now.
    sys.stderr.flush()
    os._exit(code)
