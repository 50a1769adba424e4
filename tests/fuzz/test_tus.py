"""Every header of tus: accepted, or refused with its documented error. Nothing else."""

from __future__ import annotations

import base64

import pytest
from tests.fuzz.inputs import COUNT, inputs

from bongsu.protocol import problems
from bongsu.protocol.problems import Problem
from bongsu.uploads import tus

pytestmark = pytest.mark.soak

_REFUSALS = {
    problems.TUS_HEADER_INVALID,
    problems.CHECKSUM_UNSUPPORTED,
    problems.UNSUPPORTED_MEDIA_TYPE,
    problems.UPLOAD_IS_FINAL,
    problems.METHOD_NOT_ALLOWED,
    problems.TUS_VERSION_UNSUPPORTED,
}
_ID = b"0123456789abcdef" * 2
HEADS = [
    b"upload-length: 12\nupload-metadata: filename 67SJ7IiYLnR4dA==,filetype dGV4dC9wbGFpbg==,is_secret",
    b"upload-defer-length: 1\ncontent-type: application/offset+octet-stream\ncontent-length: 5"
    b"\nupload-checksum: sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00=",
    b"upload-concat: final;/files/%s https://example.org/a/files/f%s" % (_ID, _ID[1:]),
    b"upload-concat: partial\nupload-length: 0\ntransfer-encoding: chunked\ncontent-type: text/plain",
    b"upload-offset: 70\nupload-length: 100\ncontent-type: application/offset+octet-stream"
    b"\nupload-checksum: sha256 LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=",
    b"x-http-method-override: PATCH\ntus-resumable: 1.0.0",
]


def _headers(head: bytes) -> dict[str, str]:
    """As a server hands them over: names in lower case, values in Latin-1."""
    pairs = (line.partition(":") for line in head.decode("latin-1").split("\n"))
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def test_headers_are_understood_or_refused() -> None:
    accepted = 0
    for head in inputs(HEADS, seed=11):
        headers = _headers(head)
        for read in (
            tus.parse_creation,
            tus.parse_append,
            tus.check_version,
            lambda said: tus.method_of("POST", said),
        ):
            try:
                read(headers)
            except Problem as problem:
                assert problem.kind in _REFUSALS, head  # noqa: PT017  # each of thousands is judged
            else:
                accepted += read in (tus.parse_creation, tus.parse_append)
    assert accepted > COUNT // 20  # else the inputs are too broken to test anything


def test_metadata_that_is_understood_can_be_written_again() -> None:
    corpus = [b"filename 67SJ7IiYLnR4dA==,filetype dGV4dC9wbGFpbg==,is_secret", b"a YQ==, b ,c Zm9v", b""]
    accepted = 0
    for header in inputs(corpus, seed=12):
        try:
            metadata = tus.parse_metadata(header.decode("latin-1"))
        except Problem as problem:
            assert problem.kind is problems.TUS_HEADER_INVALID, header  # noqa: PT017
            continue
        accepted += 1
        written = ",".join(f"{k} {base64.b64encode(v).decode()}" for k, v in metadata.values.items())
        assert tus.parse_metadata(written).values == metadata.values, header
        assert 0 < len(metadata.filename.encode()) <= 255
        assert "/" not in metadata.filename
    assert accepted > COUNT // 20
