"""Arguments, environment and `bongsu.toml` -> `Settings`, or every problem at once in plain words.

Plain pydantic reads the values, not pydantic-settings: that reads the environment whenever a model is
constructed, lets a mistyped `BONGSU_PROT=1` pass, stops at the first value that is not JSON, and cannot tell
which variable a value came from. An operator needs all problems in one go, by the names they typed.

House rule that makes this possible: a float among the options is a duration in seconds, and an int counts
bytes by its name (`_SIZES`), but for `history_size`, a name of the protocol's, which counts publications.
Both may be written with a unit here; the rooms see numbers only.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import Any, Final, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from bongsu.settings.model import Settings
from bongsu.settings.names import PREFIX, Path, Setting, UnknownName, as_key, as_variable, find, without_none
from bongsu.settings.values import parse_duration, parse_json, parse_list, parse_size

# Read by the commands that talk to a server, not by the server.
CONFIG_VARIABLE: Final = "BONGSU_CONFIG"
URL_VARIABLE: Final = "BONGSU_URL"
ACCESS_TOKEN_VARIABLE: Final = "BONGSU_ACCESS_TOKEN"
_OTHER_VARIABLES: Final = frozenset({CONFIG_VARIABLE, URL_VARIABLE, ACCESS_TOKEN_VARIABLE})

_SIZES: Final = re.compile("size|_quota$|_free$|_rate$")
"""What the names of options that count bytes have in them."""

# A Service named "bongsu" makes Kubernetes set these in every pod of its namespace.
_KUBERNETES: Final = re.compile(r"BONGSU_(SERVICE_(HOST|PORT)|PORT_[0-9]+_(TCP|UDP))")
_KUBERNETES_PORT: Final = re.compile(r"(tcp|udp)://")
_KUBERNETES_HINT: Final = (
    "Kubernetes sets it for a Service named “bongsu”; put `enableServiceLinks: false` into the pod's spec"
)

# Where pydantic's own words speak of parsing.
_WORDS: Final = MappingProxyType(
    {
        "bool_parsing": "must be true or false",
        "bool_type": "must be true or false",
        "int_parsing": "must be a whole number",
        "int_from_float": "must be a whole number",
        "float_type": "must be a number of seconds",
        "string_type": "must be a text",
    }
)


class SettingsError(Exception):
    """The settings cannot be used. `problems` has a sentence each, without secrets; the message has all."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def load(**overrides: object) -> Settings:
    """Settings from `overrides`, then environment `BONGSU_*`, then `bongsu.toml`, then defaults.

    `bongsu.toml` is that of the working directory, or the file that `BONGSU_CONFIG` names. An override may be
    a group as a mapping or as its model: `load(port=0, client={"slow_timeout": "2s"})`.
    Raises `SettingsError` with every problem found.
    """
    return load_explained(**overrides)[0]


def load_explained(**overrides: object) -> tuple[Settings, Mapping[Path, str]]:
    """As `load`, and where each value that is not a default came from, by its path."""
    found = _Found()
    found.add(((path, value, f"argument {as_key(path)}") for path, value in _leaves(overrides)), as_key)
    found.add(_environment(), as_variable, text=True)
    try:
        found.add(_toml(), as_key)
    except _UnreadableFile as error:
        found.problems.append(str(error))
    try:
        settings = Settings.model_validate(found.tree())
    except ValidationError as error:
        found.problems += [found.in_words(problem) for problem in error.errors(include_url=False)]
        raise SettingsError(found.problems) from None  # the cause would show what was typed, secrets too
    if found.problems:
        raise SettingsError(found.problems)
    return settings, found.origins


