"""tus at `/files/`, header by header, over real HTTP, with a real database and real files."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.integration.uploading import UploadServer, serving
from tests.servers import RunningServer

from bongsu.uploads import tus
from bongsu.uploads.options import UploadOptions

MAX_SIZE = 1_000_000
UNKNOWN = "/files/" + "0" * 32


@pytest.fixture
async def server(database_url: str, tmp_path: Path) -> AsyncIterator[UploadServer]:
    async with serving(database_url, tmp_path / "files", UploadOptions(max_size=MAX_SIZE)) as server:
        yield server


@pytest.fixture
async def http(server: UploadServer) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Tus-Resumable": "1.0.0", "X-Who": "ann"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=30) as client:
        yield client


async def create(http: httpx.AsyncClient, **headers: str) -> str:
    """The path of a new upload."""
    answer = await http.post("/files/", headers=_named(headers))
    assert answer.status_code == 201, answer.text
    assert answer.headers["tus-resumable"] == "1.0.0"
    path: str = answer.headers["location"]
    return path


async def append(
    http: httpx.AsyncClient, path: str, offset: int, content: Any, **headers: str
) -> httpx.Response:
    said = {"Upload-Offset": str(offset), "Content-Type": tus.MEDIA_TYPE, **_named(headers)}
    return await http.patch(path, headers=said, content=content)


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def refused(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of a refusal, which is a problem and says its version of tus, as every answer does."""
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["tus-resumable"] == "1.0.0"
    return answer.status_code, answer.json()["code"]


async def offset_of(http: httpx.AsyncClient, path: str) -> int:
    answer = await http.head(path)
    assert answer.status_code == 200
    return int(answer.headers["upload-offset"])


async def test_an_upload_is_made_continued_told_of_and_served(
    server: UploadServer, http: httpx.AsyncClient
) -> None:
    metadata = "filename 67SJ7IiYLnR4dA==,filetype dGV4dC9wbGFpbg==,flag"
    path = await create(http, Upload_Length="11", Upload_Metadata=metadata)
    assert path == f"/files/{path[-32:]}"
    first = await append(http, path, 0, b"hello ")
    assert (first.status_code, first.headers["upload-offset"], first.content) == (204, "6", b"")
    assert "upload-expires" in first.headers

    told = await http.head(path)
    assert told.status_code == 200
    expected = {
        "upload-offset": "6",
        "upload-length": "11",
        "upload-metadata": metadata,
        "cache-control": "no-store",
        "tus-resumable": "1.0.0",
    }
    assert expected.items() <= dict(told.headers).items()

    assert (await append(http, path, 6, b"world")).headers["upload-offset"] == "11"
    record = await server.stored(path[-32:])
    assert (record["filename"], record["content_type"]) == ("봉수.txt", "text/plain")
    assert (record["size"], record["sha256"]) == (11, hashlib.sha256(b"hello world").hexdigest())
    served = await http.get(path)
    assert (served.status_code, served.content) == (200, b"hello world")
    assert served.headers["content-disposition"].startswith("inline;")
    assert await offset_of(http, path) == 11


async def test_what_arrived_before_the_client_left_is_kept(
    server: UploadServer, http: httpx.AsyncClient
) -> None:
    path = await create(http, Upload_Length="600000")

    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 500_000
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        await append(http, path, 0, broken())
    status = 409
    # What was on its way may still arrive after a HEAD: as every client does then, it is asked again.
    while status == 409:
        offset = await offset_of(http, path)
        assert offset <= 500_000
        status = (await append(http, path, offset, b"x" * (600_000 - offset))).status_code
    assert status == 204
    assert (await server.stored(path[-32:]))["size"] == 600_000


async def test_of_two_who_send_at_one_offset_one_succeeds(
    server: UploadServer, http: httpx.AsyncClient
) -> None:
    path = await create(http, Upload_Length="100000")
    answers = await asyncio.gather(
        *(append(http, path, 0, octet * 100_000) for octet in (b"a", b"b")),
    )
    assert sorted(answer.status_code for answer in answers) == [204, 409]
    winner = next(octet for octet, answer in zip("ab", answers, strict=True) if answer.status_code == 204)
    await server.stored(path[-32:])
    assert (await http.get(path)).text == winner * 100_000


