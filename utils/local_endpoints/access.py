"""The key that a local server demands."""

from __future__ import annotations

import os
import re
import secrets

from nim_cookbook import keys
from nim_cookbook.errors import ConfigurationError


def choose_key(prefix: str) -> str:
    """Return the key of this start: ``COOKBOOK_LOCAL_KEY``, or a throw-away one.

    Args:
        prefix: How a throw-away key begins, which says what it is for.

    Raises:
        ConfigurationError: The variable holds something that no HTTP header can carry, or a real
            NVIDIA key.
    """
    keys.check_local_key()
    fixed = os.environ.get("COOKBOOK_LOCAL_KEY", "").strip()
    if fixed and not re.fullmatch(r"[\x21-\x7e]+", fixed):
        raise ConfigurationError(
            "COOKBOOK_LOCAL_KEY must be printable ASCII without spaces: choose another key."
        )
    return fixed or f"{prefix}-{secrets.token_urlsafe(24)}"
