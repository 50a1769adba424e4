"""The multipart form of an upload, as its bytes arrive. Pure: bytes in, events out.

Sources: RFC 7578 (multipart/form-data), RFC 2046 §5.1; names are percent-escaped by browsers as the
HTML standard says ("multipart/form-data encoding algorithm").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NoReturn

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from bongsu.protocol import problems
from bongsu.uploads.names import clean_content_type, clean_filename

__all__ = ["FIELD", "MAX_OVERHEAD", "FileData", "FileStart", "UploadForm"]

FIELD: Final = "file"
MAX_OVERHEAD: Final = 1024 * 1024
"""Bytes that a form may have besides the file's content: boundaries, headers, other fields."""

_MAX_PARTS: Final = 100
_MAX_HEADERS: Final = 16  # per part
_MAX_HEADER_SIZE: Final = 8 * 1024


@dataclass(frozen=True, slots=True)
class FileStart:
    """The file's part begins. `filename` is cleaned and not empty."""

    filename: str
    content_type: str


@dataclass(frozen=True, slots=True)
class FileData:
    """The next bytes of the file: a view into what was fed, valid until the next `feed`."""

    data: memoryview


class UploadForm:
    """One form with exactly one file in the field `file`; other fields are read over.

    Every method raises `Problem`: `UNSUPPORTED_MEDIA_TYPE`, `MULTIPART_MALFORMED`, `FILE_FIELD_MISSING`,
    `FILE_NAME_MISSING`. After that the form is of no further use.
    """

    def __init__(self, content_type: str) -> None:
        media_type, parameters = parse_options_header(content_type)
        if media_type != b"multipart/form-data":
            raise problems.Problem(
                problems.UNSUPPORTED_MEDIA_TYPE,
                f"Send multipart/form-data with the file in field “{FIELD}”, as `curl -F {FIELD}=@…` does.",
            )
        boundary = parameters.get(b"boundary", b"")
        if not 0 < len(boundary) <= 70:  # RFC 2046 §5.1.1
            _malformed("the Content-Type names no usable boundary")
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begins,
                "on_header_begin": self._header_begins,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_ends,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._part_data,
                "on_part_end": self._part_ends,
                "on_end": self._form_ends,
            },
            max_header_count=_MAX_HEADERS,
            max_header_size=_MAX_HEADER_SIZE,
        )
        self._events: list[FileStart | FileData] = []
        self._fed = 0
        self._file_bytes = 0
        self._parts = 0
        self._name = bytearray()
        self._value = bytearray()
        self._headers: dict[bytes, str] = {}
        self._in_file = False
        self._has_file = False
        self._complete = False

    def feed(self, data: bytes) -> list[FileStart | FileData]:
        """Take the next bytes of the body; what they hold of the file, in order."""
        self._events = []
        self._fed += len(data)
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise problems.Problem(
                problems.MULTIPART_MALFORMED, f"The form cannot be read: {error}."
            ) from error
        # Checked after each feed: what is fed at once is bounded by the caller.
        if self._fed - self._file_bytes > MAX_OVERHEAD:
            _malformed(f"it has more than {MAX_OVERHEAD} bytes besides the file in the field “{FIELD}”")
        return self._events

    def end(self) -> None:
        """Say that the body has ended. Returns only when it was a whole form with a file."""
        if not self._complete:
            _malformed("it ends before its last boundary")
        if not self._has_file:
            raise problems.Problem(
                problems.FILE_FIELD_MISSING,
                f"Put the file in the form field “{FIELD}”, as `curl -F {FIELD}=@…` does.",
            )

    def _part_begins(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            _malformed(f"it has more than {_MAX_PARTS} parts")
        self._headers = {}

    def _header_begins(self) -> None:
        self._name, self._value = bytearray(), bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        self._headers[bytes(self._name).lower()] = self._value.decode("latin-1")

    def _headers_end(self) -> None:
        _, disposition = parse_options_header(self._headers.get(b"content-disposition"))
        if disposition.get(b"name", b"").decode(errors="replace") != FIELD:
            return
        if self._has_file:
            _malformed(f"it has the field “{FIELD}” twice; send one file per request")
        if b"filename" not in disposition:
            raise problems.Problem(
                problems.FILE_NAME_MISSING,
                f"The field “{FIELD}” has no file name; send it as a file, as `curl -F {FIELD}=@…` does.",
            )
        filename = clean_filename(_unescaped(disposition[b"filename"].decode(errors="replace")))
        if not filename:
            raise problems.Problem(
                problems.FILE_NAME_MISSING, "The file name is empty, or nothing of it can be shown."
            )
        self._has_file = self._in_file = True
        declared = self._headers.get(b"content-type", "")
        self._events.append(FileStart(filename, clean_content_type(declared)))

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._file_bytes += end - start
            self._events.append(FileData(memoryview(data)[start:end]))

    def _part_ends(self) -> None:
        self._in_file = False

    def _form_ends(self) -> None:
        self._complete = True


def _unescaped(name: str) -> str:
    # Only these three: a browser escapes nothing else, and a literal %41 in a name must stay one.
    return name.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")


def _malformed(why: str) -> NoReturn:
    raise problems.Problem(problems.MULTIPART_MALFORMED, f"The form cannot be read: {why}.")