async def test_the_first_bytes_come_along_with_the_creation(
    server: UploadServer, http: httpx.AsyncClient
) -> None:
    answer = await http.post(
        "/files", headers={"Upload-Length": "5", "Content-Type": tus.MEDIA_TYPE}, content=b"hel"
    )
    assert (answer.status_code, answer.headers["upload-offset"]) == (201, "3")
    path = answer.headers["location"]
    assert (await append(http, path, 3, b"lo")).status_code == 204
    assert (await server.stored(path[-32:]))["sha256"] == hashlib.sha256(b"hello").hexdigest()


async def test_all_who_create_with_one_key_at_one_time_have_the_address(
    server: UploadServer, http: httpx.AsyncClient
) -> None:
    """All but the last to take the upload were answered 409 without it, and had nowhere to go on."""
    content = b"x" * 300_000
    headers = {
        "Upload-Length": str(len(content)),
        "Content-Type": tus.MEDIA_TYPE,
        "Idempotency-Key": "one",
    }
    answers = await asyncio.gather(
        *(http.post("/files/", headers=headers, content=content) for _ in range(8))
    )
    assert [answer.status_code for answer in answers] == [201] * 8
    [path] = {answer.headers["location"] for answer in answers}
    if (offset := await offset_of(http, path)) < len(content):
        assert (await append(http, path, offset, content[offset:])).status_code == 204
    assert (await server.stored(path[-32:]))["sha256"] == hashlib.sha256(content).hexdigest()


async def test_an_upload_without_bytes_is_complete_at_once(
    server: UploadServer, http: httpx.AsyncClient
) -> None:
    path = await create(http, Upload_Length="0")
    assert (await server.stored(path[-32:]))["size"] == 0


async def test_a_length_may_be_said_at_the_end(server: UploadServer, http: httpx.AsyncClient) -> None:
    path = await create(http, Upload_Defer_Length="1")
    assert (await append(http, path, 0, b"hel")).status_code == 204
    told = await http.head(path)
    assert (told.headers["upload-defer-length"], "upload-length" in told.headers) == ("1", False)
    assert (await append(http, path, 3, b"lo")).status_code == 204
    assert (await append(http, path, 5, b"", Upload_Length="5")).status_code == 204
    assert (await server.stored(path[-32:]))["sha256"] == hashlib.sha256(b"hello").hexdigest()


async def test_a_body_that_would_be_too_large_is_refused_unread_though_the_length_is_open(
    server: UploadServer, http: httpx.AsyncClient
) -> None:
    path = await create(http, Upload_Defer_Length="1")
    assert (await append(http, path, 0, b"hel")).status_code == 204
    assert refused(await append(http, path, 3, bytes(MAX_SIZE - 2))) == (413, "upload_too_large")
    assert (await http.head(path)).headers["upload-offset"] == "3"
    assert (await append(http, path, 3, bytes(MAX_SIZE - 3))).status_code == 204


@pytest.mark.parametrize("algorithm", tus.CHECKSUM_ALGORITHMS)
async def test_bytes_that_are_not_those_of_their_checksum_are_not_kept(
    server: UploadServer, http: httpx.AsyncClient, algorithm: str
) -> None:
    def checksum(content: bytes) -> str:
        digest = hashlib.new(algorithm, content).digest()
        return f"{algorithm} {base64.b64encode(digest).decode()}"

    path = await create(http, Upload_Length="8")
    assert (await append(http, path, 0, b"abc", Upload_Checksum=checksum(b"abc"))).status_code == 204
    wrong = await append(http, path, 3, b"xxxxx", Upload_Checksum=checksum(b"defgh"))
    assert refused(wrong) == (460, "checksum_mismatch")
    assert await offset_of(http, path) == 3
    assert (await append(http, path, 3, b"defgh", Upload_Checksum=checksum(b"defgh"))).status_code == 204
    assert (await server.stored(path[-32:]))["sha256"] == hashlib.sha256(b"abcdefgh").hexdigest()


async def test_parts_are_put_together(server: UploadServer, http: httpx.AsyncClient) -> None:
    parts = [await create(http, Upload_Length="3", Upload_Concat="partial") for _ in range(2)]
    for part, content in zip(parts, (b"abc", b"def"), strict=True):
        assert (await append(http, part, 0, content)).status_code == 204
    assert (await http.head(parts[0])).headers["upload-concat"] == "partial"
    name = "filename " + base64.b64encode(b"whole.bin").decode()
    whole = await create(http, Upload_Concat=f"final;{parts[1]} {server.url}{parts[0]}", Upload_Metadata=name)
    record = await server.stored(whole[-32:])
    assert (record["filename"], record["size"]) == ("whole.bin", 6)
    assert (await http.get(whole)).content == b"defabc"
    told = await http.head(whole)
    assert told.headers["upload-concat"] == f"final;{parts[1]} {parts[0]}"
    assert (told.headers["upload-length"], told.headers["upload-offset"]) == ("6", "6")
    assert refused(await append(http, whole, 6, b"x")) == (403, "upload_is_final")


