"""Where Notion and Gradient are: settings, and what is sent to whom."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from nim_cookbook import keys, local
from nim_cookbook.errors import ConfigurationError, EndpointUnreachable, MissingKeyError
from nim_cookbook.local import LocalServer
from nim_cookbook.services import connect_gradient, connect_notion, notion_id
from tests.http_server import listening

TOKEN = "notion-fake-token-for-tests"
NVIDIA = "nvapi-fake-key-for-tests"
PAGE = "17c307bf-7b1b-588f-a424-be032066e22e"
SHORT = PAGE.replace("-", "")
OTHER = "75a64fbe-d5bb-5fae-8132-94dc24b8bcd9"
OURS = ("NOTION_", "GRADIENT_", "COOKBOOK_", "NVIDIA_", "NIM_")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No settings from outside, and everything undone afterwards."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(OURS) or name.lower().endswith("_proxy"):
            del os.environ[name]
    monkeypatch.chdir(tmp_path)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when the local servers would be started."""
    monkeypatch.setattr(local, "ensure_running", lambda **_: pytest.fail("started"))


@pytest.fixture
def silent_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    """Local servers that answer nothing useful, and note which keys they are sent."""
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_response(404)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with listening(Handler) as url:
        found = LocalServer(dict.fromkeys(local.SERVERS, url), "nvapi-local-throw-away", 8000)
        monkeypatch.setattr(local, "ensure_running", lambda **_: found)
        yield found
    assert set(seen) <= {"Bearer nvapi-local-throw-away"}


# --- ids of pages -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        PAGE,
        SHORT,
        PAGE.upper(),
        f"  {SHORT} ",
        f"https://www.notion.so/Engineering-wiki-{SHORT}",
        f"https://www.notion.so/acme/Engineering-wiki-{SHORT}?pvs=4#{OTHER.replace('-', '')}",
        f"https://acme.notion.site/{SHORT}/",
        f"https://www.notion.so/{OTHER.replace('-', '')}?v={'0' * 32}&p={SHORT}&pm=s",
    ],
)
def test_ids_and_links_of_pages(text: str) -> None:
    assert notion_id(text) == PAGE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "seven",
        SHORT[:-1],
        f"{SHORT}0",
        f"Notes-{PAGE}",
        "https://www.notion.so/",
        "http://[::1",
        f"x{SHORT}",
    ],
)
def test_what_is_no_page_is_said_in_a_sentence(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is no Notion page"):
        notion_id(text)


def test_a_token_in_the_wrong_place_is_not_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        notion_id("ntn_fake123")
    assert "fake123" not in str(caught.value)


# --- Notion -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_start")
class TestOwnNotion:
    def test_token_and_pages(self) -> None:
        os.environ |= {"NOTION_TOKEN": f" {TOKEN} ", "NOTION_PAGE_IDS": f"{SHORT}, {OTHER} {PAGE},"}
        service = connect_notion()
        assert service.url == "https://api.notion.com"
        assert service.pages == (PAGE, OTHER)
        assert os.environ[service.token_variable] == TOKEN
        assert service.served_by == "Notion"
        assert TOKEN not in repr(service)

    def test_from_a_dotenv_file(self, tmp_path: Path) -> None:
        (tmp_path / ".env").write_text(f"NOTION_TOKEN={TOKEN}\nNOTION_PAGE_IDS={PAGE}\n")
        assert connect_notion().pages == (PAGE,)

    @pytest.mark.parametrize("text", ["http://127.0.0.1:9", "http://127.0.0.1:9/v1/"])
    def test_another_address(self, text: str) -> None:
        os.environ |= {"NOTION_TOKEN": TOKEN, "NOTION_PAGE_IDS": PAGE, "NOTION_BASE_URL": text}
        service = connect_notion()
        assert (service.url, service.served_by) == ("http://127.0.0.1:9", "127.0.0.1:9")

    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            ({}, "NOTION_PAGE_IDS is not"),
            ({"NOTION_PAGE_IDS": " , "}, "NOTION_PAGE_IDS is not"),
            ({"NOTION_PAGE_IDS": f"{PAGE} seven"}, "In NOTION_PAGE_IDS, 'seven' is no Notion page"),
            ({"NOTION_PAGE_IDS": PAGE, "NOTION_BASE_URL": "notion"}, "NOTION_BASE_URL is 'notion'"),
            ({"NOTION_PAGE_IDS": PAGE, "NOTION_TOKEN": NVIDIA}, "NOTION_TOKEN holds an NVIDIA key"),
        ],
    )
    def test_settings_that_cannot_be_used(self, settings: dict[str, str], says: str) -> None:
        os.environ |= {"NOTION_TOKEN": TOKEN} | settings
        with pytest.raises(ConfigurationError, match=says) as caught:
            connect_notion()
        assert "\n" not in str(caught.value)
        assert NVIDIA not in str(caught.value)

    def test_a_token_that_no_header_can_carry(self) -> None:
        os.environ |= {"NOTION_TOKEN": "two words", "NOTION_PAGE_IDS": PAGE}
        with pytest.raises(MissingKeyError, match="NOTION_TOKEN holds white space"):
            connect_notion()

    def test_an_address_without_a_token(self) -> None:
        os.environ["NOTION_BASE_URL"] = "http://127.0.0.1:9"
        with pytest.raises(MissingKeyError, match="NOTION_TOKEN is not"):
            connect_notion()


