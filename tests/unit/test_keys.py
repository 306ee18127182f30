"""Keys: where they are found, what they must look like, and whom they may be sent to."""

import getpass
import os
import sys
import types

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nim_cookbook import keys
from nim_cookbook.errors import ConfigurationError, MissingKeyError

FAKE = "nvapi-fake-key-for-tests"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for variable in (keys.NVIDIA_KEY, keys.LOCAL_KEY, keys.SELF_HOSTED_KEY):
        monkeypatch.setenv(variable, "")  # so that the old value comes back whatever a test sets


def colab(monkeypatch, get):
    """Put a `google.colab` with these secrets where Python looks for it."""
    userdata = types.SimpleNamespace(get=get)
    module = types.ModuleType("google.colab")
    module.userdata = userdata
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", module)


@pytest.mark.parametrize(
    "url",
    [
        "https://integrate.api.nvidia.com/v1",
        "https://integrate.api.nvidia.com",
        "https://integrate.api.nvidia.com:443/v1/",
        "https://ai.api.nvidia.com/v1/retrieval/nvidia/llama-3_2-nv-rerankqa-1b-v1/reranking",
    ],
)
def test_nvidias_addresses(url):
    assert keys.is_nvidia_url(url)
    keys.guard(FAKE, url, key_variable="K")


LOOK_ALIKES = [
    "http://integrate.api.nvidia.com/v1",
    "https://integrate.api.nvidia.com.evil.example/v1",
    "https://integrate.api.nvidia.com@evil.example/v1",
    "https://integrate.api.nvidia.com:x@evil.example/v1",
    "https://evil.example/integrate.api.nvidia.com/v1",
    "https://evil.example/?x=.api.nvidia.com",
    "https://evil.example#.api.nvidia.com",
    "https://evil.example\\.api.nvidia.com/v1",
    "https://evil.example\\@integrate.api.nvidia.com/v1",
    "https://evil.example%2f.api.nvidia.com/v1",
    "https://evil.example\n.api.nvidia.com/v1",
    "https://integrate.api.nvidia.com\n",
    "https://integrate-api.nvidia.com/v1",
    "https://evilapi.nvidia.com/v1",
    "https://api.nvidia.com.evil.example",
    "https://.api.nvidia.com/v1",
    "https://integrate.api.nvidia.com:8443/v1",
    "https://integrate.api.nvidia\u3002com/v1",
    "https://integrate.api.nvid\u0131a.com/v1",
    "//integrate.api.nvidia.com/v1",
    "integrate.api.nvidia.com",
    "http://127.0.0.1:8000/v1",
    "",
]


@pytest.mark.parametrize("url", LOOK_ALIKES)
def test_a_real_key_is_refused_to_everybody_else(url):
    assert not keys.is_nvidia_url(url)
    with pytest.raises(ConfigurationError, match="NIM_API_KEY") as caught:
        keys.guard(FAKE, url, key_variable="NIM_API_KEY", url_variable="NIM_CHAT_URL")
    assert FAKE not in str(caught.value)


hosts = st.sampled_from(["integrate.api.nvidia.com", "evil.example", "api.nvidia.com", "x."])
bits = st.sampled_from(["https://", "http://", "@", ":", "/", "\\", "#", "?", "%", ".", "\t", "v1"])


@given(st.lists(st.one_of(hosts, bits, st.text(max_size=3)), max_size=8).map("".join))
@example("https://integrate.api.nvidia.com/v1")
def test_what_counts_as_nvidias_really_goes_there(text):
    if keys.is_nvidia_url(text):
        url = httpx.URL(text)
        assert url.scheme == "https"
        assert url.host.endswith(".api.nvidia.com")
        assert not url.userinfo