async def test_parts_have_to_be_there_complete_and_ones_own(
    server: UploadServer, http: httpx.AsyncClient
) -> None:
    whole = await create(http, Upload_Length="3")
    part = await create(http, Upload_Length="3", Upload_Concat="partial")
    theirs = await create(http, Upload_Length="0", Upload_Concat="partial", X_Who="bob")
    for parts in (UNKNOWN, whole, part, theirs):
        answer = await http.post("/files/", headers={"Upload-Concat": f"final;{parts}"})
        assert 400 <= answer.status_code < 500, parts
        refused(answer)


async def test_an_upload_is_removed_at_any_time(server: UploadServer, http: httpx.AsyncClient) -> None:
    path = await create(http, Upload_Length="6")
    await append(http, path, 0, b"abc")
    assert (await http.delete(path)).status_code == 204
    assert (await http.head(path)).status_code in {404, 410}
    assert refused(await append(http, path, 3, b"def"))[0] in {404, 410}
    assert server.kept_files() == []


async def test_an_upload_is_for_its_owner_and_the_keys_holder(
    server: UploadServer, http: httpx.AsyncClient
) -> None:
    path = await create(http, Upload_Length="3")
    other = {"X-Who": "bob"}
    assert (await http.head(path, headers=other)).status_code == 403
    assert refused(await append(http, path, 0, b"abc", X_Who="bob")) == (403, "forbidden")
    assert refused(await http.delete(path, headers=other)) == (403, "forbidden")
    assert refused(await http.post("/files/", headers={"X-Who": "nobody"})) == (401, "unauthorized")
    assert (await append(http, path, 0, b"abc", X_Who="key")).status_code == 204
    await server.stored(path[-32:])


async def test_a_post_stands_in_for_other_methods(server: UploadServer, http: httpx.AsyncClient) -> None:
    path = await create(http, Upload_Length="3")
    said = {"Upload-Offset": "0", "Content-Type": tus.MEDIA_TYPE, "X-HTTP-Method-Override": "PATCH"}
    assert (await http.post(path, headers=said, content=b"ab")).headers["upload-offset"] == "2"
    told = await http.post(path, headers={"X-HTTP-Method-Override": "HEAD"})
    assert (told.status_code, told.headers["upload-offset"]) == (200, "2")
    gone = await http.post(path, headers={"X-HTTP-Method-Override": "DELETE"})
    assert gone.status_code == 204
    assert refused(await http.post(path)) == (405, "method_not_allowed")
    overridden = await http.post("/files/", headers={"X-HTTP-Method-Override": "PATCH"})
    assert refused(overridden) == (405, "method_not_allowed")


async def test_other_versions_of_tus_are_refused_and_told_which_one_is_spoken(
    server: UploadServer, http: httpx.AsyncClient
) -> None:
    path = await create(http, Upload_Length="3")
    for method, target in (("POST", "/files/"), ("HEAD", path), ("PATCH", path), ("DELETE", path)):
        answer = await http.request(method, target, headers={"Tus-Resumable": "0.2.2"})
        assert (answer.status_code, answer.headers["tus-version"]) == (412, "1.0.0")
    options = await http.options("/files/", headers={"Tus-Resumable": "0.2.2"})
    assert options.status_code == 204
    assert (
        tus.capabilities(MAX_SIZE).items()
        <= {name.title(): value for name, value in options.headers.items()}.items()
    )
    assert (await http.options(path)).status_code == 204