@pytest.mark.usefixtures("silent_server")
def test_a_local_notion_that_does_not_answer_is_one_sentence() -> None:
    os.environ["NVIDIA_API_KEY"] = NVIDIA
    with pytest.raises(EndpointUnreachable, match="does not answer a search") as caught:
        connect_notion()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "package",
    [
        "notion_haystack",
        pytest.param("notion_exporter", marks=pytest.mark.long),
        pytest.param("notion_client", marks=pytest.mark.long),
    ],
)
def test_a_missing_package_is_one_sentence(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; import nim_cookbook.notion"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    *_, last = done.stderr.strip().splitlines()
    assert "ConfigurationError: Notion pages need the package" in last
    assert '`pip install "nim-rag-cookbook[finetune]"`' in last


# --- Gradient ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_start")
class TestOwnGradient:
    def test_address_token_and_workspace(self) -> None:
        os.environ |= {
            "GRADIENT_API_URL": "http://127.0.0.1:9/api/",
            "GRADIENT_ACCESS_TOKEN": TOKEN,
            "GRADIENT_WORKSPACE_ID": "ours",
        }
        service = connect_gradient()
        assert service.host == "http://127.0.0.1:9/api"
        assert os.environ[service.token_variable] == TOKEN
        assert os.environ[service.workspace_variable] == "ours"
        assert set(service.weights.values()) == {"served by 127.0.0.1:9"}
        assert TOKEN not in repr(service)

    def test_any_loopback_address_is_kept_off_proxies(self) -> None:
        os.environ |= {
            "HTTP_PROXY": "http://127.0.0.1:9",
            "GRADIENT_API_URL": "http://127.0.0.2:9/api",
            "GRADIENT_ACCESS_TOKEN": TOKEN,
            "GRADIENT_WORKSPACE_ID": "ours",
            "NOTION_BASE_URL": "http://127.0.0.3:9",
            "NOTION_TOKEN": TOKEN,
            "NOTION_PAGE_IDS": PAGE,
        }
        connect_gradient()
        connect_notion()
        assert {"127.0.0.2", "127.0.0.3"} < set(os.environ["NO_PROXY"].split(","))

    @pytest.mark.parametrize(
        ("settings", "error", "says"),
        [
            ({"GRADIENT_API_URL": "there"}, ConfigurationError, "GRADIENT_API_URL is 'there'"),
            ({"GRADIENT_ACCESS_TOKEN": ""}, MissingKeyError, "GRADIENT_ACCESS_TOKEN is not"),
            ({"GRADIENT_ACCESS_TOKEN": NVIDIA}, ConfigurationError, "holds an NVIDIA key"),
            ({"GRADIENT_WORKSPACE_ID": ""}, ConfigurationError, "GRADIENT_WORKSPACE_ID is not"),
        ],
    )
    def test_settings_that_cannot_be_used(
        self, settings: dict[str, str], error: type[Exception], says: str
    ) -> None:
        os.environ |= {
            "GRADIENT_API_URL": "http://127.0.0.1:9/api",
            "GRADIENT_ACCESS_TOKEN": TOKEN,
            "GRADIENT_WORKSPACE_ID": "ours",
        } | settings
        with pytest.raises(error, match=says) as caught:
            connect_gradient()
        assert "\n" not in str(caught.value)
        assert NVIDIA not in str(caught.value)


def test_the_local_gradient_gets_the_throw_away_key_only(silent_server: LocalServer) -> None:
    os.environ |= {"GRADIENT_ACCESS_TOKEN": TOKEN, "NVIDIA_API_KEY": NVIDIA}
    service = connect_gradient()
    assert service.token_variable == keys.LOCAL_KEY
    assert os.environ[keys.LOCAL_KEY] == silent_server.key
    assert os.environ[service.workspace_variable] == "local"
    assert set(service.weights) == {"chat", "embedding"}


@pytest.mark.usefixtures("silent_server")
def test_a_workspace_that_is_set_stays() -> None:
    os.environ["GRADIENT_WORKSPACE_ID"] = "ours"
    assert os.environ[connect_gradient().workspace_variable] == "ours"
