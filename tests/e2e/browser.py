"""A real Chromium for tests, and what its pages complained about."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from playwright.async_api import Browser, ConsoleMessage, Page, Request, ViewportSize, async_playwright

CHROMIUM = "/usr/bin/chromium"
_FLAGS = [
    "--no-sandbox",  # the tests may run as root, where Chromium refuses its sandbox
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP = ViewportSize(width=1280, height=900)
PHONE = ViewportSize(width=390, height=844)


@dataclass
class Visit:
    """One browser context with one page, and all that it logged as an error or asked of the network."""

    page: Page
    errors: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Note from now on: console errors and warnings, uncaught exceptions, requests and sockets."""

        def on_console(message: ConsoleMessage) -> None:
            if message.type in {"error", "warning"}:
                self.errors.append(message.text)

        def on_request(request: Request) -> None:
            self.addresses.append(request.url)

        self.page.on("console", on_console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", on_request)
        self.page.on("websocket", lambda socket: self.addresses.append(socket.url))

    def hosts(self) -> set[str]:
        """Every host and port the page talked to."""
        return {urlsplit(url).netloc for url in self.addresses if not url.startswith(("data:", "blob:"))}


class Visitors:
    """Opens pages, each in a context (cookies, storage) of its own, until all of them leave."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser

    async def visit(self, url: str, *, viewport: ViewportSize = DESKTOP) -> Visit:
        """Open `url` as a new visitor and return when it has loaded."""
        context = await self._browser.new_context(viewport=viewport, accept_downloads=True)
        page = await context.new_page()
        visit = Visit(page)
        visit.watch()
        await page.goto(url)
        return visit

    async def leave(self) -> None:
        for context in self._browser.contexts:
            await context.close()


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A headless Chromium that ends with the block."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        try:
            yield browser
        finally:
            await browser.close()