@pytest.mark.parametrize(
    ("method", "headers", "content", "expected"),
    [
        ("POST", {}, b"", (400, "tus_header_invalid")),
        ("POST", {"Upload-Length": "-1"}, b"", (400, "tus_header_invalid")),
        ("POST", {"Upload-Length": str(MAX_SIZE + 1)}, b"", (413, "upload_too_large")),
        ("POST", {"Upload-Length": "3"}, b"abc", (415, "unsupported_media_type")),
        ("PATCH", {"Upload-Offset": "0"}, b"abc", (415, "unsupported_media_type")),
        ("PATCH", {"Content-Type": tus.MEDIA_TYPE}, b"abc", (400, "tus_header_invalid")),
        (
            "PATCH",
            {"Content-Type": tus.MEDIA_TYPE, "Upload-Offset": "0", "Upload-Checksum": "md5 eA=="},
            b"abc",
            (400, "checksum_unsupported"),
        ),
        ("PATCH", {"Content-Type": tus.MEDIA_TYPE, "Upload-Offset": "1"}, b"abc", (409, "offset_mismatch")),
        ("PATCH", {"Content-Type": tus.MEDIA_TYPE, "Upload-Offset": "0"}, b"abcd", (413, "upload_too_large")),
    ],
)
async def test_what_cannot_be_taken_is_refused_and_changes_nothing(
    server: UploadServer,
    http: httpx.AsyncClient,
    method: str,
    headers: dict[str, str],
    content: bytes,
    expected: tuple[int, str],
) -> None:
    path = await create(http, Upload_Length="3")
    answer = await http.request(
        method, "/files/" if method == "POST" else path, headers=headers, content=content
    )
    assert refused(answer) == expected
    assert await offset_of(http, path) == 0
    assert (await append(http, path, 0, b"abc")).status_code == 204


async def test_a_header_that_says_two_things_is_refused_and_changes_nothing(
    server: UploadServer, http: httpx.AsyncClient
) -> None:
    """The first of them was taken, in silence."""
    said = [("Upload-Length", "5"), ("Upload-Length", "6")]
    assert refused(await http.post("/files/", headers=said)) == (400, "tus_header_invalid")
    path = await create(http, Upload_Length="3")
    said = [("Content-Type", tus.MEDIA_TYPE), ("Upload-Offset", "0"), ("Upload-Offset", "1")]
    answer = await http.patch(path, headers=said, content=b"abc")
    assert refused(answer) == (400, "tus_header_invalid")
    assert await offset_of(http, path) == 0


@pytest.mark.parametrize("path", [UNKNOWN, "/files/x", "/files/%00"])
async def test_an_upload_that_does_not_exist_is_not_found(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.head(path)).status_code == 404
    for answer in (await append(http, path, 0, b"abc"), await http.delete(path), await http.get(path)):
        assert refused(answer) == (404, "not_found")


def test_the_document_of_the_api_tells_of_it(bongsu_server: Callable[..., RunningServer]) -> None:
    paths = httpx.get(f"{bongsu_server().url}/openapi.json").json()["paths"]
    assert paths["/files/"].keys() == {"post", "options"}
    assert paths["/files/{upload_id}"].keys() == {"head", "patch", "delete", "get"}
    told = {parameter["name"] for parameter in paths["/files/{upload_id}"]["patch"]["parameters"]}
    assert {"upload_id", "Tus-Resumable", "Upload-Offset", "Upload-Checksum"} <= told


def test_pages_of_allowed_origins_may_send_and_read_what_a_client_needs(
    bongsu_server: Callable[..., RunningServer],
) -> None:
    server = bongsu_server(BONGSU_ALLOWED_ORIGINS='["https://app.example.org"]')
    origin = {"Origin": "https://app.example.org"}
    asked = "tus-resumable,upload-length,upload-metadata,upload-offset,x-http-method-override,x-request-id"
    with httpx.Client(base_url=server.url) as http:
        for method in ("POST", "PATCH", "HEAD", "DELETE"):
            preflight = http.options(
                "/files/",
                headers={
                    **origin,
                    "Access-Control-Request-Method": method,
                    "Access-Control-Request-Headers": asked,
                },
            )
            assert preflight.status_code == 200
            assert preflight.headers["access-control-allow-origin"] == origin["Origin"]
            assert method in preflight.headers["access-control-allow-methods"]
            assert preflight.headers["access-control-allow-headers"] == asked
        said = {**origin, "Tus-Resumable": "1.0.0", "Upload-Length": "3"}
        made = http.post("/files/", headers=said)
        refusal = http.post("/files/", headers=origin)
        for answer in (made, refusal):
            assert answer.headers["access-control-allow-origin"] == origin["Origin"]
            exposed = {name.strip() for name in answer.headers["access-control-expose-headers"].split(",")}
            assert set(tus.EXPOSED_HEADERS) <= exposed
        assert (made.status_code, refusal.status_code) == (201, 412)
        foreign = http.post("/files/", headers={**said, "Origin": "https://evil.example.org"})
        assert (foreign.status_code, foreign.json()["code"]) == (403, "origin_not_allowed")
