"""The names of settings: from a typed name to its place in `Settings`, or to the nearest one there is."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Final, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bongsu.settings.model import Settings

PREFIX: Final = "BONGSU_"
NAMESPACE: Final = "<name>"  # stands for a namespace's name in the path of a known setting

# Ratio of difflib from which on a name is worth suggesting: a typo or a missing part, not a coincidence.
_SIMILAR: Final = 0.7

Path = tuple[str, ...]


class UnknownName(Exception):
    """Nothing is set by this name. `nearest` is the path of the most similar one that is."""

    def __init__(self, nearest: Path | None) -> None:
        super().__init__()
        self.nearest = nearest


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing that can be set, by its place in `Settings`; a namespace's name there is `<name>`."""

    path: Path
    field: FieldInfo

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return as_variable(self.path)

    @property
    def key(self) -> str:
        """Its key in `bongsu.toml`."""
        return as_key(self.path)


def as_variable(path: Path) -> str:
    """`("log", "level")` -> `BONGSU_LOG__LEVEL`. A namespace's name stays as it is."""
    return PREFIX + "__".join(part if _is_namespace(path, i) else part.upper() for i, part in enumerate(path))


def as_key(path: Path) -> str:
    """`("log", "level")` -> `log.level`."""
    return ".".join(path)


def known_settings() -> Iterator[Setting]:
    """Every setting there is, in the order of the models."""
    return _known((), Settings)


def find(typed: Sequence[str]) -> Setting | Path:
    """The setting at `typed` (option names in either case), or the canonical path of a group of settings.

    Raises `UnknownName`.
    """
    kind: Any = Settings
    field: FieldInfo | None = None
    path: list[str] = []
    for part in typed:
        model = namespace_model(kind)
        if model is not None:
            path.append(part)  # never folded: `Chat` and `chat` are two namespaces
            kind, field = model, None
            continue
        if not is_model(kind) or part.lower() not in kind.model_fields:
            raise UnknownName(_nearest(typed))
        path.append(part.lower())
        field = kind.model_fields[part.lower()]
        kind = without_none(field.annotation)
    if field is None or is_model(kind) or namespace_model(kind) is not None:
        return tuple(path)
    return Setting(tuple(path), field)


def is_model(kind: object) -> bool:
    """Whether `kind` is a group of settings with names of its own."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def namespace_model(kind: Any) -> type[BaseModel] | None:
    """The model of the values of a `dict[str, SomeModel]`, which namespaces are."""
    if get_origin(kind) is dict and is_model(get_args(kind)[1]):
        model: type[BaseModel] = get_args(kind)[1]
        return model
    return None


def without_none(annotation: Any) -> Any:
    """`T | None` -> `T`; anything else as it is."""
    if get_origin(annotation) in (Union, UnionType):
        rest = [part for part in get_args(annotation) if part is not NoneType]
        return rest[0] if len(rest) == 1 else annotation
    return annotation


def _known(above: Path, model: type[BaseModel]) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        path = (*above, name)
        kind = without_none(field.annotation)
        if is_model(kind):
            yield from _known(path, kind)
        elif (inner := namespace_model(kind)) is not None:
            yield from _known((*path, NAMESPACE), inner)
        else:
            yield Setting(path, field)


def _is_namespace(path: Path, index: int) -> bool:
    return index == 2 and path[:2] == ("channels", "namespaces")


def _nearest(typed: Sequence[str]) -> Path | None:
    """The whole name first, then its last part alone: `hmac_secret` may mean `token.hmac_secret`."""
    names: dict[str, Path] = {}
    for setting in known_settings():
        path = tuple(typed[2] if part == NAMESPACE and len(typed) > 2 else part for part in setting.path)
        for length in range(len(path), 0, -1):  # groups too
            names.setdefault("__".join(path[:length]).lower(), path[:length])
    wanted = "__".join(typed).lower()
    for close in difflib.get_close_matches(wanted, names, n=1, cutoff=_SIMILAR):
        return names[close]
    last_parts = {path[-1].lower(): path for path in reversed(names.values())}
    for close in difflib.get_close_matches(typed[-1].lower(), last_parts, n=1, cutoff=_SIMILAR):
        return last_parts[close]
    return None
