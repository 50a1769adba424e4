"""The live page in a real Chromium, against the shipped `bongsu serve`: somebody clicks and looks."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import jwt
import pytest
import pytest_asyncio
import websockets
from playwright.async_api import Browser, FilePayload, Page, expect
from tests.e2e.browser import PHONE, Visit, Visitors, chromium
from tests.servers import RunningServer

StartServer = Callable[..., RunningServer]


# One Chromium for all of them, so all run in one event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")

# How long to look for what must appear: only a failing test waits that long.
expect.set_options(timeout=30_000)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running_chromium() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def visitors(running_chromium: Browser) -> AsyncIterator[Visitors]:
    visitors = Visitors(running_chromium)
    try:
        yield visitors
    finally:
        await visitors.leave()


async def live(visitors: Visitors, server: RunningServer) -> Visit:
    """A visitor whose page is connected: broadcast, feed and status."""
    visit = await visitors.visit(f"{server.url}/")
    await connected(visit.page)
    return visit


async def connected(page: Page, *, dev: bool = True) -> None:
    await expect(page.locator("#socket-state")).to_have_attribute("data-phase", "open")
    await expect(page.locator("#feed-state")).to_have_attribute("data-phase", "open" if dev else "listed")
    await expect(page.locator("#clients-here")).to_have_text("2" if dev else "1")


async def send(page: Page, text: str) -> None:
    await page.get_by_label("Message to broadcast").fill(text)
    await page.get_by_role("button", name="보내기").click()


def payload(name: str, content: bytes) -> FilePayload:
    return FilePayload(name=name, mimeType="application/octet-stream", buffer=content)


async def stored_hash(page: Page, filename: str) -> str | None:
    """The SHA-256 that the log shows for a file, once the log says that it is stored."""
    row = page.locator("#log tbody tr").filter(has_text=filename)
    await expect(row.locator("[data-state]")).to_have_attribute("data-state", "stored")
    return await row.locator("td.hash").get_attribute("title")


async def throttle(page: Page, *, bytes_per_second: int) -> None:
    """Make the page's uploads slow enough that what happens during one can be seen."""
    devtools = await page.context.new_cdp_session(page)
    await devtools.send(
        "Network.emulateNetworkConditions",
        {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": bytes_per_second},
    )


async def test_two_visitors_see_what_each_of_them_sends(
    visitors: Visitors, bongsu_server: StartServer
) -> None:
    server = bongsu_server()
    first = await live(visitors, server)
    second = await visitors.visit(f"{server.url}/")
    await expect(second.page.locator("#socket-state")).to_have_attribute("data-phase", "open")

    await send(first.page, "남산에 불이 올랐다")
    for visit in (first, second):
        await expect(visit.page.locator("#messages .text")).to_have_text(
            ["📢 새로운 알림: 남산에 불이 올랐다"]
        )
    await send(second.page, "보았다")
    for visit in (first, second):
        await expect(visit.page.locator("#messages .text")).to_have_text(
            ["📢 새로운 알림: 남산에 불이 올랐다", "📢 새로운 알림: 보았다"]
        )

    await expect(first.page.get_by_label("Message to broadcast")).to_have_value("")
    for visit in (first, second):
        assert visit.errors == []
        assert visit.hosts() == {f"127.0.0.1:{server.port}"}


async def test_markup_in_a_message_is_shown_and_not_run(
    visitors: Visitors, bongsu_server: StartServer
) -> None:
    server = bongsu_server()
    visit = await live(visitors, server)
    markup = (
        "<img src=x onerror=\"document.title='broken into'\"><script>document.title='broken into'</script>"
    )
    await send(visit.page, markup)
    await expect(visit.page.locator("#messages .text")).to_have_text([f"📢 새로운 알림: {markup}"])
    assert await visit.page.locator("#messages :is(img, script)").count() == 0
    assert "broken" not in await visit.page.title()
    assert visit.errors == []


async def test_the_counts_follow_who_comes_and_goes(visitors: Visitors, bongsu_server: StartServer) -> None:
    """A page holds two sockets, the broadcast's and the feed's: two visitors are four connections."""
    server = bongsu_server(BONGSU_REPLICA="namsan-1")
    first = await live(visitors, server)
    second = await visitors.visit(f"{server.url}/")
    for count in ("#clients-here", "#clients-cluster", "#replicas .clients"):
        await expect(first.page.locator(count)).to_have_text("4")
    await second.page.context.close()
    for count in ("#clients-here", "#clients-cluster", "#replicas .clients"):
        await expect(first.page.locator(count)).to_have_text("2")

    await expect(first.page.locator("#served-by")).to_have_text("namsan-1")
    await expect(first.page.locator("#replicas .name")).to_have_text(["namsan-1"])
    await expect(first.page.locator("#replicas li")).to_have_class("answered")
    await expect(first.page.locator("#broker-state")).to_have_text("memory · connected")
    await expect(first.page.locator("#dev-hint")).to_be_visible()
    await expect(first.page.locator("#token-form")).to_be_hidden()
    assert first.errors == []


async def test_chosen_files_are_stored_listed_with_their_hash_and_come_back(
    visitors: Visitors, bongsu_server: StartServer
) -> None:
    server = bongsu_server()
    visit, watcher = await live(visitors, server), await visitors.visit(f"{server.url}/")
    files = {"봉화 지도.bin": bytes(range(256)) * 4096, "empty & odd.txt": b""}
    await visit.page.locator("#files").set_input_files(
        [payload(name, content) for name, content in files.items()]
    )
    for page in (visit.page, watcher.page):
        for name, content in files.items():
            assert await stored_hash(page, name) == hashlib.sha256(content).hexdigest()
    # The progress rows have done their work: the log has taken over.
    await expect(visit.page.locator("#transfers li")).to_have_count(0)

    async with visit.page.expect_download() as started:
        await visit.page.get_by_role("link", name="봉화 지도.bin").click()
    download = await started.value
    content = await asyncio.to_thread(Path(await download.path()).read_bytes)
    assert content == files["봉화 지도.bin"]
    assert download.suggested_filename == "봉화 지도.bin"
    for each in (visit, watcher):
        assert each.errors == []
        assert each.hosts() == {f"127.0.0.1:{server.port}"}


async def test_the_log_shows_its_older_pages_on_demand(
    visitors: Visitors, bongsu_server: StartServer
) -> None:
    server = bongsu_server()
    async with httpx.AsyncClient(base_url=server.url) as http:
        for number in range(51):
            answer = await http.post("/upload-file/", files={"file": (f"{number}.txt", b"signal")})
            assert answer.status_code == 200
    visit = await live(visitors, server)
    await expect(visit.page.locator("#log tbody tr")).to_have_count(50)
    await expect(visit.page.locator("#log tbody td.name").first).to_have_text("50.txt")
    await visit.page.get_by_role("button", name="More").click()
    await expect(visit.page.locator("#log tbody tr")).to_have_count(51)
    await expect(visit.page.locator("#log tbody td.name").last).to_have_text("0.txt")
    await expect(visit.page.get_by_role("button", name="More")).to_be_hidden()
    assert visit.errors == []


async def test_a_dropped_file_is_uploaded(visitors: Visitors, bongsu_server: StartServer) -> None:
    server = bongsu_server()
    visit = await live(visitors, server)
    transfer = await visit.page.evaluate_handle(
        """() => {
            const transfer = new DataTransfer();
            transfer.items.add(new File(["signal"], "dropped.txt"));
            return transfer;
        }"""
    )
    await visit.page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    assert await stored_hash(visit.page, "dropped.txt") == hashlib.sha256(b"signal").hexdigest()
    assert visit.errors == []


async def test_progress_is_shown_while_a_file_leaves_and_can_be_cancelled(
    visitors: Visitors, bongsu_server: StartServer
) -> None:
    server = bongsu_server()
    visit = await live(visitors, server)
    await throttle(visit.page, bytes_per_second=100_000)
    await visit.page.locator("#files").set_input_files([payload("slow.bin", b"x" * 2_000_000)])
    await visit.page.wait_for_function(
        """() => {
            const value = document.querySelector("#transfers progress")?.value;
            return value > 0 && value < 1;
        }"""
    )
    await expect(visit.page.locator("#transfers .detail")).to_contain_text("/ 1.9 MiB")
    await visit.page.get_by_role("button", name="Cancel").click()
    await expect(visit.page.locator("#transfers li")).to_have_count(0)
    # On the server, too.
    await expect(visit.page.locator("#log tbody tr")).to_have_count(0)
    assert visit.errors == []


async def begun(visit: Visit, file: Path) -> str:
    """Choose `file`; its address, once part of it has left and the server keeps some."""
    await throttle(visit.page, bytes_per_second=4_000_000)
    async with visit.page.expect_response("**/files/") as created:
        await visit.page.locator("#files").set_input_files(file)
    address = str((await (await created.value).all_headers())["location"])
    await visit.page.wait_for_function("() => document.querySelector('#transfers progress')?.value > 0.1")
    return address


async def test_a_file_that_was_interrupted_goes_on_when_it_is_chosen_again(
    visitors: Visitors, bongsu_server: StartServer, tmp_path: Path
) -> None:
    """setup: half a file has left. do: reload the page, choose the file again. expect: the same upload."""
    server = bongsu_server()
    visit = await live(visitors, server)
    file = tmp_path / "large.bin"
    content = bytes(range(256)) * 4096 * 8
    await asyncio.to_thread(file.write_bytes, content)
    address = await begun(visit, file)
    await visit.page.reload()
    await connected(visit.page)
    await throttle(visit.page, bytes_per_second=-1)
    async with visit.page.expect_request(lambda request: request.method == "PATCH") as going_on:
        await visit.page.locator("#files").set_input_files(file)
    going = await going_on.value
    assert going.url.endswith(address)
    assert int(going.headers["upload-offset"]) > 0
    assert await stored_hash(visit.page, "large.bin") == hashlib.sha256(content).hexdigest()
    await expect(visit.page.locator("#log tbody tr")).to_have_count(1)
    assert await visit.page.evaluate("Object.keys(localStorage)") == []


async def test_a_file_goes_on_by_itself_after_its_server_died(
    visitors: Visitors, bongsu_server: StartServer, tmp_path: Path
) -> None:
    server = bongsu_server()
    visit = await live(visitors, server)
    file = tmp_path / "large.bin"
    content = bytes(range(256)) * 4096 * 8
    await asyncio.to_thread(file.write_bytes, content)
    await begun(visit, file)
    server.kill()
    await expect(visit.page.locator("#transfers .detail")).to_contain_text("trying again")
    await throttle(visit.page, bytes_per_second=-1)
    server.start()
    assert await stored_hash(visit.page, "large.bin") == hashlib.sha256(content).hexdigest()
    await expect(visit.page.locator("#log tbody tr")).to_have_count(1)


async def test_a_refused_file_says_why_in_the_servers_words(
    visitors: Visitors, bongsu_server: StartServer
) -> None:
    server = bongsu_server(BONGSU_UPLOAD__MAX_SIZE="1000")
    visit = await live(visitors, server)
    async with visit.page.expect_response("**/files/") as answered:
        await visit.page.locator("#files").set_input_files([payload("large.bin", b"x" * 5000)])
    problem = await (await answered.value).json()
    assert problem["code"] == "upload_too_large"
    await expect(visit.page.locator("#transfers .failed .detail")).to_have_text(problem["detail"])
    await visit.page.get_by_role("button", name="Dismiss").click()
    await expect(visit.page.locator("#transfers li")).to_have_count(0)


async def test_nothing_is_wider_than_a_phone(visitors: Visitors, bongsu_server: StartServer) -> None:
    server = bongsu_server(BONGSU_REPLICA="a-replica-with-a-name-as-long-as-pods-have-them-7d9f8b6c5-x2x4z")
    visit = await visitors.visit(f"{server.url}/", viewport=PHONE)
    await connected(visit.page)
    await send(visit.page, "봉" * 300 + "x" * 300)
    await expect(visit.page.locator("#messages .text")).to_have_count(1)
    await visit.page.locator("#files").set_input_files([payload("n" * 120 + ".txt", b"signal")])
    await stored_hash(visit.page, "nnn")
    overflow = await visit.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert overflow == 0
    assert visit.errors == []


async def test_only_the_last_two_hundred_messages_are_kept_and_the_page_says_so(
    visitors: Visitors, bongsu_server: StartServer
) -> None:
    server = bongsu_server()
    visit = await live(visitors, server)
    async with websockets.connect(f"{server.ws_url}/ws") as sender:
        for number in range(250):
            await sender.send(f"m{number}")
            await sender.recv()
    await expect(visit.page.locator("#messages .text").last).to_have_text("📢 새로운 알림: m249")
    await expect(visit.page.locator("#messages .text")).to_have_count(200)
    await expect(visit.page.locator("#messages .text").first).to_have_text("📢 새로운 알림: m50")
    await expect(visit.page.locator("#messages .note")).to_contain_text("50 older ones removed")


async def test_the_page_comes_back_by_itself_after_its_server_died(
    visitors: Visitors, bongsu_server: StartServer
) -> None:
    server = bongsu_server()
    visit = await live(visitors, server)
    server.kill()
    await expect(visit.page.locator("#socket-state")).to_have_attribute("data-phase", "waiting")
    await expect(visit.page.get_by_role("button", name="보내기")).to_be_disabled()
    await expect(visit.page.locator("#status-error")).not_to_be_empty()
    server.start()
    await expect(visit.page.locator("#socket-state")).to_have_attribute("data-phase", "open")
    await send(visit.page, "다시 올랐다")
    await expect(visit.page.locator("#messages .text")).to_have_text(["📢 새로운 알림: 다시 올랐다"])
    await expect(visit.page.locator("#status-error")).to_be_empty()


async def test_outside_dev_a_pasted_token_opens_the_page_and_is_in_no_address(
    visitors: Visitors, bongsu_server: StartServer
) -> None:
    secret = "a-secret-of-the-tests-that-is-long-enough"
    server = bongsu_server(dev=False, BONGSU_TOKEN__HMAC_SECRET=secret)
    token = jwt.encode({"sub": "42", "exp": int(time.time()) + 600}, secret, algorithm="HS256")
    visit = await visitors.visit(f"{server.url}/")
    await expect(visit.page.locator("#socket-state")).to_have_attribute("data-phase", "locked")
    await expect(visit.page.locator("#dev-hint")).to_be_hidden()

    await visit.page.get_by_label("Connection token").fill("not a token")
    await visit.page.get_by_role("button", name="Use").click()
    await expect(visit.page.locator("#token-note")).to_contain_text("Not a JWT")
    await visit.page.get_by_label("Connection token").fill(token)
    await visit.page.get_by_role("button", name="Use").click()
    await connected(visit.page, dev=False)

    content = b"secret signal"
    await visit.page.locator("#files").set_input_files([payload("signal.txt", content)])
    assert await stored_hash(visit.page, "signal.txt") == hashlib.sha256(content).hexdigest()
    async with visit.page.expect_download() as started:
        await visit.page.get_by_role("link", name="signal.txt").click()
    assert await asyncio.to_thread(Path(await (await started.value).path()).read_bytes) == content

    signature = token.rsplit(".", 1)[1]
    assert not any(signature in address for address in visit.addresses)
    assert signature not in server.log()
    await visit.page.get_by_role("button", name="Forget").click()
    await expect(visit.page.locator("#socket-state")).to_have_attribute("data-phase", "locked")
    assert visit.errors == []


async def test_the_documentation_shows_every_operation_and_asks_nothing_of_others(
    visitors: Visitors, bongsu_server: StartServer
) -> None:
    server = bongsu_server()
    visit = await visitors.visit(f"{server.url}/docs")
    document = await (await visit.page.request.get(f"{server.url}/openapi.json")).json()
    methods = {"get", "put", "post", "delete", "options", "head", "patch"}
    operations = sum(len(methods & set(path)) for path in document["paths"].values())
    assert operations > 0
    await expect(visit.page.locator(".opblock")).to_have_count(operations)

    upload = visit.page.locator(".opblock-post").filter(has=visit.page.locator('[data-path="/upload-file/"]'))
    await upload.locator(".opblock-summary-control").click()
    await upload.get_by_role("button", name="Try it out").click()
    await upload.locator('input[type="file"]').set_input_files([payload("from-docs.txt", b"docs")])
    async with visit.page.expect_response("**/upload-file/") as answered:
        await upload.get_by_role("button", name="Execute").click()
    assert (await answered.value).status == 200
    assert visit.errors == []
    assert visit.hosts() == {f"127.0.0.1:{server.port}"}
