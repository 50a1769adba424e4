"""Uppy's dashboard as examples/uppy.js sets it up, bundled as it says and used by somebody who clicks."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from deploy.cluster import REPOSITORY
from playwright.async_api import FilePayload, Page, expect
from tests.e2e.browser import Visit, chromium
from tests.sdk.conftest import Deployment

MIB = 2**20
_PATIENCE = 60
_MODULES = Path(__file__).parent / "node_modules"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the bundled example: upload.js and upload.css."""
    directory = tmp_path_factory.mktemp("uppy")
    subprocess.run(
        [
            _MODULES / ".bin" / "esbuild",
            REPOSITORY / "examples" / "uppy.js",
            "--bundle",
            f"--outfile={directory}/upload.js",
            "--log-level=warning",
        ],
        # The example has no packages beside it.
        env={**os.environ, "NODE_PATH": str(_MODULES)},
        check=True,
    )
    return directory


@pytest.fixture
async def page(deployment: Deployment, bundle: Path) -> AsyncIterator[Page]:
    """A page of the deployment with the upload area in it, and nothing to complain about at the end."""
    async with chromium() as browser:
        visit = Visit(await browser.new_page())
        visit.page.set_default_timeout(_PATIENCE * 1000)
        # Browsers ask for it by themselves, and complain when there is none.
        await visit.page.route("**/favicon.ico", lambda route: route.fulfill(status=204))
        visit.watch()
        await visit.page.goto(f"{deployment.url}/livez")
        await visit.page.add_style_tag(path=bundle / "upload.css")
        await visit.page.add_script_tag(path=bundle / "upload.js")
        await visit.page.evaluate("window.uppy = uploadArea({ target: document.body, url: location.origin })")
        yield visit.page
        assert visit.errors == []


async def choose(page: Page, *files: FilePayload) -> None:
    """Click on “browse files” and choose some."""
    async with page.expect_file_chooser() as chooser:
        await page.get_by_role("button", name="browse files").click()
    await (await chooser.value).set_files(files)


def payload(name: str, content: bytes) -> FilePayload:
    return FilePayload(name=name, mimeType="application/x-beacon", buffer=content)


async def check(deployment: Deployment, page: Page, contents: dict[str, bytes]) -> None:
    """What the dashboard holds for uploaded is stored, as it was chosen."""
    await expect(page.get_by_text("Complete", exact=True)).to_be_visible(timeout=_PATIENCE * 1000)
    addresses = await page.evaluate("uppy.getFiles().map(({ name, uploadURL }) => [name, uploadURL])")
    assert {name for name, _ in addresses} == contents.keys()
    async with asyncio.timeout(_PATIENCE), httpx.AsyncClient(base_url=deployment.url) as http:
        for name, address in addresses:
            while True:
                record = (await http.get(f"/uploads/{address.rpartition('/')[2]}")).json()
                if record["state"] == "stored":
                    break
                await asyncio.sleep(0.05)
            assert (record["filename"], record["content_type"]) == (name, "application/x-beacon")
            assert record["sha256"] == hashlib.sha256(contents[name]).hexdigest()


async def test_files_are_chosen_and_uploaded_with_two_clicks(deployment: Deployment, page: Page) -> None:
    contents = {"봉수.bin": os.urandom(2 * MIB + 1), "empty.bin": b"", "b.bin": os.urandom(100)}
    await choose(page, *(payload(name, content) for name, content in contents.items()))
    await page.get_by_role("button", name="Upload 3 files").click()
    await check(deployment, page, contents)


async def test_an_upload_is_paused_with_a_click_and_goes_on_with_another(
    deployment: Deployment, page: Page
) -> None:
    contents = {"paused.bin": os.urandom(4 * MIB)}
    devtools = await page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": MIB}
    await devtools.send("Network.emulateNetworkConditions", slow)
    await choose(page, *(payload(name, content) for name, content in contents.items()))
    await page.get_by_role("button", name="Upload 1 file").click()
    await page.wait_for_function("uppy.getFiles()[0].progress.bytesUploaded > 0")
    await page.get_by_role("button", name="Pause", exact=True).click()
    await expect(page.get_by_text("Upload paused", exact=True)).to_be_visible()
    await devtools.send("Network.emulateNetworkConditions", {**slow, "uploadThroughput": -1})
    await page.get_by_role("button", name="Resume", exact=True).click()
    await check(deployment, page, contents)
