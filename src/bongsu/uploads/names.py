"""What a client calls its file, made fit to be shown. Pure; it never becomes part of a path of ours."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

__all__ = ["OCTET_STREAM", "clean_content_type", "clean_filename"]

OCTET_STREAM: Final = "application/octet-stream"

_MAX_BYTES: Final = 255  # what common file systems allow: the name may be used again on download
_MAX_EXTENSION: Final = 32
_MEDIA_TYPE: Final = re.compile(r"[a-z0-9!#$&^_.+-]{1,63}/[a-z0-9!#$&^_.+-]{1,63}")
# Device names of Windows, where a download called `nul.txt` cannot be saved or opened.
_RESERVED: Final = re.compile(
    r"(?:con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(?:\.|$)", re.IGNORECASE
)
_FORBIDDEN: Final = str.maketrans(dict.fromkeys(':*?"<>|', "_"))


def clean_filename(name: str) -> str:
    """The last component of `name`, safe to show and to save; "" when nothing is left.

    NFC; no separators, control, format (bidi overrides hide an extension) or unassigned characters; no
    leading or trailing spaces and trailing dots; at most 255 bytes in UTF-8, the extension kept.
    """
    name = unicodedata.normalize("NFC", name)
    name = name.replace("\\", "/").rpartition("/")[2]
    # Zs: the many kinds of space. C: control, format, surrogate, private, unassigned; Zl, Zp: line ends.
    name = "".join(" " if unicodedata.category(c) == "Zs" else c for c in name)
    name = "".join(c for c in name if c == " " or unicodedata.category(c)[0] not in "CZ")
    # Once more: what a format character kept apart may go together now.
    name = unicodedata.normalize("NFC", name).translate(_FORBIDDEN).strip().rstrip(". ")
    if _RESERVED.match(name):
        name = f"_{name}"
    return _shortened(name)


def _shortened(name: str) -> str:
    if len(name.encode()) <= _MAX_BYTES:
        return name
    stem, dot, extension = name.rpartition(".")
    if not stem or len(extension.encode()) > _MAX_EXTENSION:
        stem, dot, extension = name, "", ""
    room = _MAX_BYTES - len((dot + extension).encode())
    return stem.encode()[:room].decode(errors="ignore").rstrip(". ") + dot + extension


def clean_content_type(declared: str) -> str:
    """The media type without parameters, lower case; `application/octet-stream` when it is not one."""
    essence = declared.partition(";")[0].strip().lower()
    return essence if _MEDIA_TYPE.fullmatch(essence) else OCTET_STREAM
