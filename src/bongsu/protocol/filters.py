"""Tags filters: a subscriber names the publications it wants by their tags.

A filter is checked and compiled once, at subscribe; each publication then costs a few calls. Both are
bounded, since the filter is the client's and the work is ours, once for every publication.

Source: the Centrifuge client protocol, §10 "Tags filter".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Final

from bongsu.protocol.messages import FilterNode

MAX_DEPTH: Final = 16
"""Nodes in one another."""

MAX_NODES: Final = 128
"""Nodes of one filter, all together."""

MAX_NUMBER_LENGTH: Final = 64
"""Characters of a tag that is compared as a number; a longer one is not a number."""

Filter = Callable[[Mapping[str, str]], bool]
"""Whether a publication with these tags is wanted."""


class FilterError(ValueError):
    """The filter is malformed or too large: answer error 107."""


def compile_filter(node: FilterNode) -> Filter:
    """The predicate that `node` describes; FilterError when it is malformed or too large."""
    return _Compiler().compile(node, 1)


class _Compiler:
    """Counts the nodes of one filter while it compiles them."""

    def __init__(self) -> None:
        self._nodes = 0

    def compile(self, node: FilterNode, depth: int) -> Filter:
        self._nodes += 1
        if self._nodes > MAX_NODES or depth > MAX_DEPTH:
            raise FilterError("the filter is too large")
        if not node.op:
            return _comparison(node)
        if not node.nodes:
            raise FilterError(f"“{node.op[:8]}” needs nodes")
        if node.op not in {"and", "or", "not"}:
            raise FilterError("unknown op")
        branches = [self.compile(branch, depth + 1) for branch in node.nodes]
        if node.op == "and":
            return lambda tags: all(branch(tags) for branch in branches)
        if node.op == "or":
            return lambda tags: any(branch(tags) for branch in branches)
        if len(branches) != 1:
            raise FilterError("“not” needs exactly one node")
        negated = branches[0]
        return lambda tags: not negated(tags)


def _comparison(node: FilterNode) -> Filter:
    if not node.key:
        raise FilterError("a comparison needs a key")
    key, val = node.key, node.val
    match node.cmp:
        case "ex" | "nex":
            if val or node.vals:
                raise FilterError(f"“{node.cmp}” takes no value")
            wanted = node.cmp == "ex"
            return lambda tags: (key in tags) is wanted
        case "in" | "nin":
            if not node.vals or val:
                raise FilterError(f"“{node.cmp}” needs a list of values, and no single one")
            values = frozenset(node.vals)
            if node.cmp == "in":
                return lambda tags: tags.get(key) in values
            return lambda tags: tags.get(key) not in values
        case "eq" | "neq" | "sw" | "ew" | "ct" | "lt" | "lte" | "gt" | "gte":
            if not val or node.vals:
                raise FilterError(f"“{node.cmp}” needs one value, and no list")
        case _:
            raise FilterError("unknown cmp")
    if node.cmp == "eq":
        return lambda tags: tags.get(key) == val
    if node.cmp == "neq":
        return lambda tags: tags.get(key) != val
    if node.cmp in _TEXT:
        text = _TEXT[node.cmp]
        return lambda tags: key in tags and text(tags[key], val)
    return _number_comparison(key, _NUMBER[node.cmp], _decimal(val))


_TEXT: Final[Mapping[str, Callable[[str, str], bool]]] = {
    "sw": str.startswith,
    "ew": str.endswith,
    "ct": str.__contains__,
}
_NUMBER: Final[Mapping[str, Callable[[Decimal, Decimal], bool]]] = {
    "lt": Decimal.__lt__,
    "lte": Decimal.__le__,
    "gt": Decimal.__gt__,
    "gte": Decimal.__ge__,
}


def _number_comparison(
    key: str, compare: Callable[[Decimal, Decimal], bool], bound: Decimal | None
) -> Filter:
    if bound is None:
        return lambda tags: False  # the protocol's answer to a bound that is no number

    def wanted(tags: Mapping[str, str]) -> bool:
        number = _decimal(tags.get(key, ""))
        return number is not None and compare(number, bound)

    return wanted


# Decimal alone would also take "NaN", "1_000", spaces and the digits of every script.
_DECIMAL: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def _decimal(text: str) -> Decimal | None:
    if len(text) > MAX_NUMBER_LENGTH or not _DECIMAL.fullmatch(text):
        return None
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent beyond what Decimal can hold
        return None
