"""A bucket: the requests that the store makes, with their bounds, and what their errors mean.

Two clients share the work. obstore carries objects: its threads hash and send them beside the event loop.
It has no UploadPartCopy; that, and all that carries no bytes, goes through aiobotocore. Where the bucket is
and who we are, aiobotocore finds out, as every AWS program does (environment, profile, role), and obstore
is told.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import obstore
import structlog
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError
from obstore.exceptions import BaseError, PreconditionError
from obstore.store import S3Store as Carrier

from bongsu.uploads.stores.base import ObjectMissing, StoreError, StoreFull, StoreUnavailable

if TYPE_CHECKING:  # these exist for type checkers only
    from obstore import Bytes, BytesStream, GetOptions
    from obstore.store import ClientConfig, RetryConfig, S3Credential

__all__ = ["Bucket", "Entry", "Found"]

log = structlog.stdlib.get_logger(__name__)

# A request ends within these seconds, or the next try does: whoever waits for it is told 503 and comes again.
_CONNECT: Final = timedelta(seconds=3)
_REQUEST: Final = timedelta(seconds=30)
_TRIES: Final = 4
_CLIENT: Final[ClientConfig] = {"connect_timeout": _CONNECT, "timeout": _REQUEST}
# A download lasts as long as its client reads; only standing still is limited.
_DOWNLOADS: Final[ClientConfig] = {
    "connect_timeout": _CONNECT,
    "read_timeout": _REQUEST,
    "timeout": timedelta(days=1),
}
_RETRY: Final[RetryConfig] = {
    "max_retries": _TRIES - 1,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}
# botocore renews temporary credentials 10 minutes before their end; obstore asks again 5 before `expires_at`.
_CREDENTIALS: Final = timedelta(minutes=15)
_AT_ONCE: Final = 16  # connections for requests without bytes
_DELETED_AT_ONCE: Final = 1000  # what DeleteObjects takes

_MISSING: Final = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchUpload"})
_FULL: Final = re.compile(r"\b507\b|StorageFull|QuotaExceeded|InsufficientStorage")


@dataclass(frozen=True, slots=True)
class Entry:
    """An object as it is listed. `age` in seconds, by the server's clock."""

    key: str
    size: int
    age: float


@dataclass(frozen=True, slots=True)
class Found:
    """An object as it was when somebody looked. `etag` changes with its bytes."""

    size: int
    etag: str | None


