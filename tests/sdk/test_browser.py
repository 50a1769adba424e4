"""The official JavaScript SDK in a page in Chromium, over every transport and encoding it has there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, Page, Route
from tests.e2e.browser import chromium
from tests.sdk.conftest import WAYS, Deployment
from tests.sdk.line import Line

HERE = Path(__file__).parent
# Each scenario waits for at most half a minute at a time and would say what for; this is for the page itself.
_PATIENCE = 120


@pytest.fixture
async def page(deployment: Deployment, line: Line) -> AsyncIterator[Page]:
    """A page of the deployment's own origin, as the line shows it, with our scenarios in it."""

    async with chromium() as browser:
        page = await _new_page(browser)
        # No bound methods: Playwright leaves a mark on their object, which a frozen one refuses.
        await page.expose_function("api", lambda method, body: deployment.api(method, body))
        await page.expose_function("sign", lambda claims: deployment.sign(claims))
        await page.expose_function("cut", lambda: line.cut())
        await page.expose_function("mend", lambda: line.mend())
        yield page


async def _new_page(browser: Browser) -> Page:
    page = await browser.new_page()

    async def serve(route: Route) -> None:
        path = HERE / urlsplit(route.request.url).path.removeprefix("/sdk/")
        await route.fulfill(path=path, content_type="text/javascript")

    await page.route("**/sdk/**", serve)
    return page


@pytest.mark.parametrize(("transport", "encoding"), WAYS)
async def test_every_scenario_succeeds_in_a_page(
    page: Page, line: Line, transport: str, encoding: str
) -> None:
    # A page that the server really answered with: one that Playwright made up has no address, and Chromium
    # lets such a page connect to nothing on this machine.
    await page.goto(f"{line.url}/livez")
    build = "centrifuge.js" if encoding == "json" else f"centrifuge.{encoding}.js"
    await page.add_script_tag(url=f"/sdk/node_modules/centrifuge/dist/{build}")
    await page.add_script_tag(url="/sdk/page.mjs", type="module")
    await page.wait_for_function("window.play !== undefined")
    wrong: dict[str, str] = {}

    async def play(name: str) -> None:
        async with asyncio.timeout(_PATIENCE):
            error = await page.evaluate("(scene) => play(...scene)", [name, transport, encoding])
        if error is not None:
            wrong[name] = error

    groups = await page.evaluate("groups")
    for group in groups:
        if transport == "websocket":
            await asyncio.gather(*map(play, group))
        else:
            # A browser holds six HTTP/1.1 connections to one host, and each stream takes one of them.
            for name in group:
                await play(name)
    assert wrong == {}
    assert sum(map(len, groups)) > 20, "most of the scenarios are missing"
