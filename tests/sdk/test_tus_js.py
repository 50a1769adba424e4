"""tus-js-client, unmodified: in node, and in a page of another origin in Chromium."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Page, Route
from tests.e2e.browser import chromium
from tests.sdk.conftest import Deployment
from tests.sdk.line import Line

HERE = Path(__file__).parent
# Each scenario waits for at most a minute at a time and would say what for; this is for node and the page.
_PATIENCE = 300


def test_every_scenario_succeeds_with_the_javascript_client(deployment: Deployment) -> None:
    """The scenarios, one test of node's own runner each, are in tests/sdk/uploads."""
    played = subprocess.run(
        ["node", "--test-reporter=spec", "play.mjs"],
        cwd=HERE / "uploads",
        env={**os.environ, "BONGSU_URL": deployment.url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_PATIENCE,
        check=False,
    )
    assert played.returncode == 0, played.stdout
    assert "\nℹ skipped 0\n" in played.stdout, played.stdout


@pytest.fixture
async def page(deployment: Deployment, line: Line) -> AsyncIterator[Page]:
    """A page of the deployment; it uploads over the line, which is another origin."""
    async with chromium() as browser:
        page = await browser.new_page()

        async def serve(route: Route) -> None:
            path = HERE / urlsplit(route.request.url).path.removeprefix("/sdk/")
            await route.fulfill(path=path, content_type="text/javascript")

        await page.route("**/sdk/**", serve)
        # No bound methods: Playwright leaves a mark on their object.
        await page.expose_function("cut", lambda: line.cut())
        await page.expose_function("mend", lambda: line.mend())
        # A page that the server really answered with: one that Playwright made up has no address.
        await page.goto(f"{deployment.url}/livez")
        yield page


async def test_every_scenario_succeeds_in_a_page_of_another_origin(page: Page, line: Line) -> None:
    await page.add_script_tag(url="/sdk/node_modules/tus-js-client/dist/tus.js")
    await page.add_script_tag(url="/sdk/uploads/page.mjs", type="module")
    await page.wait_for_function("window.play !== undefined")
    wrong: dict[str, str] = {}
    names = await page.evaluate("names")
    for name in names:
        async with asyncio.timeout(_PATIENCE):
            error = await page.evaluate("(scene) => play(...scene)", [name, line.url])
        if error is not None:
            wrong[name] = error
    assert wrong == {}
    assert len(names) > 10, "most of the scenarios are missing"
