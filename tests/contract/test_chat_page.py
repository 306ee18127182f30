"""The chat page in a real browser: sign in, ask, read the answer and open its source."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from nim_cookbook.pictures import small_png
from rag_service.local import LocalServices
from tests.browser import BROWSER, FLAGS, needs_browser
from tests.query_service import TOKEN, TestedService, environment, index_documents, running
from tests.support import Servers

playwright = pytest.importorskip(
    "playwright.sync_api", reason="drives a browser: install playwright"
)
if find_spec("chainlit") is None:  # importing it would write its settings into this folder
    pytest.skip("the chat page: install hayhooks[chainlit]", allow_module_level=True)

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="PostgreSQL's socket is POSIX"),
    pytest.mark.network,  # Chromium looks up its maker's hosts whenever it starts
]

QUESTION = "Under which number are hand warmers ordered?"
FOLLOW_UP = "And how thick must the ice be?"
ANSWER, SOURCE, TITLE = "WX-77", "handbook-021", "Winter visits and work near ice"
# Where a notebook's picture is wanted; otherwise beside the test's other files.
SCREENSHOT = "COOKBOOK_SCREENSHOT"


@pytest.fixture(scope="module")
def page_service(default_server: Servers) -> Iterator[TestedService]:
    with LocalServices() as local:
        index_documents(local)
        settings = environment(local, default_server)
        with running(local, settings) as query:
            settings["COOKBOOK_QUERY_URL"] = query.url
            with running(local, settings, module="chat") as chat:
                yield chat


@needs_browser
def test_a_reader_asks_and_reads_the_answer_and_its_source(
    page_service: TestedService, tmp_path: Path
) -> None:
    outside: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=BROWSER,
            headless=True,
            args=FLAGS,
            viewport={"width": 1100, "height": 760},
        )
        try:
            page = browser.pages[0]
            page.set_default_timeout(300_000)
            playwright.expect.set_options(timeout=300_000)
            page.on(
                "response",
                lambda answer: (
                    outside.append(answer.url)
                    if not answer.url.startswith((page_service.url, "data:", "blob:"))
                    else None
                ),
            )
            page.goto(f"{page_service.url}/chat")
            sign_in(page, "Robin", "not-the-token-not-the-token-not-the")
            page.get_by_text("credentials", exact=False).first.wait_for()
            sign_in(page, "Robin", TOKEN)
            page.get_by_text("Ask about the documents").first.wait_for()  # it is connected
            box = page.locator("#chat-input")
            box.fill(QUESTION)
            playwright.expect(box).to_have_text(QUESTION)
            box.press("Enter")
            asked = page.locator('[data-step-type="user_message"]')
            playwright.expect(asked).to_have_text(QUESTION)
            answer = page.locator('[data-step-type="assistant_message"]').last
            playwright.expect(answer).to_contain_text(SOURCE)
            playwright.expect(answer).to_contain_text(ANSWER)
            answer.get_by_text("Source 1").click()
            # The first line of its chunks, which several sources have, beside the answer.
            playwright.expect(page.get_by_text(TITLE).first).to_be_visible()
            box.fill(FOLLOW_UP)
            playwright.expect(box).to_have_text(FOLLOW_UP)
            box.press("Enter")
            playwright.expect(asked.last).to_have_text(FOLLOW_UP)
            answer = page.locator('[data-step-type="assistant_message"]').last
            playwright.expect(answer).to_contain_text(f"Searched for: {QUESTION} {FOLLOW_UP}")
            picture = Path(os.environ.get(SCREENSHOT) or tmp_path / "chat.png")
            picture.parent.mkdir(exist_ok=True)
            picture.write_bytes(small_png(page.screenshot()))
        finally:
            browser.close()
    assert picture.stat().st_size > 10_000
    assert outside == []  # no font or style sheet from elsewhere was needed


def sign_in(page: playwright.Page, name: str, password: str) -> None:
    page.locator("input#email, input[name=email], input[type=text]").first.fill(name)
    page.locator("input[type=password]").first.fill(password)
    page.locator("button[type=submit]").first.click()


def test_nobody_chats_without_signing_in(page_service: TestedService) -> None:
    with httpx.Client(base_url=page_service.url, trust_env=False, timeout=60) as stranger:
        assert stranger.get("/chat/user").status_code == 401
        wrong = stranger.post("/chat/login", data={"username": "x", "password": "wrong"})
        assert wrong.status_code == 401
        right = stranger.post("/chat/login", data={"username": "x", "password": TOKEN})
        assert right.status_code == 200
        assert stranger.get("/chat/user").status_code == 200


def test_the_page_fetches_nothing_from_elsewhere(page_service: TestedService) -> None:
    with httpx.Client(base_url=page_service.url, trust_env=False, timeout=60) as browser:
        policy = browser.get("/chat").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