@dataclass(slots=True)
class _Found:
    """What the sources said so far, the strongest first; later ones only fill gaps."""

    values: dict[Path, object] = field(default_factory=dict)
    origins: dict[Path, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(
        self,
        entries: Iterable[tuple[Path, object, str]],
        written_as: Callable[[Path], str],
        *,
        text: bool = False,
    ) -> None:
        """Take (typed name, value, origin) of one source, whose names look like `written_as`.

        `text`: the source has only strings, so that lists are written in them.
        """
        seen: dict[Path, str] = {}
        for typed, value, origin in entries:
            try:
                setting = find(typed)
            except UnknownName as unknown:
                self.problems.append(_unknown(origin, unknown, written_as))
                continue
            path = setting.path if isinstance(setting, Setting) else setting
            if path in seen:
                self.problems.append(f"{origin}: is set twice, by {seen[path]} too")
                continue
            seen[path] = origin
            try:
                value = _convert(setting, value, text=text)
            except ValueError as error:
                self.problems.append(f"{origin}: {error}")
                continue
            if path not in self.values:
                self.values[path] = value
                self.origins[path] = origin

    def tree(self) -> dict[str, Any]:
        """The values as nested dictionaries."""
        root: dict[str, Any] = {}
        for path, value in self.values.items():
            node = root
            for part in path[:-1]:
                node = node.setdefault(part, {})
            if value == {}:  # a namespace without options
                node.setdefault(path[-1], {})
            else:
                node[path[-1]] = value
        return root

    def in_words(self, problem: ErrorDetails) -> str:
        """One problem of the validation as a sentence that begins with the name the operator knows."""
        path = tuple(part for part in problem["loc"] if isinstance(part, str))
        setting: Setting | Path = ()
        while path:
            try:
                setting = find(path)
                break
            except UnknownName:  # a member of a list or of a union: pydantic counts those too
                path = path[:-1]
        if path in self.origins:
            name = self.origins[path]
        elif isinstance(setting, Setting):
            name = f"{setting.variable} ({setting.key} in bongsu.toml)"
        else:
            name = as_key(path)
        words = _WORDS.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
        words = re.sub(r"^\w+ should", "must", words)
        given = problem["input"]
        if (
            problem["type"] != "value_error"
            and isinstance(setting, Setting)
            and without_none(setting.field.annotation) is not SecretStr
            and isinstance(given, str | int | float)
        ):
            words += f", not {given!r}"
        return f"{name}: {words}"


class _UnreadableFile(Exception):
    """The message says which file and why."""


def _unknown(origin: str, unknown: UnknownName, written_as: Callable[[Path], str]) -> str:
    if _KUBERNETES.match(origin):
        return f"{origin}: is not a setting. {_KUBERNETES_HINT}"
    hint = "" if unknown.nearest is None else f"; did you mean {written_as(unknown.nearest)}?"
    return f"{origin}: there is no such setting{hint}"


def _environment() -> Iterator[tuple[Path, object, str]]:
    for name, value in os.environ.items():
        if not name.upper().startswith(PREFIX) or name in _OTHER_VARIABLES:
            continue
        if value:  # empty is how compose files and unit files say "not set"
            yield tuple(name[len(PREFIX) :].lower().split("__")), value, name


def _toml() -> Iterator[tuple[Path, object, str]]:
    named = os.environ.get(CONFIG_VARIABLE)
    file = FilePath(named or "bongsu.toml")
    try:
        table = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        if named:
            raise _UnreadableFile(f"{CONFIG_VARIABLE}: there is no file {named}") from None
        return
    except OSError as error:
        raise _UnreadableFile(f"{file}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _UnreadableFile(f"{file}: is not valid TOML: {error}") from None
    for path, value in _leaves(table):
        yield path, value, f"{file.name}: {as_key(path)}"


def _leaves(table: Mapping[str, object], above: Path = ()) -> Iterator[tuple[Path, object]]:
    """The single settings of nested tables or models; also an empty group, which a namespace may be."""
    for key, value in table.items():
        path = (*above, key)
        if isinstance(value, BaseModel):
            value = {name: getattr(value, name) for name in value.model_fields_set}
        if isinstance(value, Mapping) and value and _is_group(path):
            yield from _leaves(value, path)
        else:
            yield path, value


def _is_group(path: Path) -> bool:
    try:
        return not isinstance(find(path), Setting)
    except UnknownName:
        return False


def _convert(setting: Setting | Path, value: object, *, text: bool) -> object:
    """`value` without its unit or its list syntax. Raises `ValueError` in words."""
    if not isinstance(setting, Setting):
        if value == {}:
            return value
        raise ValueError(f"is a group of settings; set its members, such as {as_variable((*setting, '…'))}")
    kind = without_none(setting.field.annotation)
    if kind in (int, float) and isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    if kind is float:
        seconds = parse_duration(value) if isinstance(value, str) else value
        if isinstance(seconds, float) and not math.isfinite(seconds):
            raise ValueError("must be a finite number of seconds")
        return seconds
    if not isinstance(value, str):
        return value
    if kind is int and _SIZES.search(setting.path[-1]) and setting.path[-1] != "history_size":
        return parse_size(value)
    if text and get_origin(kind) in (list, tuple, set, frozenset):
        return parse_list(value)
    if text and get_origin(kind) is dict:
        return parse_json(value)
    if _KUBERNETES_PORT.match(value) and setting.path == ("port",):
        raise ValueError(f"must be a number, not {value!r}. {_KUBERNETES_HINT}")
    return value
