"""Which layers int8 hurts, and which to keep in float so that a bound holds for the fewest bytes.

Every layer is quantized alone and the whole chunk's error measured. Errors of layers are nearly independent, so their
squares add up: layers are kept by how much square error they bring for a byte, the most costly first, until the bound
holds by prediction, and then, by measurement, one more at a time.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from dzedge.errors import UsageError
from dzedge.export import quantize
from dzedge.export.calibration import Feeds

Judge = Callable[[Mapping[str, Path]], float]
"""Files by graph -> error of whole chunks, e.g. root mean square by that of the actions."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """One layer. name: "GRAPH/NODE"; shape: of its weights; bytes: in float32; error: of a whole chunk where it alone
    is int8; kept: whether it stays float."""

    name: str
    op: str
    shape: tuple[int, ...]
    bytes: int
    error: float
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """form: of int8, as `quantize.INT8_FORMS`; bound: what was to hold; error: of a whole chunk with the kept layers in
    float, everything: with none; layers: the most sensitive first."""

    form: str
    bound: float
    error: float
    everything: float
    layers: tuple[Sensitivity, ...]

    @property
    def keep(self) -> frozenset[str]:
        """For `quantize.Recipe.keep`."""
        return frozenset(layer.name for layer in self.layers if layer.kept)

    def document(self) -> dict[str, Any]:
        """As plain values, for a card or a page."""
        return asdict(self)


def sensitivity(
    files: Mapping[str, Path], feeds: Feeds, judge: Judge, bound: float, form: str = "full",
    recipe: quantize.Recipe = quantize.Recipe(), on_layer: Callable[[str], None] = lambda name: None,
) -> Report:  # fmt: skip
    """Measures every layer that int8 takes, and chooses what stays float. on_layer: told of each before its turn.

    files, feeds: as for `quantize.build`. Raises UsageError where the bound does not hold with all in float.
    """
    with tempfile.TemporaryDirectory() as folder:
        trial = _Trial(files, feeds, judge, form, recipe, Path(folder))
        names = {f"{graph}/{layer.node}": layer for graph, maker in trial.makers.items() for layer in maker.layers}
        alone = {}
        for name in names:
            on_layer(name)
            alone[name] = trial.error({name})
        everything = trial.error(set(names))
        kept, error = _keep({name: layer.bytes for name, layer in names.items()}, alone, everything, bound, trial)
    found = [Sensitivity(n, x.op, x.shape, x.bytes, alone[n], n in kept) for n, x in names.items()]
    return Report(form, bound, error, everything, tuple(sorted(found, key=lambda layer: -layer.error)))


def _keep(
    sizes: Mapping[str, int], alone: Mapping[str, float], everything: float, bound: float, trial: "_Trial"
) -> tuple[set[str], float]:  # fmt: skip
    """Which layers stay float, and the error then."""
    costly = sorted(alone, key=lambda name: -(alone[name] ** 2) / sizes[name])
    kept: set[str] = set()
    error, left = everything, everything**2
    while error > bound:
        if not costly:
            raise UsageError(f"error {error:.3g} with all in float: must be 0 to {bound:g}; allow more")
        while costly:
            kept.add(costly[0])
            left -= alone[costly.pop(0)] ** 2
            if left <= bound**2:
                break
        error = trial.error(set(alone) - kept)
        left = error**2
    return kept, error


class _Trial:
    """Quantizes some layers, and judges."""

    def __init__(
        self, files: Mapping[str, Path], feeds: Feeds, judge: Judge, form: str, recipe: quantize.Recipe, folder: Path
    ) -> None:  # fmt: skip
        self._files, self._judge, self._form, self._folder = files, judge, form, folder
        self.makers: dict[str, quantize.Int8] = {}
        for name, file in files.items():
            if name not in quantize.ONCE and feeds.get(name):
                (folder / name).mkdir()
                maker = quantize.Int8(onnx.load(str(file)), feeds[name], folder / name, recipe)
                if maker.layers:
                    self.makers[name] = maker

    def error(self, chosen: set[str]) -> float:
        """With those layers in int8, all others float."""
        files = dict(self._files)
        for graph, maker in self.makers.items():
            own = {layer.node for layer in maker.layers if f"{graph}/{layer.node}" in chosen}
            if own:
                keep = {layer.node for layer in maker.layers} - own
                path = quantize.path_of(self._folder / self._files[graph].name, self._form)
                files[graph] = quantize.write(maker.make(self._form, keep), path)
        return self._judge(files)
