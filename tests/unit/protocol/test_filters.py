"""Tags filters: the table of comparisons, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bongsu.protocol.filters import MAX_DEPTH, MAX_NODES, FilterError, compile_filter
from bongsu.protocol.messages import FilterNode

TAGS = {"lang": "en", "price": "9.50", "empty": ""}


def leaf(cmp: str, val: str = "", *vals: str, key: str = "lang") -> FilterNode:
    return FilterNode(key=key, cmp=cmp, val=val, vals=vals)


@pytest.mark.parametrize(
    ("node", "wanted"),
    [
        (leaf("eq", "en"), True),
        (leaf("eq", "ko"), False),
        (leaf("neq", "ko"), True),
        (leaf("neq", "en"), False),
        (leaf("in", "", "ko", "en"), True),
        (leaf("in", "", "ko"), False),
        (leaf("nin", "", "ko"), True),
        (leaf("nin", "", "en"), False),
        (leaf("ex"), True),
        (leaf("ex", key="empty"), True),
        (leaf("nex"), False),
        (leaf("sw", "e"), True),
        (leaf("sw", "n"), False),
        (leaf("ew", "n"), True),
        (leaf("ew", "e"), False),
        (leaf("ct", "n"), True),
        (leaf("ct", "x"), False),
        (leaf("lt", "10", key="price"), True),  # as text "9.50" is greater
        (leaf("lt", "9.5", key="price"), False),
        (leaf("lte", "9.5", key="price"), True),
        (leaf("gt", "9.4999999999999999999", key="price"), True),
        (leaf("gt", "9.5", key="price"), False),
        (leaf("gte", "+9.5", key="price"), True),
        (leaf("gte", "1e1", key="price"), False),
    ],
)
def test_a_comparison_decides_by_the_tag(node: FilterNode, wanted: bool) -> None:
    assert compile_filter(node)(TAGS) is wanted


@pytest.mark.parametrize(
    "cmp", ["eq", "neq", "in", "nin", "ex", "nex", "sw", "ew", "ct", "lt", "lte", "gt", "gte"]
)
def test_a_missing_tag_satisfies_only_the_negative_comparisons(cmp: str) -> None:
    node = (
        leaf(cmp) if cmp in {"ex", "nex"} else leaf(cmp, "", "1") if cmp in {"in", "nin"} else leaf(cmp, "1")
    )
    assert compile_filter(node)({}) is (cmp in {"neq", "nin", "nex"})


@pytest.mark.parametrize(
    "text", ["", "nan", "Infinity", "1_0", " 1", "１", "0x1", "1" * 65, "1e9999999999999999999999"]
)
@pytest.mark.parametrize("cmp", ["lt", "lte", "gt", "gte"])
def test_what_is_no_decimal_compares_false(cmp: str, text: str) -> None:
    assert compile_filter(leaf(cmp, "1"))({"lang": text}) is False
    if text:
        assert compile_filter(leaf(cmp, text))({"lang": "1"}) is False


def test_nodes_combine_their_branches() -> None:
    yes, no = leaf("ex"), leaf("nex")
    assert compile_filter(FilterNode(op="and", nodes=(yes, yes)))(TAGS)
    assert not compile_filter(FilterNode(op="and", nodes=(yes, no)))(TAGS)
    assert compile_filter(FilterNode(op="or", nodes=(no, yes)))(TAGS)
    assert not compile_filter(FilterNode(op="or", nodes=(no, no)))(TAGS)
    assert compile_filter(FilterNode(op="not", nodes=(no,)))(TAGS)
    assert not compile_filter(FilterNode(op="not", nodes=(yes,)))(TAGS)


def test_equal_filters_are_one_dictionary_key() -> None:
    """Subscribers that want the same share one encoding, so filters must be hashable by what they say."""
    one, other = (FilterNode(op="not", nodes=(leaf("in", "", "a", "b"),)) for _ in range(2))
    assert {one: 1}[other] == 1


@pytest.mark.parametrize(
    ("node", "complaint"),
    [
        (leaf("eq", "x", key=""), "needs a key"),
        (leaf("", "x"), "unknown cmp"),
        (leaf("like", "x"), "unknown cmp"),
        (leaf("eq"), "needs one value"),
        (leaf("eq", "x", "y"), "needs one value"),
        (leaf("in"), "needs a list"),
        (leaf("nin", "x", "y"), "needs a list"),
        (leaf("ex", "x"), "takes no value"),
        (leaf("nex", "", "x"), "takes no value"),
        (FilterNode(op="and"), "needs nodes"),
        (FilterNode(op="or"), "needs nodes"),
        (FilterNode(op="xor", nodes=(leaf("ex"),)), "unknown op"),
        (FilterNode(op="not", nodes=(leaf("ex"), leaf("ex"))), "exactly one"),
        (FilterNode(op="and", nodes=(leaf("ex"),) * MAX_NODES), "too large"),
    ],
)
def test_a_malformed_filter_is_refused(node: FilterNode, complaint: str) -> None:
    with pytest.raises(FilterError, match=complaint):
        compile_filter(node)


def test_a_filter_nests_only_so_deep() -> None:
    node = leaf("ex")
    for _ in range(MAX_DEPTH - 1):
        node = FilterNode(op="not", nodes=(node,))
    compile_filter(node)
    with pytest.raises(FilterError, match="too large"):
        compile_filter(FilterNode(op="not", nodes=(node,)))


words = st.sampled_from(["", "a", "b", "1", "and", "or", "not", "eq", "in", "ex", "lt"])
nodes = st.recursive(
    st.builds(
        FilterNode, op=words, key=words, cmp=words, val=words, vals=st.lists(words, max_size=2).map(tuple)
    ),
    lambda children: st.builds(
        FilterNode, op=words, nodes=st.lists(children, max_size=3).map(tuple), key=words, cmp=words
    ),
)


@given(nodes, st.dictionaries(words, words))
def test_any_filter_is_refused_or_decides(node: FilterNode, tags: dict[str, str]) -> None:
    try:
        wanted = compile_filter(node)
    except FilterError:
        return
    assert wanted(tags) in {True, False}
