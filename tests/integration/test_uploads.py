"""Uploads over real HTTP, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update
from sqlmodel import col
from tests.integration.uploading import UploadServer, serving

from bongsu.db.columns import clock
from bongsu.db.models import Upload, UploadLog
from bongsu.protocol.messages import Principal
from bongsu.uploads.options import UploadOptions
from bongsu.uploads.stores import SegmentWriter, Store, StoreFull, StoreUnavailable

Serve = Callable[..., Awaitable[UploadServer]]

ANSWER = "파일 업로드 중..."
MIB = 1024 * 1024


@pytest.fixture
async def serve(database_url: str, tmp_path: Path) -> AsyncIterator[Serve]:
    """Starts replicas that share one database and one directory."""
    async with AsyncExitStack() as stack:

        async def start(**given: Any) -> UploadServer:
            return await stack.enter_async_context(serving(database_url, tmp_path / "files", **given))

        yield start


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=30) as client:
        yield client


async def curl(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec("curl", "-sS", *arguments, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return output.decode()


async def rows(server: UploadServer) -> int:
    async with server.database.session() as session:
        return (await session.execute(select(func.count()).select_from(Upload))).scalar_one()


def form(content: bytes, filename: str = "a.bin") -> dict[str, Any]:
    return {"files": {"file": (filename, content, "application/x-thing")}}


async def test_curl_uploads_a_file_that_is_answered_stored_logged_and_served_unchanged(
    serve: Serve, tmp_path: Path, client: httpx.AsyncClient
) -> None:
    server = await serve()
    content = os.urandom(5 * MIB + 17)
    source = tmp_path / "한글 파일.bin"
    await asyncio.to_thread(source.write_bytes, content)
    answer = json.loads(await curl("-F", f"file=@{source}", f"{server.url}/upload-file/"))
    assert answer["message"] == ANSWER
    assert answer["status_url"] == f"/uploads/{answer['id']}"
    event = await server.stored(answer["id"])

    upload = (await client.get(server.url + answer["status_url"])).json()
    assert upload == event
    assert upload["filename"] == "한글 파일.bin"
    assert upload["size"] == len(content)
    assert upload["sha256"] == hashlib.sha256(content).hexdigest()
    assert (upload["state"], upload["received_by"], upload["finished_by"]) == ("stored", "r1", "r1")
    assert upload["created_at"] <= upload["received_at"] <= upload["stored_at"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", upload["stored_at"])
    assert (upload["attempts"], upload["error"]) == (1, None)
    assert server.states(answer["id"]) == ["receiving", "received", "processing", "stored"]
    assert (await client.get(f"{server.url}/uploads")).json() == {"uploads": [upload], "next": None}
    assert (await client.get(f"{server.url}/uploads/{answer['id']}/content")).content == content
    assert server.kept_files() == [f"objects/{answer['id'][-2:]}/{answer['id']}.1"]


async def test_an_api_consumer_is_told_where_to_look(serve: Serve, client: httpx.AsyncClient) -> None:
    server = await serve()
    response = await client.post(f"{server.url}/uploads", **form(b"x"))
    assert (response.status_code, response.json()["message"]) == (202, ANSWER)
    assert response.headers["location"] == response.json()["status_url"]


async def test_the_path_works_without_its_slash(serve: Serve, client: httpx.AsyncClient) -> None:
    server = await serve()
    assert (await client.post(f"{server.url}/upload-file", **form(b"x"))).status_code == 200


async def test_an_empty_file_is_stored(serve: Serve, client: httpx.AsyncClient) -> None:
    server = await serve()
    upload = await server.stored((await client.post(f"{server.url}/uploads", **form(b""))).json()["id"])
    assert (upload["size"], upload["sha256"]) == (0, hashlib.sha256().hexdigest())
    response = await client.get(f"{server.url}/uploads/{upload['id']}/content")
    assert (response.status_code, response.content) == (200, b"")


async def test_a_name_that_is_a_path_stays_a_name(serve: Serve, client: httpx.AsyncClient) -> None:
    server = await serve()
    response = await client.post(f"{server.url}/upload-file/", **form(b"x", "../../etc/passwd"))
    upload = await server.stored(response.json()["id"])
    assert upload["filename"] == "passwd"
    assert all("passwd" not in name for name in server.kept_files())


async def test_an_upload_to_one_replica_is_listed_and_served_by_another(
    serve: Serve, client: httpx.AsyncClient
) -> None:
    first, second = await serve(replica="r1"), await serve(replica="r2")
    upload_id = (await client.post(f"{first.url}/uploads", **form(b"shared"))).json()["id"]
    async with asyncio.timeout(30):
        while (await client.get(f"{second.url}/uploads/{upload_id}")).json()["state"] != "stored":
            pass
    assert (await client.get(f"{second.url}/uploads/{upload_id}/content")).content == b"shared"


async def test_a_job_that_a_dead_replica_left_is_done_by_the_next_one(
    serve: Serve, client: httpx.AsyncClient
) -> None:
    dead = await serve(replica="dead", working=False)
    upload_id = (await client.post(f"{dead.url}/uploads", **form(b"left"))).json()["id"]
    assert (await client.get(f"{dead.url}/uploads/{upload_id}")).json()["state"] == "received"
    response = await client.get(f"{dead.url}/uploads/{upload_id}/content")
    assert (response.status_code, response.json()["code"]) == (409, "upload_not_stored")
    upload = await (await serve(replica="next")).stored(upload_id)
    assert (upload["received_by"], upload["finished_by"]) == ("dead", "next")


async def test_many_at_once_are_each_stored_and_logged_once(serve: Serve, client: httpx.AsyncClient) -> None:
    server, other = await serve(replica="r1"), await serve(replica="r2")
    contents = [os.urandom(1000 * n) for n in range(20)]
    answers = await asyncio.gather(
        *(
            client.post(f"{(server, other)[n % 2].url}/uploads", **form(content))
            for n, content in enumerate(contents)
        )
    )
    ids = [answer.json()["id"] for answer in answers]
    states: set[str] = set()
    async with asyncio.timeout(30):
        while states != {"stored"}:
            uploads = (await client.get(f"{server.url}/uploads")).json()["uploads"]
            states = {upload["state"] for upload in uploads}
    async with server.database.session() as session:
        logged = (await session.execute(select(col(UploadLog.upload_id), col(UploadLog.sha256)))).all()
    assert sorted(map(tuple, logged)) == sorted(
        (upload_id, hashlib.sha256(content).hexdigest())
        for upload_id, content in zip(ids, contents, strict=True)
    )
    assert len(server.kept_files()) == 20


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"files": {"other": ("a", b"x")}}, 400, "file_field_missing"),
    ({"files": {"file": (None, b"x")}}, 400, "file_name_missing"),
    ({"data": {"file": "x"}}, 415, "unsupported_media_type"),
    ({}, 415, "unsupported_media_type"),
    (
        {"content": b"--x--cut", "headers": {"content-type": "multipart/form-data; boundary=y"}},
        400,
        "multipart_malformed",
    ),
]


async def test_what_is_no_upload_is_refused_and_leaves_nothing(
    serve: Serve, client: httpx.AsyncClient
) -> None:
    server = await serve()
    for request, status, code in REFUSED:
        response = await client.post(f"{server.url}/upload-file/", **request)
        assert (response.status_code, response.json()["code"]) == (status, code)
        assert response.headers["content-type"] == "application/problem+json"
    assert (await rows(server), server.kept_files(), server.events) == (0, [], [])


async def test_a_file_over_the_limit_is_refused_before_it_is_read_when_its_length_is_declared(
    serve: Serve, tmp_path: Path
) -> None:
    server = await serve(options=UploadOptions(max_size=1000))
    source = tmp_path / "big"
    await asyncio.to_thread(source.write_bytes, bytes(20 * MIB))
    output = await curl("-w", "\n%{http_code}", "-F", f"file=@{source}", f"{server.url}/uploads")
    document, _, status = output.rpartition("\n")
    assert json.loads(document)["code"] == "upload_too_large"
    assert json.loads(document)["max_size"] == 1000
    assert status == "413"
    assert (await rows(server), server.kept_files()) == (0, [])


async def test_a_file_over_the_limit_without_a_declared_length_is_refused_as_it_arrives(
    serve: Serve, tmp_path: Path
) -> None:
    server = await serve(options=UploadOptions(max_size=2 * MIB))
    source = tmp_path / "big"
    await asyncio.to_thread(source.write_bytes, bytes(20 * MIB))
    chunked = "Transfer-Encoding: chunked"
    output = await curl(
        "-w", "\n%{http_code}", "-H", chunked, "-F", f"file=@{source}", f"{server.url}/uploads"
    )
    document, _, status = output.rpartition("\n")
    assert (json.loads(document)["code"], status) == ("upload_too_large", "413")
    await server.deleted()
    assert (await rows(server), server.kept_files()) == (0, [])


async def test_a_file_of_exactly_the_limit_is_accepted(serve: Serve, client: httpx.AsyncClient) -> None:
    server = await serve(options=UploadOptions(max_size=1000))
    assert (await client.post(f"{server.url}/uploads", **form(bytes(1000)))).status_code == 202
    response = await client.post(f"{server.url}/uploads", **form(bytes(1001)))
    assert (response.status_code, response.json()["code"]) == (413, "upload_too_large")


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(serve: Serve) -> None:
    server = await serve()
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        b"POST /uploads HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n"
        b"Content-Type: multipart/form-data; boundary=cut\r\n\r\n"
        b'--cut\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + bytes(3 * MIB)
    )
    await writer.drain()
    async with asyncio.timeout(30):
        while not server.kept_files():  # noqa: ASYNC110  # the first bytes in the store are told to nobody
            await asyncio.sleep(0.01)
    writer.transport.abort()
    await server.deleted()
    assert (await rows(server), server.kept_files()) == (0, [])


async def test_a_form_cut_off_by_a_proxy_is_refused_and_leaves_nothing(serve: Serve) -> None:
    """The length agrees, the last boundary is missing: a whole request with half a file."""
    server = await serve()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    body = b'--cut\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nhalf'
    head = f"POST /uploads HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    writer.write(head.encode() + b"Content-Type: multipart/form-data; boundary=cut\r\n\r\n" + body)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 400")
    assert b'"multipart_malformed"' in answer
    assert (await rows(server), server.kept_files()) == (0, [])


class FailingStore:
    """A store whose disk fails after some bytes: what a real one raises, at the seam where it does."""

    def __init__(self, store: Store, error: Exception) -> None:
        self._store = store
        self._error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def open_segment(self, key: str) -> SegmentWriter:
        writer = await self._store.open_segment(key)

        async def fail(data: bytes | bytearray | memoryview) -> None:
            raise self._error

        writer.write = fail  # type: ignore[method-assign]
        return writer


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(StoreFull("full"), 507, "disk_full"), (StoreUnavailable("away"), 503, "storage_unavailable")],
)
async def test_a_disk_that_fails_in_the_middle_is_a_clear_error_and_leaves_nothing(
    serve: Serve, tmp_path: Path, error: Exception, status: int, code: str
) -> None:
    def failing(store: Store) -> Store:
        broken: Any = FailingStore(store, error)
        return broken  # type: ignore[no-any-return]

    server = await serve(wrap=failing)
    source = tmp_path / "big"
    await asyncio.to_thread(source.write_bytes, bytes(8 * MIB))
    output = await curl("-w", "\n%{http_code}", "-F", f"file=@{source}", f"{server.url}/upload-file/")
    document, _, answered = output.rpartition("\n")
    assert (json.loads(document)["code"], int(answered)) == (code, status)
    assert (await rows(server), server.kept_files()) == (0, [])


async def test_a_raw_body_is_a_file_too(serve: Serve, client: httpx.AsyncClient, tmp_path: Path) -> None:
    server = await serve()
    content = os.urandom(2 * MIB + 3)
    source = tmp_path / "f"
    await asyncio.to_thread(source.write_bytes, content)
    url = f"{server.url}/uploads?filename=%ED%8C%8C%EC%9D%BC.bin"
    whole = json.loads(await curl("-T", str(source), url))
    chunked = json.loads(await curl("-T", str(source), "-H", "Transfer-Encoding: chunked", url))
    for answer in (whole, chunked):
        upload = await server.stored(answer["id"])
        assert (upload["filename"], upload["size"]) == ("파일.bin", len(content))
        assert upload["sha256"] == hashlib.sha256(content).hexdigest()
    response = await client.put(url, content=b"x", headers={"content-type": "Text/Plain; charset=utf-8"})
    assert (response.status_code, response.headers["location"]) == (202, response.json()["status_url"])
    assert (await server.stored(response.json()["id"]))["content_type"] == "text/plain"


async def test_a_raw_body_without_a_name_or_that_is_a_part_is_refused(
    serve: Serve, client: httpx.AsyncClient
) -> None:
    server = await serve(options=UploadOptions(max_size=1000))
    for query, headers, size, code in (
        ("", {}, 1, "file_name_missing"),
        ("filename=%2F", {}, 1, "file_name_missing"),
        ("filename=a", {"content-range": "bytes 0-0/5"}, 1, "bad_request"),
        ("filename=a", {"idempotency-key": ""}, 1, "bad_request"),
        ("filename=a", {}, 1001, "upload_too_large"),
    ):
        response = await client.put(f"{server.url}/uploads?{query}", content=bytes(size), headers=headers)
        assert response.json()["code"] == code
    assert (await rows(server), server.kept_files()) == (0, [])


async def test_a_request_that_is_sent_again_with_its_key_is_answered_as_the_first_was(
    serve: Serve, client: httpx.AsyncClient
) -> None:
    """The first answer was lost on its way: its client cannot know whether the file arrived."""
    first, second = await serve(replica="r1"), await serve(replica="r2")

    async def put(server: UploadServer, key: str, who: str = "") -> httpx.Response:
        headers = {"idempotency-key": key, "x-who": who}
        return await client.put(f"{server.url}/uploads?filename=a", content=b"once", headers=headers)

    async def post(server: UploadServer, key: str) -> httpx.Response:
        headers = {"idempotency-key": key}
        return await client.post(f"{server.url}/uploads", **form(bytes(3 * MIB)), headers=headers)

    answers = [await put(first, "k"), await put(second, "k")]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json() == answers[1].json()
    await first.stored(answers[0].json()["id"])
    assert (await put(second, "k")).json() == answers[0].json()
    forms = [(await post(first, "l")).json(), (await post(second, "l")).json()]
    assert forms[0] == forms[1] != answers[0].json()
    await put(first, "k", "ann")
    assert await rows(first) == 3


async def test_a_key_that_comes_with_another_file_is_refused_before_that_is_read(
    serve: Serve, client: httpx.AsyncClient
) -> None:
    """It was answered 202 with the other upload, which may have had no byte; the file was thrown away."""
    server = await serve()
    key = {"idempotency-key": "k"}
    tus = {"tus-resumable": "1.0.0", "upload-length": "4"}

    async def create(key: dict[str, str]) -> httpx.Response:
        return await client.post(f"{server.url}/files/", headers=tus | key)

    async def put(name: str, content: bytes, key: dict[str, str]) -> httpx.Response:
        return await client.put(f"{server.url}/uploads?filename={name}", content=content, headers=key)

    def refused(response: httpx.Response) -> bool:
        return (response.status_code, response.json().get("code")) == (422, "idempotency_key_reused")

    assert (await create(key)).status_code == 201
    assert refused(await put("upload", b"once", key))
    assert refused(await client.post(f"{server.url}/uploads", **form(bytes(3 * MIB)), headers=key))
    other = {"idempotency-key": "l"}
    assert (await put("a", b"once", other)).status_code == 202
    for response in (await create(other), await put("b", b"once", other), await put("a", b"twice", other)):
        assert refused(response)
    assert refused(await client.post(f"{server.url}/uploads", **form(bytes(3 * MIB)), headers=other))
    assert await rows(server) == 2


async def test_who_is_over_the_quota_is_told_before_the_file_is_read(
    serve: Serve, client: httpx.AsyncClient
) -> None:
    server = await serve(options=UploadOptions(user_quota=10_000))
    kept = (await client.put(f"{server.url}/uploads?filename=a", content=bytes(6000))).json()["id"]
    response = await client.put(f"{server.url}/uploads?filename=a", content=bytes(6000))
    assert (response.status_code, response.json()["code"]) == (413, "quota_exceeded")
    assert response.json()["limit"] == 10_000
    assert (await client.post(f"{server.url}/uploads", **form(bytes(6000)))).status_code == 413
    await server.stored(kept)
    assert (await client.delete(f"{server.url}/uploads/{kept}")).status_code == 204
    assert (await client.post(f"{server.url}/uploads", **form(bytes(6000)))).status_code == 202


async def test_bodies_of_unknown_length_are_kept_only_as_far_as_the_quota_goes(
    serve: Serve, client: httpx.AsyncClient
) -> None:
    """Bodies in chunks that had all begun before the first ended were all kept, at up to 8 MiB each."""
    server = await serve(options=UploadOptions(user_quota=2 * MIB))
    all_here = asyncio.Barrier(8)

    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        await all_here.wait()
        yield bytes(MIB - 1)

    answers = await asyncio.gather(
        *(client.put(f"{server.url}/uploads?filename=a", content=body()) for _ in range(8))
    )
    kept = [answer.json()["id"] for answer in answers if answer.status_code == 202]
    refused = {(answer.status_code, answer.json()["code"]) for answer in answers if answer.status_code != 202}
    assert (len(kept), refused) == (2, {(413, "quota_exceeded")})
    for upload_id in kept:
        assert (await server.stored(upload_id))["size"] == MIB
    assert await rows(server) == 2


async def test_below_the_watermark_uploads_wait(serve: Serve, client: httpx.AsyncClient) -> None:
    server = await serve(options=UploadOptions(min_free=2**62))
    for sending in (
        client.put(f"{server.url}/uploads?filename=a", content=b"x"),
        client.post(f"{server.url}/upload-file/", **form(b"x")),
    ):
        response = await sending
        assert (response.status_code, response.json()["code"]) == (507, "disk_full")
        assert int(response.headers["retry-after"]) > 0
    assert (await rows(server), server.kept_files()) == (0, [])


async def test_a_body_that_trickles_is_given_up_and_leaves_nothing(serve: Serve) -> None:
    server = await serve(options=UploadOptions(read_timeout=0.5, min_rate=100))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"PUT /uploads?filename=a HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n")

    async def trickle() -> None:
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.02)

    trickling = asyncio.create_task(trickle())
    async with asyncio.timeout(30):
        answer = await reader.readuntil(b"}")
    trickling.cancel()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"request_timeout"' in answer
    await server.deleted()
    assert (await rows(server), server.kept_files()) == (0, [])


async def test_the_log_is_paged_newest_first_without_gaps_while_it_grows(
    serve: Serve, client: httpx.AsyncClient
) -> None:
    server = await serve(working=False)
    ids = [(await client.post(f"{server.url}/uploads", **form(b"x"))).json()["id"] for _ in range(5)]
    seen: list[str] = []
    cursor = None
    while True:
        parameters = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await client.get(f"{server.url}/uploads", params=parameters)).json()
        seen += [upload["id"] for upload in page["uploads"]]
        await client.post(f"{server.url}/uploads", **form(b"later"))
        if (cursor := page["next"]) is None:
            break
    assert seen == ids[::-1]


NUL = base64.urlsafe_b64encode(rb'["2026-01-01T00:00:00Z","\u0000"]').decode()


async def test_a_page_that_cannot_be_is_refused(serve: Serve, client: httpx.AsyncClient) -> None:
    server = await serve(working=False)
    early = base64.urlsafe_b64encode(b'["0001-01-01T00:00:00+23:59","%s"]' % (b"0" * 32)).decode()
    for query in (
        f"cursor={early}",
        "limit=0",
        "limit=201",
        "limit=x",
        "cursor=garbage",
        "cursor=WzEsMl0",
        f"cursor={NUL}",
    ):
        response = await client.get(f"{server.url}/uploads?{query}")
        assert (query, response.status_code, response.json()["code"]) == (query, 422, "validation")


async def test_content_is_served_so_that_no_browser_runs_it(serve: Serve, client: httpx.AsyncClient) -> None:
    server = await serve()
    page = {"files": {"file": ('x"; 파일.html', b"<script>", "text/html")}}
    upload_id = (await client.post(f"{server.url}/uploads", **page)).json()["id"]  # type: ignore[arg-type]
    upload = await server.stored(upload_id)
    headers = (await client.get(f"{server.url}/uploads/{upload_id}/content")).headers
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-disposition"] == (
        "attachment; filename=\"x__ __.html\"; filename*=UTF-8''x_%3B%20%ED%8C%8C%EC%9D%BC.html"
    ).replace("x__ __", "x_; __")
    assert headers["etag"] == f'"{upload["sha256"]}"'


PNG = b"\x89PNG\r\n\x1a\n" + bytes(5000)


async def test_only_what_is_harmless_by_its_content_is_shown_and_the_rest_is_saved(
    serve: Serve, client: httpx.AsyncClient
) -> None:
    server = await serve()
    for content, declared, media_type, kind in (
        (PNG, "text/html", "image/png", "inline"),
        (b"<!DOCTYPE html><script>alert(1)</script>", "image/png", "text/html", "attachment"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/png", "image/svg+xml", "attachment"),
        (b"MZ" + bytes(100), "image/png", "application/octet-stream", "attachment"),
        (b"text", "text/html", "text/plain", "inline"),
    ):
        answer = await client.put(
            f"{server.url}/uploads?filename=a.png", content=content, headers={"content-type": declared}
        )
        upload = await server.stored(answer.json()["id"])
        assert (upload["content_type"], upload["media_type"]) == (declared, media_type)
        headers = (await client.get(f"{server.url}/uploads/{upload['id']}/content")).headers
        assert headers["content-disposition"].startswith(f"{kind}; filename=")
        shown = media_type if kind == "inline" else "application/octet-stream"
        assert headers["content-type"].partition(";")[0] == shown
        assert headers["content-security-policy"] == "sandbox; default-src 'none'"
        assert headers["x-content-type-options"] == "nosniff"


async def test_text_says_that_it_is_utf8_where_it_is(serve: Serve, client: httpx.AsyncClient) -> None:
    """Browsers guess what no charset says, and showed Korean text as Latin letters."""
    server = await serve()
    for content, shown in (
        ("안녕하세요".encode(), "text/plain; charset=utf-8"),
        ("안녕하세요".encode("cp949"), "text/plain"),
    ):
        answer = await client.put(f"{server.url}/uploads?filename=a.txt", content=content)
        address = f"{server.url}/uploads/{(await server.stored(answer.json()['id']))['id']}/content"
        for headers in ({}, {"range": "bytes=3-5"}):
            got = await client.get(address, headers=headers)
            assert got.headers["content-type"] == shown
            assert got.content == (content[3:6] if headers else content)


async def test_types_that_are_not_on_the_list_are_refused_by_their_content(
    serve: Serve, client: httpx.AsyncClient
) -> None:
    server = await serve(options=UploadOptions(allowed_types=["image/*", "application/pdf"]))
    assert (await client.post(f"{server.url}/uploads", **form(PNG))).status_code == 202
    for content in (b"tiny", b"MZ\x90\x00" + bytes(3 * MIB)):
        files = {"file": ("a.png", content, "image/png")}
        response = await client.post(f"{server.url}/uploads", files=files)
        assert (response.status_code, response.json()["code"]) == (415, "type_not_allowed")
    assert await rows(server) == 1
    # In pieces too small to tell anything, the job finds out.
    record = await server.service.create(filename="a", content_type="image/png", owner="", length=6)
    for offset in (0, 3):
        async with server.service.append(record.id, offset=offset, principal=Principal()) as sink:
            await sink.write(b"abc")
            await sink.finish()
    event = await server.until(lambda event: event["upload"].get("state") == "failed")
    assert event["upload"]["error"] == ("Rejected: The content is text/plain, and that is not accepted here.")
    response = await client.get(f"{server.url}/uploads/{record.id}/content")
    assert (response.status_code, response.json()["code"]) == (409, "upload_not_stored")


async def test_content_is_served_in_parts_and_only_when_it_changed(
    serve: Serve, client: httpx.AsyncClient
) -> None:
    server = await serve()
    content = os.urandom(700_000)
    upload_id = (await client.post(f"{server.url}/uploads", **form(content))).json()["id"]
    await server.stored(upload_id)
    url = f"{server.url}/uploads/{upload_id}/content"
    whole = await client.head(url)
    assert (whole.status_code, whole.headers["content-length"], whole.content) == (200, "700000", b"")
    etag = whole.headers["etag"]
    # Ranges are of GET alone (RFC 9110 §14.2).
    ranged = await client.head(url, headers={"range": "bytes=0-1"})
    assert (ranged.status_code, ranged.headers["content-length"]) == (200, "700000")

    part = await client.get(url, headers={"range": "bytes=100000-599999", "if-range": etag})
    assert (part.status_code, part.headers["content-range"]) == (206, "bytes 100000-599999/700000")
    assert part.content == content[100_000:600_000]
    dated = await client.get(url, headers={"range": "bytes=-1", "if-range": whole.headers["last-modified"]})
    assert dated.content == content[-1:]
    other = await client.get(url, headers={"range": "bytes=0-1", "if-range": '"another"'})
    assert (other.status_code, other.content) == (200, content)
    same = await client.get(url, headers={"if-none-match": f'"another", W/{etag}'})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    beyond = await client.get(url, headers={"range": "bytes=700000-"})
    assert (beyond.status_code, beyond.json()["code"]) == (416, "range_not_satisfiable")


async def test_an_upload_is_deleted_by_its_owner_or_the_key_and_nobody_else(
    serve: Serve, client: httpx.AsyncClient
) -> None:
    server = await serve()

    async def uploaded(who: str) -> str:
        response = await client.post(f"{server.url}/uploads", **form(b"x"), headers={"x-who": who})
        upload_id: str = (await server.stored(response.json()["id"]))["id"]
        return f"{server.url}/uploads/{upload_id}"

    async def delete(url: str, who: str) -> int:
        return (await client.delete(url, headers={"x-who": who})).status_code

    of_ann, of_key, of_nobody = await uploaded("ann"), await uploaded("key"), await uploaded("")
    assert [await delete(of_ann, who) for who in ("stranger", "bob", "")] == [401, 403, 403]
    assert [await delete(of_ann, who) for who in ("ann", "ann")] == [204, 404]
    assert [await delete(of_key, who) for who in ("", "ann", "key")] == [403, 403, 204]
    assert [await delete(of_nobody, who) for who in ("ann", "")] == [403, 204]
    assert (await rows(server), server.kept_files()) == (0, [])
    async with server.database.session() as session:
        assert (await session.execute(select(func.count()).select_from(UploadLog))).scalar_one() == 3


async def test_an_upload_deleted_while_it_arrives_is_refused_at_its_end(
    serve: Serve, client: httpx.AsyncClient
) -> None:
    server = await serve()
    go_on = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b'--cut\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + bytes(2 * MIB)
        await go_on.wait()
        yield b"\r\n--cut--\r\n"

    sending = asyncio.create_task(
        client.post(
            f"{server.url}/uploads",
            content=slowly(),
            headers={"content-type": "multipart/form-data; boundary=cut"},
        )
    )
    event = await server.until(lambda event: event["upload"].get("state") == "receiving")
    upload_id = event["upload"]["id"]
    assert (await client.delete(f"{server.url}/uploads/{upload_id}")).status_code == 204
    go_on.set()
    response = await sending
    assert (response.status_code, response.json()["code"]) == (409, "upload_not_stored")
    assert (await rows(server), server.kept_files()) == (0, [])


async def test_what_a_killed_replica_was_receiving_is_swept(serve: Serve, client: httpx.AsyncClient) -> None:
    """
    Setup: a row in `receiving` with a segment, and nobody who writes to it any more.
    Expect: the sweep of another replica removes both; an upload that is alive it leaves alone.
    """
    server = await serve(working=False)
    async with AsyncExitStack() as stack:
        for name in ("dead", "alive"):
            receiving = server.service.intake.receive(filename=name, content_type="a/b", owner="")
            receiver = await stack.enter_async_context(receiving)
            await receiver.write(bytes(2 * MIB))
        async with server.database.transaction() as session:
            silent = update(Upload).where(col(Upload.filename) == "dead").values(expires_at=clock(-1))
            await session.execute(silent)
        await server.service.sweep()
        uploads = (await client.get(f"{server.url}/uploads")).json()["uploads"]
        assert [upload["filename"] for upload in uploads] == ["alive"]
        assert len(server.kept_files()) == 1
        await receiver.finish()


async def test_an_upload_whose_bytes_are_lost_is_failed_with_a_reason_and_says_so(
    serve: Serve, client: httpx.AsyncClient
) -> None:
    first = await serve(working=False)
    upload_id = (await client.post(f"{first.url}/uploads", **form(b"x"))).json()["id"]
    await asyncio.to_thread((first.files / f"segments/{upload_id}.1").unlink)
    second = await serve(replica="r2")
    second.worker._retry = type(second.worker._retry)(first_delay=0, max_failures=2)
    event = await second.until(lambda event: event["upload"].get("state") == "failed")
    assert event["upload"]["error"] == "Given up after 2 failures: there is no such object in the store."
    response = await client.get(f"{second.url}/uploads/{upload_id}/content")
    assert (response.status_code, response.json()["code"]) == (409, "upload_not_stored")
    assert "no such object" in response.json()["detail"]


async def test_an_unknown_upload_is_not_found(serve: Serve, client: httpx.AsyncClient) -> None:
    server = await serve(working=False)
    for upload_id in ("x", "0" * 32, "%00", "%ff", "0" * 5000):
        for method, path in (("GET", ""), ("GET", "/content"), ("HEAD", "/content"), ("DELETE", "")):
            response = await client.request(method, f"{server.url}/uploads/{upload_id}{path}")
            assert response.status_code == 404
            if method != "HEAD":
                assert response.json()["code"] == "not_found"


async def test_the_form_field_and_the_problems_are_in_the_api_description(serve: Serve) -> None:
    paths = (await serve(working=False)).app.openapi()["paths"]
    for path in ("/upload-file/", "/uploads"):
        post = paths[path]["post"]
        schema = post["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert schema["properties"]["file"]["format"] == "binary"
        assert {"400", "413", "415", "503", "507"} <= post["responses"].keys()
