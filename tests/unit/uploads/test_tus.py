"""tus headers, read and written."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime, timedelta, timezone

import pytest

from bongsu.protocol import problems
from bongsu.protocol.problems import Problem, ProblemKind
from bongsu.uploads import tus
from bongsu.uploads.tus import MEDIA_TYPE, Append, Checksum, Creation

A, B = "a" * 32, "b" * 32
BYTES = {"content-type": MEDIA_TYPE, "content-length": "5"}
SHA1 = base64.b64encode(hashlib.sha1(b"hello").digest()).decode()
SHA256 = base64.b64encode(hashlib.sha256(b"hello").digest()).decode()


def creation(**headers: str) -> Creation:
    return tus.parse_creation(_named(headers))


def append(**headers: str) -> Append:
    return tus.parse_append({**BYTES, **_named(headers)})


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def refusal(kind: ProblemKind, words: str = "") -> pytest.RaisesExc[Problem]:
    return pytest.RaisesExc(Problem, check=lambda problem: problem.kind is kind and words in problem.detail)


# Method and version


@pytest.mark.parametrize(
    ("method", "override", "meant"),
    [
        ("POST", "PATCH", "PATCH"),
        ("POST", " delete ", "DELETE"),
        ("POST", "HEAD", "HEAD"),
        ("POST", "POST", "POST"),
        ("POST", "", "POST"),
        ("PATCH", "DELETE", "PATCH"),
    ],
)
def test_a_post_is_taken_for_the_method_that_it_says(method: str, override: str, meant: str) -> None:
    assert tus.method_of(method, {"x-http-method-override": override}) == meant
    assert tus.method_of(method, {}) == method


def test_a_get_stays_a_get_since_pages_of_other_sites_may_send_it() -> None:
    assert tus.method_of("GET", {"x-http-method-override": "DELETE"}) == "GET"


def test_a_post_cannot_be_any_method() -> None:
    with refusal(problems.METHOD_NOT_ALLOWED):
        tus.method_of("POST", {"x-http-method-override": "TRACE"})


@pytest.mark.parametrize("said", [None, "", "0.2.2", "1.0.1", "1.0.0, 2.0.0"])
def test_only_version_1_0_0_is_spoken(said: str | None) -> None:
    tus.check_version({"tus-resumable": " 1.0.0 "})
    with refusal(problems.TUS_VERSION_UNSUPPORTED, "1.0.0"):
        tus.check_version({} if said is None else {"tus-resumable": said})


# Creation


@pytest.mark.parametrize("name", ["upload-length", "upload-offset", "upload-metadata", "tus-resumable"])
def test_a_header_that_says_two_things_is_refused(name: str) -> None:
    with pytest.raises(Problem, match="twice") as caught:
        tus.said_once([(name, "5"), ("accept", "a"), (name, "6")])
    assert caught.value.kind is problems.TUS_HEADER_INVALID
    assert tus.said_once([(name, "5"), ("accept", "a"), (name, "5"), ("accept", "b")]) == {
        name: "5",
        "accept": "a",
    }


def test_an_upload_is_created_with_a_length_or_with_one_that_is_said_later() -> None:
    assert creation(upload_length="0") == Creation(0, None, False, (), False, None)
    assert creation(upload_length=" 9223372036854775807 ").length == 2**63 - 1
    assert creation(upload_defer_length="1").length is None


@pytest.mark.parametrize(
    "number", ["", "-1", "+1", "1.0", "1e3", "0x10", "٣", "9223372036854775808", "9" * 999]
)
def test_a_length_is_a_whole_number_that_fits(number: str) -> None:
    with refusal(problems.TUS_HEADER_INVALID, "Upload-Length"):
        creation(upload_length=number)


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({}, "say how many bytes"),
        ({"upload_length": "5", "upload_defer_length": "1"}, "not both"),
        ({"upload_defer_length": "0"}, "its only value is 1"),
        ({"upload_length": "5", "upload_concat": f"final;/files/{A}"}, "leave it out"),
        ({"upload_defer_length": "1", "upload_concat": f"final;/files/{A}"}, "leave it out"),
    ],
)
def test_a_length_is_said_once_and_never_for_a_concatenation(headers: dict[str, str], words: str) -> None:
    with refusal(problems.TUS_HEADER_INVALID, words):
        creation(**headers)


def test_the_first_bytes_may_come_along() -> None:
    made = tus.parse_creation({**BYTES, "upload-length": "9", "upload-checksum": f"sha1 {SHA1}"})
    assert made.with_bytes
    assert made.checksum is not None
    assert tus.parse_creation({"content-type": f"{MEDIA_TYPE.upper()}; x=y", "upload-length": "9"}).with_bytes
    assert not creation(upload_length="9", content_length="0", content_type="text/plain").with_bytes


@pytest.mark.parametrize("framing", [{"content_length": "5"}, {"transfer_encoding": "chunked"}])
def test_bytes_of_another_type_are_refused(framing: dict[str, str]) -> None:
    for content_type in ({}, {"content_type": "application/octet-stream"}):
        with refusal(problems.UNSUPPORTED_MEDIA_TYPE, MEDIA_TYPE):
            creation(upload_length="9", **framing, **content_type)


# Concatenation


def test_a_part_says_that_it_is_one() -> None:
    assert creation(upload_length="5", upload_concat="partial").partial
    assert not creation(upload_length="5", upload_concat="").partial


def test_a_concatenation_names_its_parts_in_order_by_any_address_of_theirs() -> None:
    made = creation(upload_concat=f"final;/files/{B} https://h:1/prefix/files/{A}/?x=1")
    assert (made.partial, made.parts, made.length) == (False, (B, A), None)
    assert creation(upload_concat=f"final; files/{A}").parts == (A,)
    # A content type alone brings no bytes.
    assert not creation(upload_concat=f"final;/files/{A}", content_type=MEDIA_TYPE).with_bytes


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("final", "the addresses of the parts"),
        ("final;", "the addresses of the parts"),
        (f"whole;/files/{A}", "the addresses of the parts"),
        ("final;/files/1", "no address of an upload"),
        (f"final;/uploads/{A}", "no address of an upload"),
        (f"final;/files/{A}/content", "no address of an upload"),
        (f"final;http://[/files/{A}", "no address of an upload"),
        (f"final;/files/{A} /files/{B} /files/{A}", "twice"),
        ("final;" + " ".join(f"/files/{n:032x}" for n in range(tus.MAX_PARTS + 1)), "up to 500"),
    ],
)
def test_a_concatenation_of_something_else_is_refused(value: str, words: str) -> None:
    with refusal(problems.TUS_HEADER_INVALID, words):
        creation(upload_concat=value)


def test_a_concatenation_has_no_bytes_of_its_own() -> None:
    with refusal(problems.UPLOAD_IS_FINAL):
        tus.parse_creation({**BYTES, "upload-concat": f"final;/files/{A}"})


# Metadata


def test_metadata_keeps_what_came_and_knows_name_and_type() -> None:
    header = "filename 67SJ7IiYLnR4dA==, filetype dGV4dC9wbGFpbg==,is_secret,empty "
    made = creation(upload_length="5", upload_metadata=header)
    assert made.metadata is not None
    assert made.metadata.header == header
    assert made.metadata.values == {
        "filename": "봉수.txt".encode(),
        "filetype": b"text/plain",
        "is_secret": b"",
        "empty": b"",
    }
    assert (made.filename, made.content_type) == ("봉수.txt", "text/plain")


@pytest.mark.parametrize(
    ("header", "filename", "content_type"),
    [
        ("name YS5wbmc=,type aW1hZ2UvcG5n", "a.png", "image/png"),
        ("filename Yi5wbmc=,name YS5wbmc=", "b.png", "application/octet-stream"),
        ("filename Li4vLi4vZXRjL3Bhc3N3ZA", "passwd", "application/octet-stream"),
        ("filename /////w==,filetype /////w==", "\ufffd" * 4, "application/octet-stream"),
        ("filename Li4=", tus.UNNAMED, "application/octet-stream"),
        ("", tus.UNNAMED, "application/octet-stream"),
    ],
)
def test_names_and_types_are_cleaned_whatever_they_were(
    header: str, filename: str, content_type: str
) -> None:
    made = creation(upload_length="5", upload_metadata=header)
    assert (made.filename, made.content_type) == (filename, content_type)


def test_without_metadata_a_file_is_called_something() -> None:
    made = creation(upload_length="5")
    assert (made.metadata, made.filename, made.content_type) == (
        None,
        tus.UNNAMED,
        "application/octet-stream",
    )


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("a YQ==,a YQ==", "'a' comes twice"),
        ("a YQ==,", "a key is"),
        (" ,a", "a key is"),
        ("í YQ==", "a key is"),
        ("a Y", "is not Base64"),
        ("a YQ==YQ==", "is not Base64"),
        ("a YQ== YQ==", "is not Base64"),
        ("a é", "is not Base64"),
        ("a " + "A" * 8192, "8192 characters"),
    ],
)
def test_malformed_metadata_is_refused(header: str, words: str) -> None:
    with refusal(problems.TUS_HEADER_INVALID, words):
        tus.parse_metadata(header)


# Bytes


def test_bytes_say_where_they_belong() -> None:
    assert append(upload_offset="7") == Append(7, None, None)
    assert append(upload_offset="0", upload_length="9").length == 9


@pytest.mark.parametrize(
    "headers", [{}, {"upload_offset": "-1"}, {"upload_offset": "0", "upload_length": "x"}]
)
def test_bytes_without_a_usable_place_are_refused(headers: dict[str, str]) -> None:
    with refusal(problems.TUS_HEADER_INVALID, "Upload-"):
        append(**headers)


@pytest.mark.parametrize("content_type", ["", "application/octet-stream"])
def test_bytes_have_the_type_of_the_protocol(content_type: str) -> None:
    with refusal(problems.UNSUPPORTED_MEDIA_TYPE, MEDIA_TYPE):
        append(upload_offset="0", content_type=content_type)


@pytest.mark.parametrize(
    ("algorithm", "digest"), [("sha1", SHA1), ("sha256", SHA256), ("sha1", SHA1.rstrip("="))]
)
def test_bytes_are_compared_with_their_checksum(algorithm: str, digest: str) -> None:
    checksum = append(upload_offset="0", upload_checksum=f"{algorithm} {digest}").checksum
    assert isinstance(checksum, Checksum)
    hasher = checksum.hasher()
    hasher.update(b"hell")
    assert not checksum.matches(hasher)
    hasher.update(b"o")
    assert checksum.matches(hasher)


def test_a_checksum_of_another_kind_or_form_is_refused() -> None:
    for said in ("md5 1B2M2Y8AsgTpgAmY7PhCfg==", "", "SHA1"):
        with refusal(problems.CHECKSUM_UNSUPPORTED, "sha1, sha256"):
            append(upload_offset="0", upload_checksum=said)
    for said in ("sha1", "sha1 ?", f"sha1 {SHA256}", f"sha256 {SHA1}"):
        with refusal(problems.TUS_HEADER_INVALID, "Upload-Checksum"):
            append(upload_offset="0", upload_checksum=said)


# Answers


def test_options_say_what_there_is() -> None:
    assert tus.capabilities(10) == {
        "Tus-Resumable": "1.0.0",
        "Tus-Version": "1.0.0",
        "Tus-Extension": "creation,creation-with-upload,creation-defer-length,checksum,expiration,"
        "termination,concatenation",
        "Tus-Max-Size": "10",
        "Tus-Checksum-Algorithm": "sha1,sha256",
    }


def test_the_state_of_an_upload_is_told_and_kept_by_no_cache() -> None:
    moment = datetime(2026, 3, 1, 9, 30, tzinfo=timezone(timedelta(hours=9)))
    assert tus.state_headers(
        offset=3, length=None, metadata="a YQ==", partial=True, parts=(), expires_at=moment
    ) == {
        "Tus-Resumable": "1.0.0",
        "Upload-Offset": "3",
        "Upload-Defer-Length": "1",
        "Upload-Metadata": "a YQ==",
        "Upload-Concat": "partial",
        "Upload-Expires": "Sun, 01 Mar 2026 00:30:00 GMT",
        "Cache-Control": "no-store",
    }
    assert tus.state_headers(
        offset=3, length=3, metadata=None, partial=False, parts=("/files/a", "/files/b"), expires_at=None
    ) == {
        "Tus-Resumable": "1.0.0",
        "Upload-Offset": "3",
        "Upload-Length": "3",
        "Upload-Concat": "final;/files/a /files/b",
        "Cache-Control": "no-store",
    }
    plain = tus.state_headers(offset=0, length=3, metadata=None, partial=False, parts=(), expires_at=None)
    assert "Upload-Concat" not in plain


def test_progress_says_only_what_is_known() -> None:
    assert tus.progress_headers(offset=None, expires_at=None) == {"Tus-Resumable": "1.0.0"}
    assert tus.progress_headers(offset=5, expires_at=datetime(2026, 3, 1, tzinfo=UTC)) == {
        "Tus-Resumable": "1.0.0",
        "Upload-Offset": "5",
        "Upload-Expires": "Sun, 01 Mar 2026 00:00:00 GMT",
    }
