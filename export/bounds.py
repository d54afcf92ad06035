"""What an export must keep: one table of bounds a precision, and the refusal when one is broken."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from dzedge import strict
from dzedge.errors import DzedgeError, UsageError
from dzedge.export.recipe import FAMILIES
from dzedge.manifest import Precision

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT = Path(__file__).with_name("bounds.toml")
Most = Annotated[float, Meta(gt=0.0, le=1e6)]

ADVICE = {
    "graph": "keep more of that graph in a higher precision, or export again",
    "action_share": "calibrate on more decisions, or leave more in a higher precision",
    "worst_rad": "calibrate on more decisions, or leave more in a higher precision",
    "imagined_mm": "leave the video graph or the encoder in a higher precision",
    "step_bytes": "quantize more of the denoising graphs, or store their tables in fewer bits",
}
"""What to do about a broken bound, by its key."""


class BoundError(DzedgeError):
    """An export that costs more than its bounds allow; nothing was written."""


class Bound(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The most that one precision may cost; None: not bounded. Units as in bounds.toml."""

    graph: Most | None = None
    action_share: Most | None = None
    worst_rad: Most | None = None
    imagined_mm: Most | None = None
    step_bytes: Most | None = None

    def over(self, other: "Bound") -> "Bound":
        """This bound, and where it is silent, the other."""
        kept = {key: getattr(self, key) for key in self.__struct_fields__ if getattr(self, key) is not None}
        return msgspec.structs.replace(other, **kept)


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One bound a precision; a precision without a table is not bounded."""

    fp32: Bound = Bound()
    fp16: Bound = Bound()
    int8: Bound = Bound()
    w8: Bound = Bound()
    w4: Bound = Bound()
    fp8: Bound = Bound()
    nvfp4: Bound = Bound()


@dataclass(frozen=True, slots=True)
class Bounds:
    """source: the file they stand in; general: of every family; special: of one, where it differs."""

    source: str
    general: Table
    special: Mapping[str, Table]

    def of(self, family: str, precision: Precision) -> Bound:
        """What holds for one precision of one family."""
        own: Bound = getattr(self.special.get(family, Table()), precision)
        return own.over(getattr(self.general, precision))

    def broken(self, family: str, precision: Precision, measured: Mapping[str, Any], what: str) -> list[str]:
        """A sentence for every bound that is broken. measured: values by key, None where there is none; what: names
        what was measured."""
        bound, found = self.of(family, precision), []
        for key in bound.__struct_fields__:
            most, value = getattr(bound, key), measured.get(key)
            if most is None or value is None or value <= most:
                continue
            shown = "not a number" if math.isnan(value) else f"{value:.3g}"
            found.append(f"{what}: {key} {shown}, allowed 0..{most:g} ([{precision}] in {self.source}); {ADVICE[key]}")
        return found


def read(path: Path = DEFAULT) -> Bounds:
    """The bounds of a file. Raises UsageError naming what in it is wrong."""
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: no table of bounds ({error}); give one as export/bounds.toml") from error
    own = {name: document.pop(name) for name in FAMILIES if name in document}
    special = {name: strict.convert(table, Table, f"{path.name}: {name}", UsageError) for name, table in own.items()}
    return Bounds(path.name, strict.convert(document, Table, path.name, UsageError), special)