@pytest.mark.parametrize(
    ("key", "real"),
    [
        *((key, True) for key in (FAKE, FAKE.upper(), f"Bearer {FAKE}", "nvapi-locally")),
        *((key, False) for key in ("", "not-needed", "nvapi-local-abc", "sk-123", "nvapi")),
    ],
)
def test_keys_that_could_be_real(key, real):
    assert keys.is_real_key(key) is real


def test_the_environment_comes_first(monkeypatch):
    colab(monkeypatch, lambda name: "nvapi-fake-from-colab")
    monkeypatch.setenv(keys.NVIDIA_KEY, f"  {FAKE}\n")
    assert keys.nvidia_key() == FAKE
    assert os.environ[keys.NVIDIA_KEY] == FAKE


def test_then_a_colab_secret(monkeypatch):
    colab(monkeypatch, {keys.NVIDIA_KEY: FAKE}.__getitem__)
    assert keys.nvidia_key() == FAKE
    assert os.environ[keys.NVIDIA_KEY] == FAKE


def test_a_colab_secret_that_is_not_granted_counts_as_none(monkeypatch):
    def refuse(name):
        raise PermissionError(name)

    colab(monkeypatch, refuse)
    with pytest.raises(MissingKeyError, match="is not set"):
        keys.nvidia_key()


def test_then_the_terminal_is_asked(monkeypatch):
    pty = pytest.importorskip("pty", reason="Windows has no pseudo-terminals")
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "r") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        monkeypatch.setattr(getpass, "getpass", lambda prompt: f" {FAKE} ")
        assert keys.nvidia_key() == FAKE
        monkeypatch.setenv(keys.NVIDIA_KEY, "")
        monkeypatch.setattr(getpass, "getpass", lambda prompt: "")
        with pytest.raises(MissingKeyError, match="COOKBOOK_ENDPOINTS=local"):
            keys.nvidia_key()
    os.close(ours)


def test_a_kernel_without_a_front_end_does_not_wait_for_an_answer():
    import nbformat
    from nbclient import NotebookClient

    code = (
        "import os\n"
        "os.environ['NVIDIA_API_KEY'] = ''\n"
        "from nim_cookbook import keys\n"
        "try:\n"
        "    keys.nvidia_key()\n"
        "except keys.MissingKeyError as error:\n"
        "    print(error)\n"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    assert "NVIDIA_API_KEY is not set" in notebook.cells[0].outputs[0].text


@pytest.mark.parametrize(
    "value",
    ["sk-wrong", "'nvapi-quoted'", "nvapi-two words", "nvapi-\u00fcml\u00e4ut", "Bearer nvapi-x"],
)
def test_what_is_no_nvidia_key_is_one_sentence(monkeypatch, value):
    monkeypatch.setenv(keys.NVIDIA_KEY, value)
    with pytest.raises(MissingKeyError, match="does not hold an NVIDIA key") as caught:
        keys.nvidia_key()
    assert value not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_local_key_is_not_sent_to_nvidia(monkeypatch):
    monkeypatch.setenv(keys.NVIDIA_KEY, "nvapi-local-abc")
    with pytest.raises(MissingKeyError, match="throw-away"):
        keys.nvidia_key()


def test_self_hosted_needs_no_key_but_the_clients_need_a_value():
    assert keys.self_hosted_key() == "not-needed"
    assert os.environ[keys.SELF_HOSTED_KEY] == "not-needed"


def test_a_key_must_fit_a_header(monkeypatch):
    monkeypatch.setenv(keys.SELF_HOSTED_KEY, "two\nlines")
    with pytest.raises(MissingKeyError, match="white space"):
        keys.self_hosted_key()


def test_the_local_key_may_not_be_a_real_one(monkeypatch):
    keys.check_local_key()
    monkeypatch.setenv(keys.LOCAL_KEY, "nvapi-local-for-tests")
    keys.check_local_key()
    monkeypatch.setenv(keys.LOCAL_KEY, FAKE)
    with pytest.raises(ConfigurationError, match="COOKBOOK_LOCAL_KEY"):
        keys.check_local_key()
