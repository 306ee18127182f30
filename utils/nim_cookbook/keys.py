"""API keys: where they are looked for, what they must look like, and whom they may be sent to.

A key is looked for in the environment, then among Colab's secrets, then asked for (only where
somebody can answer). No function here prints a key, and no message contains one.
"""

from __future__ import annotations

import getpass
import os
import re
import sys

from nim_cookbook.errors import ConfigurationError, MissingKeyError

NVIDIA_KEY = "NVIDIA_API_KEY"
LOCAL_KEY = "COOKBOOK_LOCAL_KEY"
SELF_HOSTED_KEY = "NIM_API_KEY"
EMBEDDINGS_KEY = "NVIDIA_EMBEDDINGS_KEY"
KEY_PAGE = "https://build.nvidia.com/settings/api-keys"

# An allow-list over the whole URL rather than a parsed host: parsers disagree about `\`, `@` and
# Unicode dots, and a disagreement would let a key out.
_NVIDIA_URL = re.compile(
    r"https://(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)+api\.nvidia\.com(?::443)?(?:/[A-Za-z0-9._~:/-]*)?"
)
_REAL_KEY = re.compile(r"nvapi-(?!local-)", re.IGNORECASE)
_KEY = re.compile(r"[\x21-\x7e]+")


def is_nvidia_url(url: str) -> bool:
    """Tell whether a URL is, beyond doubt, one of NVIDIA's hosted endpoints over HTTPS."""
    return _NVIDIA_URL.fullmatch(url) is not None


def is_real_key(key: str) -> bool:
    """Tell whether a key could be a real NVIDIA key (`nvapi-`, not a local throw-away)."""
    return _REAL_KEY.search(key) is not None


def guard(key: str, url: str, *, key_variable: str, url_variable: str = "the URL") -> None:
    """Refuse to send a real NVIDIA key to anybody but NVIDIA.

    Raises:
        ConfigurationError: The key is a real one and the URL is not NVIDIA's.
    """
    if is_real_key(key) and not is_nvidia_url(url):
        raise ConfigurationError(
            f"{key_variable} holds an NVIDIA key (nvapi-...), but {url_variable} is not an "
            f"https://*.api.nvidia.com address, so nothing was sent: set {key_variable} to the "
            "endpoint's own key, or correct the address."
        )


def nvidia_key() -> str:
    """Find the key for NVIDIA's hosted API catalog: environment, Colab secret, prompt.

    Returns:
        The key, which is also put into `NVIDIA_API_KEY`, where the client packages look.

    Raises:
        MissingKeyError: There is none, or what was found is not an NVIDIA key.
    """
    key = find_key(NVIDIA_KEY) or _ask(f"{NVIDIA_KEY} (made at {KEY_PAGE}, not shown): ")
    if not key:
        raise MissingKeyError(
            f"{NVIDIA_KEY} is not set: put a key from {KEY_PAGE} into the environment, a .env "
            "file or a Colab secret of that name, or set COOKBOOK_ENDPOINTS=local, which needs "
            "no key."
        )
    if key.startswith("nvapi-local-"):
        raise MissingKeyError(
            f"{NVIDIA_KEY} holds a throw-away key of the local endpoints, which NVIDIA does not "
            f"know: set a key from {KEY_PAGE}, or set COOKBOOK_ENDPOINTS=local."
        )
    if not key.startswith("nvapi-") or _KEY.fullmatch(key) is None:
        raise MissingKeyError(
            f"{NVIDIA_KEY} does not hold an NVIDIA key, which starts with nvapi- and has no white "
            f"space: copy it again from {KEY_PAGE}."
        )
    os.environ[NVIDIA_KEY] = key
    return key


def self_hosted_key() -> str:
    """Find the key for self-hosted NIMs, which mostly need none; kept in `NIM_API_KEY`."""
    return _optional_key(SELF_HOSTED_KEY)


def embeddings_key() -> str:
    """Find the embedding model's own key; kept in `NVIDIA_EMBEDDINGS_KEY`."""
    return _optional_key(EMBEDDINGS_KEY)


def _optional_key(variable: str) -> str:
    """Find a key; without one `not-needed` is set, because the clients refuse unset variables.

    Raises:
        MissingKeyError: The value cannot be sent in a header.
    """
    key = find_key(variable) or "not-needed"
    if _KEY.fullmatch(key) is None:
        raise MissingKeyError(
            f"{variable} holds white space or characters that no key has: set it again, or unset "
            "it if the endpoint needs no key."
        )
    os.environ[variable] = key
    return key


def check_token(token: str, url: str, *, variable: str, url_variable: str) -> None:
    """Refuse a token that cannot be sent, or that is a key for NVIDIA's hosts only.

    Raises:
        MissingKeyError: No header can carry it.
        ConfigurationError: It is a real NVIDIA key and the URL is not NVIDIA's.
    """
    if _KEY.fullmatch(token) is None:
        raise MissingKeyError(
            f"{variable} holds white space or characters that no token has: set it again."
        )
    guard(token, url, key_variable=variable, url_variable=url_variable)


def find_key(variable: str) -> str | None:
    """Look for a key in the environment, then among Colab's secrets; never ask.

    Returns:
        The key without white space around it, or None.
    """
    return os.environ.get(variable, "").strip() or _colab_secret(variable)


def check_local_key() -> None:
    """Refuse a real NVIDIA key as the key of the local endpoints.

    Raises:
        ConfigurationError: `COOKBOOK_LOCAL_KEY` holds one.
    """
    if is_real_key(os.environ.get(LOCAL_KEY, "")):
        raise ConfigurationError(
            f"{LOCAL_KEY} looks like a real NVIDIA key, which goes to NVIDIA's hosts only: unset "
            "it, or choose a value that starts with nvapi-local-."
        )


def _colab_secret(variable: str) -> str | None:
    try:
        from google.colab import userdata
    except ImportError:
        return None
    try:
        return str(userdata.get(variable)).strip() or None
    except Exception:
        # Not there, access not granted, or no browser to ask: Colab has a class of its own for
        # each, and all mean that the next place is tried.
        return None


def _ask(prompt: str) -> str | None:
    if not (_in_kernel() or (sys.stdin and sys.stdin.isatty())):
        return None
    try:
        return getpass.getpass(prompt).strip() or None
    except (EOFError, OSError):
        return None
    except Exception as error:
        # A kernel without a front end (nbclient, nbmake) raises a class of IPython's own.
        if type(error).__name__ == "StdinNotImplementedError":
            return None
        raise


def _in_kernel() -> bool:
    shell = sys.modules.get("IPython")
    return shell is not None and hasattr(shell.get_ipython(), "kernel")
