"""tus-py-client (`tuspy`), unmodified."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
from typing import Any

import httpx
import pytest
from tests.faults import Fault, FaultProxy
from tests.sdk.conftest import Deployment
from tusclient.client import TusClient
from tusclient.exceptions import TusUploadFailed

MIB = 2**20
_PATIENCE = 60


async def stored(deployment: Deployment, address: str) -> dict[str, Any]:
    """The record of the upload at `address`, once it is stored."""
    async with asyncio.timeout(_PATIENCE), httpx.AsyncClient(base_url=deployment.url) as http:
        while True:
            answer = await http.get(f"/uploads/{address.rpartition('/')[2]}")
            record: dict[str, Any] = answer.raise_for_status().json()
            if record["state"] == "stored":
                return record
            await asyncio.sleep(0.05)


async def check(deployment: Deployment, address: str, content: bytes) -> dict[str, Any]:
    """The upload at `address` is `content`, by its record and by what is served."""
    record = await stored(deployment, address)
    assert (record["size"], record["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    async with httpx.AsyncClient() as http:
        assert (await http.get(address)).content == content
    return record


@pytest.mark.parametrize("size", [0, 3 * MIB + 1])
async def test_a_file_is_sent_with_its_name(deployment: Deployment, size: int) -> None:
    content = os.urandom(size)
    uploader = TusClient(f"{deployment.url}/files/").uploader(
        file_stream=io.BytesIO(content), metadata={"filename": "봉수.bin", "filetype": "text/plain"}
    )
    await asyncio.to_thread(uploader.upload)
    record = await check(deployment, uploader.url, content)
    assert (record["filename"], record["content_type"]) == ("봉수.bin", "text/plain")


async def test_chunks_are_sent_with_their_checksums_and_another_run_goes_on(deployment: Deployment) -> None:
    content = os.urandom(3 * MIB + 1)
    client = TusClient(f"{deployment.url}/files/")

    def uploader(address: str | None) -> Any:
        return client.uploader(
            file_stream=io.BytesIO(content), chunk_size=MIB, upload_checksum=True, url=address
        )

    first = uploader(None)
    await asyncio.to_thread(first.upload, stop_at=2 * MIB)
    second = await asyncio.to_thread(uploader, first.url)
    assert second.offset == 2 * MIB
    await asyncio.to_thread(second.upload)
    await check(deployment, second.url, content)


async def test_a_chunk_that_changed_on_its_way_is_not_kept(deployment: Deployment) -> None:
    content = os.urandom(MIB)
    uploader = TusClient(f"{deployment.url}/files/").uploader(
        file_stream=io.BytesIO(content), upload_checksum=True
    )
    await asyncio.to_thread(uploader.upload, stop_at=MIB // 2)
    uploader.stop_at = MIB

    honest = uploader.checksum_algorithm
    uploader._BaseUploader__checksum_algorithm = lambda chunk: honest(chunk + b"!")
    with pytest.raises(TusUploadFailed) as refused:
        await asyncio.to_thread(uploader.upload_chunk)
    assert refused.value.status_code == 460
    uploader._BaseUploader__checksum_algorithm = honest
    assert await asyncio.to_thread(uploader.get_offset) == MIB // 2
    await asyncio.to_thread(uploader.upload)
    await check(deployment, uploader.url, content)


async def test_a_connection_that_breaks_is_made_again(deployment: Deployment) -> None:
    content = os.urandom(24 * MIB)
    with FaultProxy(int(deployment.url.rpartition(":")[2])) as proxy:
        uploader = TusClient(f"{proxy.url}/files/").uploader(
            file_stream=io.BytesIO(content), retries=5, retry_delay=1
        )
        uploader.set_url(await asyncio.to_thread(uploader.create_url))
        proxy.break_next(Fault("cut", after=16 * MIB))
        await asyncio.to_thread(uploader.upload)
        assert proxy.happened == 1
        await check(deployment, uploader.url, content)


async def test_its_asynchronous_uploader_sends_too(deployment: Deployment) -> None:
    content = os.urandom(2 * MIB + 1)
    uploader = TusClient(f"{deployment.url}/files/").async_uploader(
        file_stream=io.BytesIO(content), chunk_size=MIB, upload_checksum=True
    )
    await uploader.upload()
    await check(deployment, uploader.url, content)
