"""Strict documents: a parsed TOML or JSON tree into frozen records, with a refusal a person can act on.

A refusal names the source, the key path, the value, what is allowed and what to do; an unknown key gets its
closest known name.
"""

import difflib
import math
import re
import types
import typing
from typing import Any, TypeVar

import msgspec
from msgspec import Meta

from dzedge.errors import DzedgeError

T = TypeVar("T")
UNKNOWN = object()
STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")


def convert(document: Any, record: type[T], source: str, error: type[DzedgeError]) -> T:
    """`document` as a `record` (a msgspec Struct); `source` names it. Raises `error`."""
    refuse_non_finite(document, source, error)
    try:
        return msgspec.convert(document, record)
    except msgspec.ValidationError as refusal:
        raise error(_explain(str(refusal), document, record, source)) from refusal


def refuse_non_finite(value: Any, source: str, error: type[DzedgeError], key: str = "") -> None:
    """nan passes every comparison with a bound unnoticed, so it is refused before any."""
    if isinstance(value, float) and not math.isfinite(value):
        raise error(f"{source}: {key} = {value}: must be a finite number; write one")
    if isinstance(value, dict):
        for name, inner in value.items():
            refuse_non_finite(inner, source, error, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            refuse_non_finite(inner, source, error, f"{key}[{index}]")


def _explain(message: str, document: Any, record: Any, source: str) -> str:
    """The sentence for a msgspec refusal such as "Expected `int` <= 500 - at `$.arm.rate_hz`"."""
    reason, _, where = message.partition(" - at `$")
    steps = [name if name else index for name, index in STEP.findall(where.rstrip("`"))]
    value, hint = _follow(document, record, steps)
    key = where.rstrip("`").lstrip(".")
    unknown = re.search(r"unknown field `(.*)`", reason)
    missing = re.search(r"missing required field `(.*)`", reason)
    prefix = f"{key}." if key else ""
    if unknown:
        return f"{source}: {prefix}{unknown[1]}: unknown key; {_suggest(unknown[1], _fields(hint))}"
    if missing:
        inner = _fields(hint).get(missing[1])
        return f"{source}: {prefix}{missing[1]}: missing key; add it: {_allowed(inner)}"
    where = ": ".join(part for part in (source, key) if part)
    if not reason.startswith(("Expected", "Invalid")):
        return f"{where}: {reason}"
    shown = f" = {_short(value)}" if key and not isinstance(value, (dict, list)) and value is not UNKNOWN else ""
    return f"{where}{shown}: must be {_allowed(hint)}; change it"


def _follow(value: Any, hint: Any, steps: list[str]) -> tuple[Any, Any]:
    """The value and the type hint at the end of a key path. msgspec does not say which value of a mapping it
    means (`...`): the value is UNKNOWN then."""
    for step in steps:
        if isinstance(value, list) and step.isdigit():
            value, hint = value[int(step)], _element(hint, int(step))
        elif isinstance(value, dict) and step in value:
            value, hint = value[step], _fields(hint).get(step)
        else:
            value, hint = UNKNOWN, _element(hint, 1)
    return value, hint


def _bare(hint: Any) -> tuple[Any, list[Meta]]:
    """A hint without Annotated and without None; what Annotated said, innermost first."""
    metas: list[Meta] = []
    while True:
        if typing.get_origin(hint) is typing.Annotated:
            metas += [m for m in hint.__metadata__ if isinstance(m, Meta)]
            hint = hint.__origin__
        elif typing.get_origin(hint) in (typing.Union, types.UnionType):
            inner = [arm for arm in typing.get_args(hint) if arm is not type(None)]
            if len(inner) != 1:
                return hint, metas
            hint = inner[0]
        else:
            return hint, metas


def _fields(hint: Any) -> dict[str, Any]:
    bare, _ = _bare(hint)
    if not (isinstance(bare, type) and issubclass(bare, msgspec.Struct)):
        return {}
    hints = typing.get_type_hints(bare, include_extras=True)
    return {f.encode_name: hints[f.name] for f in msgspec.structs.fields(bare)}


def _element(hint: Any, index: int) -> Any:
    arguments = typing.get_args(_bare(hint)[0])
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return arguments[0]
    return arguments[min(index, len(arguments) - 1)] if arguments else None


def _allowed(hint: Any) -> str:
    """What a hint allows, in words: `an integer in [50, 500] [Hz]`."""
    bare, metas = _bare(hint)
    if typing.get_origin(bare) in (typing.Union, types.UnionType):
        return " or ".join(_allowed(arm) for arm in typing.get_args(bare) if arm is not type(None))
    if typing.get_origin(bare) is typing.Literal:
        return "one of " + ", ".join(_short(v) for v in typing.get_args(bare))
    words = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}.get(bare, "")
    if not words:
        words = "a table" if _fields(hint) else "a list"
    for meta in metas:
        low = meta.ge if meta.ge is not None else meta.gt
        high = meta.le if meta.le is not None else meta.lt
        if low is not None and high is not None:
            opening, closing = "[" if meta.ge is not None else "(", "]" if meta.le is not None else ")"
            words += f" in {opening}{low:g}, {high:g}{closing}"
        elif low is not None or high is not None:
            words += f" of at least {low:g}" if low is not None else f" of at most {high:g}"
        if meta.min_length is not None and meta.max_length is not None:
            words += f" of {meta.min_length} to {meta.max_length} {'characters' if bare is str else 'entries'}"
        if meta.description:
            words += f" {meta.description}" if meta.description.startswith("[") else f" ({meta.description})"
    return words


def _suggest(key: str, known: dict[str, Any]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean `{close[0]}`?"
    return f"remove it; known here: {', '.join(known)}"


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
