"""Strict documents: every refusal names the source, the key path, the value and what is allowed."""

from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from dzedge import strict
from dzedge.errors import ConfigError


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size: Annotated[int, Meta(ge=1, le=9, description="[m]")]
    kind: Literal["a", "b"] = "a"
    note: Annotated[str, Meta(min_length=1, max_length=5)] | None = None


class Outer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    inner: Inner
    parts: tuple[Inner, ...] = ()
    pair: tuple[int, float] = (0, 0.0)
    either: int | str | None = None
    table: dict[str, Annotated[int, Meta(ge=1)]] = {}

    def __post_init__(self) -> None:
        if self.pair[0] > 10:
            raise ValueError(f"pair[0] = {self.pair[0]} is too much; take 10")


GOOD = {"inner": {"size": 3}}


def message(document: object) -> str:
    with pytest.raises(ConfigError) as refused:
        strict.convert(document, Outer, "file", ConfigError)
    return str(refused.value)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"inner": {"size": 10}}, "file: inner.size = 10: must be an integer in [1, 9] [m]; change it"),
        ({"inner": {"size": "x"}}, 'file: inner.size = "x": must be an integer in [1, 9] [m]; change it'),
        ({"inner": {"size": None}}, "file: inner.size = None: must be an integer in [1, 9] [m]; change it"),
        ({"inner": {"size": 3, "kind": "c"}}, 'file: inner.kind = "c": must be one of "a", "b"; change it'),
        ({"inner": {"size": 3, "note": 4}}, "file: inner.note = 4: must be a string of 1 to 5 characters; change it"),
        ({"inner": {"size": 3, "siez": 4}}, "file: inner.siez: unknown key; did you mean `size`?"),
        ({"inner": {}}, "file: inner.size: missing key; add it: an integer in [1, 9] [m]"),
        ({}, "file: inner: missing key; add it: a table"),
        ({"inner": 3}, "file: inner = 3: must be a table; change it"),
        (GOOD | {"x": 1}, "file: x: unknown key; remove it; known here: inner, parts, pair, either, table"),
        (
            GOOD | {"parts": [{"size": 1}, {"size": 0}]},
            "file: parts[1].size = 0: must be an integer in [1, 9] [m]; change it",
        ),
        (GOOD | {"either": 1.5}, "file: either = 1.5: must be an integer or a string; change it"),
        (GOOD | {"pair": [1]}, "file: pair: must be a list; change it"),
        (GOOD | {"pair": [1, "x"]}, 'file: pair[1] = "x": must be a number; change it'),
        (GOOD | {"pair": [11, 0.0]}, "file: pair[0] = 11 is too much; take 10"),
        (GOOD | {"pair": [1, float("nan")]}, "file: pair[1] = nan: must be a finite number; write one"),
        ({"inner": {"size": float("inf")}}, "file: inner.size = inf: must be a finite number; write one"),
        (GOOD | {"inner": {"size": "y" * 200}}, "y" * 76 + "...: must be an integer"),
    ],
)
def test_refusals(document: object, expected: str) -> None:
    assert expected in message(document)


@pytest.mark.parametrize("document", [3, None, [], "text"])
def test_not_a_table_at_all(document: object) -> None:
    assert message(document) == "file: must be a table; change it"


def test_values_of_a_dictionary() -> None:
    assert message(GOOD | {"table": {"word": 0}}) == "file: table[...]: must be an integer of at least 1; change it"


def test_good_documents_convert() -> None:
    assert strict.convert(GOOD, Outer, "file", ConfigError) == Outer(inner=Inner(size=3))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["inner", "size", "pair", "x"]), inner),
    max_leaves=12,
)


@given(document=JSON)
def test_any_document_converts_or_is_refused(document: object) -> None:
    try:
        converted = strict.convert(document, Outer, "file", ConfigError)
    except ConfigError:
        return
    assert 1 <= converted.inner.size <= 9
