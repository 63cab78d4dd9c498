"""The page in a real browser: Debian's Chromium without a window."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, Route, sync_playwright

from tests.runtime.serve.conftest import Client

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# To Swagger UI 127.0.0.1 is a developer's machine; what it loads for a server with a name is to be seen.
NAMED = "--host-resolver-rules=MAP starflow.example 127.0.0.1"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt install chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", NAMED])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def page(client: Client, browser: Browser) -> Iterator[Page]:
    opened = browser.new_page()
    opened.set_default_timeout(60_000)
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(f"http://127.0.0.1:{client.port}/")
    opened.wait_for_selector("#model option", state="attached")
    yield opened
    assert not errors


def shown(page: Page) -> list[str]:
    return [image.get_attribute("src") or "" for image in page.query_selector_all("#images img")]


def test_a_class_becomes_images(client: Client, page: Page) -> None:
    page.select_option("#model", "tiny")
    assert page.is_hidden("#caption") and page.is_visible("#class")
    page.select_option("#class", "4")
    for field, value in (("count", "2"), ("guidance", "2"), ("seed", "7")):
        page.fill(f"#{field}", value)
    page.click("#go")
    page.wait_for_function("document.getElementById('state').textContent.startsWith('2 images in')")
    answer = client.images(model="tiny", prompt="4", n=2, seed=7, guidance=2.0).json
    assert shown(page) == [f"data:image/png;base64,{image['b64_json']}" for image in answer["data"]]
    assert page.inner_text("figcaption >> nth=1") == "seed 8"


def test_a_link_fills_the_form_and_starts(client: Client, page: Page) -> None:
    page.goto(f"http://127.0.0.1:{client.port}/?fresh#model=captioned&caption=a+cat&count=1&guidance=1&seed=3&go=1")
    page.wait_for_function("document.getElementById('state').textContent.startsWith('1 image in')")
    answer = client.images(model="captioned", prompt="a cat", seed=3, guidance=1.0).json
    assert shown(page) == [f"data:image/png;base64,{answer['data'][0]['b64_json']}"]


def test_what_the_server_refuses_is_said(page: Page) -> None:
    page.fill("#seed", "99999999999999999999")
    page.click("#go")
    page.wait_for_selector("#state.error")
    assert "a number of 21 digits" in page.inner_text("#state") and page.inner_text("#go") == "Sample"


def test_the_documentation_needs_no_network(client: Client, browser: Browser) -> None:
    page, beyond = browser.new_page(), list[str]()
    own = f"http://starflow.example:{client.port}/"

    def loopback_only(route: Route) -> None:
        if route.request.url.startswith((own, "data:")):
            route.continue_()
        else:
            beyond.append(route.request.url)
            route.abort()

    page.route("**/*", loopback_only)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{own}docs", wait_until="networkidle")
    page.locator(".opblock-summary-path", has_text="generations").click(timeout=60_000)
    page.wait_for_selector("text=Make images from a caption or a class")
    assert page.evaluate("getComputedStyle(document.querySelector('.swagger-ui .opblock')).borderRadius") == "4px"
    assert beyond == [] and errors == []
