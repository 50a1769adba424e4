"""The multipart form, byte by byte and in any pieces."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bongsu.protocol import problems
from bongsu.protocol.problems import Problem, ProblemKind
from bongsu.uploads.multipart import MAX_OVERHEAD, FileData, FileStart, UploadForm

CONTENT_TYPE = "multipart/form-data; boundary=cut"


def part(disposition: str, content: bytes = b"", *headers: str) -> bytes:
    lines = [f"Content-Disposition: form-data; {disposition}", *headers]
    return b"--cut\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + content + b"\r\n"


END = b"--cut--\r\n"
FILE = 'name="file"; filename="a.txt"'


def parse(*pieces: bytes) -> tuple[FileStart | None, bytes]:
    form, start, content = UploadForm(CONTENT_TYPE), None, b""
    for piece in pieces:
        for event in form.feed(piece):
            if isinstance(event, FileStart):
                start = event
            else:
                content += event.data
    form.end()
    return start, content


def refused(*pieces: bytes, content_type: str = CONTENT_TYPE) -> ProblemKind:
    with pytest.raises(Problem) as caught:  # noqa: PT012 - any of the steps may be the one
        form = UploadForm(content_type)
        for piece in pieces:
            form.feed(piece)
        form.end()
    return caught.value.kind


def test_the_file_comes_out_with_its_name_and_type() -> None:
    assert parse(part(FILE, b"hello", "Content-Type: text/plain; charset=utf-8") + END) == (
        FileStart("a.txt", "text/plain"),
        b"hello",
    )


def test_an_empty_file_is_a_file() -> None:
    assert parse(part(FILE) + END) == (FileStart("a.txt", "application/octet-stream"), b"")


def test_other_fields_around_it_are_read_over_files_or_not() -> None:
    around = part('name="comment"', b"hi"), part('name="other"; filename="b.txt"', b"not this")
    assert parse(around[0] + part(FILE, b"this") + around[1] + END)[1] == b"this"


NASTY = st.lists(st.sampled_from([b"\r", b"\n", b"--", b"cut", b"x"])).map(b"".join)


@given(
    content=st.binary(max_size=300)
    | st.lists(st.sampled_from([b"\r", b"\n", b"--", b"cut", b"x"])).map(b"".join),
    cuts=st.lists(st.integers(0, 500), max_size=12),
)
def test_it_does_not_matter_how_the_bytes_are_cut(content: bytes, cuts: list[int]) -> None:
    if b"\r\n--cut" in b"\r\n" + content + b"\r\n":
        return
    whole = part('name="a"', b"1") + part(FILE, content) + part('name="b"', b"2") + END
    places = [0, *sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
    pieces = [whole[start:end] for start, end in itertools.pairwise(places)]
    assert parse(*pieces)[1] == content


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ('filename="../../etc/passwd"', "passwd"),
        ('filename="say %22hi%22.txt"', "say _hi_.txt"),
        ('filename="100%41.txt"', "100%41.txt"),
        ('filename="\N{HANGUL SYLLABLE PA}\N{HANGUL SYLLABLE IL}.txt"', "파일.txt"),
        ("filename=plain.txt", "plain.txt"),
    ],
)
def test_a_file_name_arrives_as_it_is_meant(header: str, name: str) -> None:
    start, _ = parse(part(f'name="file"; {header}', b"x") + END)
    assert start is not None
    assert start.filename == name


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (part('name="other"; filename="a"', b"x") + END, problems.FILE_FIELD_MISSING),
        (END, problems.FILE_FIELD_MISSING),
        (part('name="file"', b"x") + END, problems.FILE_NAME_MISSING),
        (part('name="file"; filename=""') + END, problems.FILE_NAME_MISSING),
        (part('name="file"; filename=".."') + END, problems.FILE_NAME_MISSING),
        (part(FILE, b"one") + part(FILE, b"two") + END, problems.MULTIPART_MALFORMED),
        (part(FILE, b"cut off"), problems.MULTIPART_MALFORMED),
        (b"", problems.MULTIPART_MALFORMED),
        (b"no form at all", problems.MULTIPART_MALFORMED),
        (part(FILE, b"x", "no colon"), problems.MULTIPART_MALFORMED),
        (part(FILE, b"x", *(f"x-{n}: y" for n in range(20))), problems.MULTIPART_MALFORMED),
        (part(FILE, b"x", "x: " + "y" * 9000), problems.MULTIPART_MALFORMED),
        (part('name="x"', b"1") * 101 + END, problems.MULTIPART_MALFORMED),
        (part('name="x"', b"1" * MAX_OVERHEAD) + part(FILE, b"x") + END, problems.MULTIPART_MALFORMED),
        (part(FILE, b"x") + END + b"z" * MAX_OVERHEAD, problems.MULTIPART_MALFORMED),
    ],
)
def test_a_form_that_is_no_upload_is_refused_with_its_reason(body: bytes, kind: ProblemKind) -> None:
    assert refused(body) is kind


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("", problems.UNSUPPORTED_MEDIA_TYPE),
        ("application/json", problems.UNSUPPORTED_MEDIA_TYPE),
        ("application/x-www-form-urlencoded", problems.UNSUPPORTED_MEDIA_TYPE),
        ("multipart/form-data", problems.MULTIPART_MALFORMED),
        ("multipart/form-data; boundary=", problems.MULTIPART_MALFORMED),
        ("multipart/form-data; boundary=" + "x" * 71, problems.MULTIPART_MALFORMED),
    ],
)
def test_a_body_that_is_no_form_is_refused_before_it_is_read(content_type: str, kind: ProblemKind) -> None:
    assert refused(content_type=content_type) is kind


@given(
    st.lists(st.sampled_from([b"--cut", b"\r\n", b"--", b": ", b"name", b'"', b";", b"\xff", b"file", b"="]))
)
def test_garbage_is_refused_with_a_documented_problem_and_nothing_else(pieces: list[bytes]) -> None:
    with contextlib.suppress(Problem):
        parse(b"--cut\r\n", *pieces)


def test_data_is_a_view_and_not_a_copy() -> None:
    form = UploadForm(CONTENT_TYPE)
    form.feed(part(FILE)[:-2])
    chunk = b"x" * 1000
    (event,) = form.feed(chunk)
    assert isinstance(event, FileData)
    assert event.data.obj is chunk