class Bucket:
    """The objects below `prefix` of one bucket. Keys are without it; every call raises `StoreError`."""

    def __init__(self, name: str, prefix: str, *, patience: timedelta = _REQUEST) -> None:
        """`patience`: how long a request that a client may wait for, and that carries no bytes, is tried."""
        self.name = name
        self._patience = patience.total_seconds()
        self._prefix = f"{prefix}/" if prefix else ""
        self._stack = AsyncExitStack()
        self._client: Any = None
        self._carrier: Carrier
        self._downloads: Carrier

    async def start(self) -> None:
        """Connect. Raises `StoreUnavailable` with what the operator has to do."""
        session = get_session()
        config = AioConfig(
            connect_timeout=_CONNECT.total_seconds(),
            read_timeout=_REQUEST.total_seconds(),
            retries={"mode": "standard", "total_max_attempts": _TRIES},
            max_pool_connections=_AT_ONCE,
            # Newer checksums only where S3 insists: many servers that speak its protocol lack them.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        with _translated():
            credentials = await session.get_credentials()
            if credentials is None:
                raise StoreUnavailable(
                    "there are no credentials for S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                    "or AWS_PROFILE, or give this host a role"
                )
            self._client = await self._stack.enter_async_context(session.create_client("s3", config=config))
        endpoint, region = self._client.meta.endpoint_url, self._client.meta.region_name

        async def who_we_are() -> S3Credential:
            frozen = await credentials.get_frozen_credentials()
            return {
                "access_key_id": frozen.access_key,
                "secret_access_key": frozen.secret_key,
                "token": frozen.token,
                "expires_at": datetime.now(UTC) + _CREDENTIALS,
            }

        def carrier(options: ClientConfig) -> Carrier:
            return Carrier(
                self.name,
                endpoint=endpoint,
                region="us-east-1" if region in (None, "aws-global") else region,
                client_options={**options, "allow_http": endpoint.startswith("http://")},
                retry_config=_RETRY,
                credential_provider=who_we_are,
            )

        self._carrier, self._downloads = carrier(_CLIENT), carrier(_DOWNLOADS)

    async def check(self) -> None:
        """Raise `StoreUnavailable` unless the bucket can be written to; the text says what to do."""
        try:
            await self._client.head_bucket(Bucket=self.name)
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            raise StoreUnavailable(_what_to_do(self.name, status, error)) from error
        except BotoCoreError as error:
            raise StoreUnavailable(
                f"S3 cannot be reached ({error}); AWS_ENDPOINT_URL_S3 says where it is, if not at Amazon"
            ) from error
        try:  # that it can be seen says nothing about writing
            await self.put("start", b"")
            await self.delete(["start"])
        except StoreError as error:
            raise StoreUnavailable(
                f"the bucket “{self.name}” is there, but cannot be written to: these credentials need "
                "s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload on its objects"
            ) from error

    async def stop(self) -> None:
        await self._stack.aclose()

    # Objects

    async def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """Return when the object is there, whole. `data` must not change until then.

        After an error it may be there all the same, or come later.
        """
        with _translated():
            await obstore.put_async(self._carrier, self._prefix + key, data, use_multipart=False)

    async def find(self, key: str) -> Found:
        with _translated():
            meta = await obstore.head_async(self._carrier, self._prefix + key)
        return Found(meta["size"], meta["e_tag"])

    async def get(self, key: str, start: int, end: int, etag: str | None = None) -> Bytes:
        """The bytes from `start` until before `end`. Raises `ObjectMissing` when `etag` is another's, too."""
        with _translated():
            result = await obstore.get_async(
                self._carrier, self._prefix + key, options=_wanted(etag) | {"range": (start, end)}
            )
            return await result.bytes_async()

    async def stream(self, key: str, start: int, etag: str | None, least: int) -> BytesStream:
        """The bytes from `start` on, in chunks of `least` or more; dropping it ends the request."""
        with _translated():
            result = await obstore.get_async(
                self._downloads, self._prefix + key, options=_wanted(etag) | {"range": {"offset": start}}
            )
            return result.stream(min_chunk_size=least)

    async def next_chunk(self, stream: BytesStream) -> bytes:
        """Raises `StoreUnavailable` also when there is no more."""
        with _translated():
            try:
                return bytes(await anext(stream))
            except StopAsyncIteration:
                raise StoreUnavailable("the object ended before its end") from None

    async def entries(self, prefix: str, *, most: int | None = None) -> AsyncIterator[Entry]:
        """Objects whose keys begin with `prefix`, in the order of their keys."""
        request: dict[str, Any] = {"Bucket": self.name, "Prefix": self._prefix + prefix}
        if most is not None:
            request |= {"MaxKeys": most}
        while True:
            async with self._bounded():
                page = await self._client.list_objects_v2(**request)
            now = _server_time(page)
            for entry in page.get("Contents", ()):
                age = max(0.0, (now - entry["LastModified"]).total_seconds())
                yield Entry(entry["Key"].removeprefix(self._prefix), entry["Size"], age)
            if most is not None or not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove those that are there."""
        for start in range(0, len(keys), _DELETED_AT_ONCE):
            batch = [{"Key": self._prefix + key} for key in keys[start : start + _DELETED_AT_ONCE]]
            async with self._bounded():
                answer = await self._client.delete_objects(
                    Bucket=self.name, Delete={"Objects": batch, "Quiet": True}
                )
            failed = [error for error in answer.get("Errors", ()) if error.get("Code") not in _MISSING]
            if failed:
                log.warning("S3 did not delete everything", failed=len(failed), first=failed[0].get("Code"))
                raise StoreUnavailable("the storage did not delete everything")

    # Composition

    async def begin(self, key: str) -> str:
        """Begin a multipart upload of `key`; its id."""
        with _translated():
            answer = await self._client.create_multipart_upload(Bucket=self.name, Key=self._prefix + key)
        upload: str = answer["UploadId"]
        return upload

    async def copy_part(self, key: str, upload: str, number: int, source: str) -> str:
        """Have the server copy the object `source` into a part; the part's ETag."""
        with _translated():
            answer = await self._client.upload_part_copy(
                Bucket=self.name,
                Key=self._prefix + key,
                UploadId=upload,
                PartNumber=number,
                CopySource={"Bucket": self.name, "Key": self._prefix + source},
            )
        etag: str = answer["CopyPartResult"]["ETag"]
        return etag

    async def put_part(self, key: str, upload: str, number: int, data: BytesIO) -> str:
        with _translated():
            answer = await self._client.upload_part(
                Bucket=self.name, Key=self._prefix + key, UploadId=upload, PartNumber=number, Body=data
            )
        etag: str = answer["ETag"]
        return etag

    async def complete(self, key: str, upload: str, etags: Sequence[str]) -> None:
        """Make the object of its parts, in the order of `etags`."""
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
        with _translated():
            await self._client.complete_multipart_upload(
                Bucket=self.name, Key=self._prefix + key, UploadId=upload, MultipartUpload={"Parts": parts}
            )

    async def abort(self, key: str, upload: str) -> None:
        """Give up a multipart upload; nothing happens when there is none."""
        try:
            async with self._bounded():
                await self._client.abort_multipart_upload(
                    Bucket=self.name, Key=self._prefix + key, UploadId=upload
                )
        except ObjectMissing:
            return

    async def unfinished(self, prefix: str) -> list[tuple[str, str, float]]:
        """Multipart uploads that were begun and not ended: key, id, age in seconds. The first thousand."""
        async with self._bounded():
            page = await self._client.list_multipart_uploads(Bucket=self.name, Prefix=self._prefix + prefix)
        now = _server_time(page)
        return [
            (
                upload["Key"].removeprefix(self._prefix),
                upload["UploadId"],
                max(0.0, (now - upload["Initiated"]).total_seconds()),
            )
            for upload in page.get("Uploads", ())
        ]

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        """Translated, and over in time with all its tries: a server that hangs would have each wait anew.

        Not for composition, which jobs do: completing a large file may take S3 minutes.
        """
        with _translated():
            async with asyncio.timeout(self._patience):
                yield


def _wanted(etag: str | None) -> GetOptions:
    return {} if etag is None else {"if_match": etag}


@contextmanager
def _translated() -> Iterator[None]:
    """What the clients raise, as the store's errors. Their own texts hold keys: for the log only."""
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectMissing("there is no such object in the store") from error
    except PreconditionError as error:
        raise ObjectMissing("the object was replaced while it was read") from error
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in _MISSING:
            raise ObjectMissing("there is no such object in the store") from error
        raise _failure(error) from error
    except (BotoCoreError, BaseError, OSError, TimeoutError) as error:
        raise _failure(error) from error


def _failure(error: Exception) -> StoreError:
    text = str(error)
    log.warning("a request to S3 failed", error=f"{type(error).__name__}: {text[:500]}")
    if _FULL.search(text):
        return StoreFull("the storage is full")
    return StoreUnavailable("the storage cannot be reached, or refuses to work")


def _server_time(answer: dict[str, Any]) -> datetime:
    """When the server answered: objects are as old as it says, whatever our own clock does."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    return parsedate_to_datetime(date) if date else datetime.now(UTC)


def _what_to_do(bucket: str, status: int | None, error: ClientError) -> str:
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    match status:
        case 404:
            return f"there is no bucket “{bucket}”: create it, or correct BONGSU_STORAGE_URL"
        case 301 if "x-amz-bucket-region" in headers:
            region = headers["x-amz-bucket-region"]
            return f"the bucket “{bucket}” is in another region: set AWS_REGION={region}"
        case 401 | 403:
            return (
                f"these credentials may not use the bucket “{bucket}”: check AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY (or the role), and that they may list, get, put and delete there"
            )
    return f"the bucket “{bucket}” cannot be used ({error})"
