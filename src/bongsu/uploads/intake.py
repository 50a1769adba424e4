"""Uploads of one request: a form, or a body. Nothing is left unless all of it arrives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from bongsu.uploads import rows
from bongsu.uploads.drafts import Drafts, digest_of
from bongsu.uploads.multipart import FileData, FileStart, UploadForm
from bongsu.uploads.receiver import Means, Receiver, Sink
from bongsu.uploads.record import UploadRecord
from bongsu.uploads.removal import Removal
from bongsu.uploads.stores.base import BATCH

__all__ = ["Intake"]


class Intake:
    """Receives files that come whole."""

    def __init__(self, means: Means, drafts: Drafts, removal: Removal) -> None:
        self._means = means
        self._drafts = drafts
        self._removal = removal

    @asynccontextmanager
    async def receive(
        self,
        *,
        filename: str,
        content_type: str,
        owner: str | None,
        length: int | None = None,
        bound: int | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncIterator[Sink]:
        """Receive one file; `filename` and `content_type` are cleaned ones.

        `length` in bytes is what it has, `bound` what it has at most, where they are known. Unless
        `Sink.finish` has been reached, nothing of it is left when the block ends. Raises `AlreadyReceived`,
        `StoreError`, `DatabaseUnavailable`, and `Problem` as `Drafts.admit` and the sink do.
        """
        upload = await self._drafts.admit(
            rows.Draft(
                filename,
                content_type,
                owner,
                self._means.replica,
                self._means.options.abandoned_after,
                length=length,
                reserved=min(length or bound or 0, self._means.options.max_size),
                holder=self._means.replica,
                idempotency=digest_of(owner, idempotency_key),
            )
        )
        try:
            receiver = Receiver(upload, self._means, whole=True)
            with self._means.batches.arriving():
                try:
                    yield receiver
                finally:
                    await receiver.close(keep=False)
        except BaseException:
            # Also at cancellation. When a commit's outcome is unknown the row decides: a received upload
            # stays.
            await self._removal.discard(upload.id)
            raise

    async def receive_form(
        self,
        body: AsyncIterator[bytes],
        *,
        content_type: str,
        owner: str | None,
        bound: int | None = None,
        idempotency_key: str | None = None,
    ) -> UploadRecord:
        """Receive the multipart form whose bytes `body` yields; constant memory, no byte twice on disk.

        Returns once the file is durably received and its job enqueued. Raises what `receive` and
        `UploadForm` raise, and what `body` raises; then nothing is left.
        """
        form = UploadForm(content_type)
        sink: Sink | None = None
        async with AsyncExitStack() as stack:
            async for chunk in body:
                for start in range(0, len(chunk), BATCH):
                    for event in form.feed(chunk[start : start + BATCH]):
                        match event:
                            case FileStart(filename=name, content_type=declared):
                                receiving = self.receive(
                                    filename=name,
                                    content_type=declared,
                                    owner=owner,
                                    bound=bound,
                                    idempotency_key=idempotency_key,
                                )
                                sink = await stack.enter_async_context(receiving)
                            case FileData(data=data):
                                assert sink is not None  # the form begins the file before its data
                                await sink.write(data)
            form.end()
            assert sink is not None  # the form ends only with a file
            return await sink.finish()

    async def receive_body(
        self,
        body: AsyncIterator[bytes],
        *,
        filename: str,
        content_type: str,
        owner: str | None,
        length: int | None,
        idempotency_key: str | None = None,
    ) -> UploadRecord:
        """Receive the file whose bytes `body` yields. Returns and raises as `receive_form` does."""
        async with self.receive(
            filename=filename,
            content_type=content_type,
            owner=owner,
            length=length,
            idempotency_key=idempotency_key,
        ) as sink:
            async for chunk in body:
                await sink.write(chunk)
            return await sink.finish()
