"""The body of an official checkpoint: its cameras, joints and ranges, from experiment_cfg/conf.yaml and metadata.json
(facts/dreamzero 1.4 and 4).
"""

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dzedge.errors import UsageError
from dzedge.export.q99 import Floats, Range

SPACES = ("state", "action")


@dataclass(frozen=True, slots=True)
class Channel:
    """A named piece of the state or the action, e.g. joint_position of width 7. relative: to the measured state of
    the same name at the chunk's start."""

    name: str
    width: int
    relative: bool = False


@dataclass(frozen=True, slots=True)
class Embodiment:
    """One embodiment tag of a checkpoint. cameras: in the mosaic's order; view: height and width of one camera's
    share (None: not resized); crop: share of each side that the centre crop keeps; ranges: of the concatenated
    channels; per relative channel the action's range is that of the difference."""

    tag: str
    cameras: tuple[str, ...]
    view: tuple[int, int] | None
    crop: float
    state: tuple[Channel, ...]
    action: tuple[Channel, ...]
    state_range: Range
    action_range: Range

    def picture(self) -> tuple[int, int] | None:
        """Height and width of the mosaic, if the views are resized: several make a square of four."""
        if self.view is None:
            return None
        times = 2 if len(self.cameras) > 1 else 1
        return times * self.view[0], times * self.view[1]

    def absolute(self, action: NDArray[np.floating], state: NDArray[np.floating]) -> Floats:
        """Targets of restored actions. action: Shape (H, J) in the units of the data; state: Shape (P,), measured."""
        targets, begin = np.array(action, np.float64), 0
        for channel in self.action:
            if channel.relative:
                targets[:, begin : begin + channel.width] += state[_place(self.state, channel.name)]
            begin += channel.width
        return targets

    def notes(self) -> list[str]:
        """What of the statistics cannot be undone, in words."""
        spaces = (("state", self.state_range), ("action", self.action_range))
        return [
            f"{space}: {name} has q01 = q99: it enters as it is, clamped, and leaves as the constant"
            for space, values in spaces for name in values.constant
        ]  # fmt: skip


def read_embodiment(folder: Path, tag: str | None, state_width: int, action_width: int) -> Embodiment:
    """The embodiment `tag`, or the only one. Raises UsageError naming what is missing or not understood."""
    conf_path, meta_path = (folder / "experiment_cfg" / name for name in ("conf.yaml", "metadata.json"))
    conf = _yaml(conf_path)
    try:
        metadata = json.loads(meta_path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{meta_path}: cannot be read ({error}); it holds the statistics") from error
    tag = _choose(tag, metadata, str(meta_path))
    keys = _Keys(str(conf_path), _at(conf, f"modality_configs.{tag}", conf_path), str(meta_path), metadata[tag])
    steps = _at(conf, f"transforms.{tag}.transforms", conf_path)
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise UsageError(f"{conf_path}: transforms.{tag}.transforms: allowed: a list of tables; is it resolved?")
    relative = _relative(conf, conf_path)
    _supported(steps, keys, conf_path)
    state = tuple(keys.channel("state", name) for name in keys.order("state"))
    action = tuple(keys.channel("action", name, name in relative) for name in keys.order("action"))
    names = {channel.name: channel.width for channel in state}
    for channel in action:
        if channel.relative and names.get(channel.name) != channel.width:
            raise UsageError(
                f"{conf_path}: action {channel.name} of width {channel.width} is relative to a state of width "
                f"{names.get(channel.name, 'none')}; the widths must agree"
            )
    crop, size = _step(steps, "VideoCrop"), _step(steps, "VideoResize")
    try:
        view = None if size is None else (int(size["height"]), int(size["width"]))
        kept = 1.0 if crop is None else float(crop["scale"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{conf_path}: VideoResize or VideoCrop: no numbers ({error}); is it resolved?") from error
    return Embodiment(
        tag, keys.order("video"), view, kept, state, action,
        keys.range("state", state, state_width), keys.range("action", action, action_width),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Keys:
    """Keys of one embodiment: their order from conf.yaml, widths and quantiles from metadata.json."""

    conf: str
    modality: dict[str, Any]
    meta: str
    table: dict[str, Any]

    def order(self, space: str) -> tuple[str, ...]:
        try:
            names = self.modality[space]["modality_keys"]
        except (KeyError, TypeError) as error:
            raise UsageError(f"{self.conf}: modality_configs: {space}.modality_keys is missing") from error
        if not isinstance(names, list):
            raise UsageError(f"{self.conf}: {space}.modality_keys is {names!r}, allowed: a list; is it resolved?")
        return tuple(str(name).removeprefix(f"{space}.") for name in names)

    def channel(self, space: str, name: str, relative: bool = False) -> Channel:
        try:
            (width,) = self.table["modalities"][space][name]["shape"]
            return Channel(name, int(width), relative)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{self.meta}: modalities.{space}.{name}.shape: missing, or not of one axis") from error

    def range(self, space: str, channels: tuple[Channel, ...], width: int) -> Range:
        low: list[float] = []
        high: list[float] = []
        for channel in channels:
            try:
                table = self.table["statistics"][space][channel.name]
                ends = table["q01"], table["q99"]
                if {len(end) for end in ends} != {channel.width}:
                    raise UsageError(f"{self.meta}: statistics.{space}.{channel.name}: q01, q99 not of its width")
            except (KeyError, TypeError) as error:
                raise UsageError(f"{self.meta}: statistics.{space}.{channel.name}: no q01, q99") from error
            low += ends[0]
            high += ends[1]
        names = [f"{channel.name}.{i}" for channel in channels for i in range(channel.width)]
        return Range.of(names, low, high, width)


def _choose(tag: str | None, metadata: Any, source: str) -> str:
    known = sorted(metadata) if isinstance(metadata, dict) else []
    if tag is None and len(known) == 1:
        return str(known[0])
    if tag is None or tag not in known:
        asked = "several embodiments" if tag is None else f"no embodiment {tag!r}"
        raise UsageError(f"{source}: {asked}; it has: {', '.join(known)}; name one")
    return tag


def _relative(conf: dict[str, Any], path: Path) -> frozenset[str]:
    if conf.get("relative_action_per_horizon", False):
        raise UsageError(f"{path}: relative_action_per_horizon is true, allowed: false; not built here")
    return frozenset(conf.get("relative_action_keys") or ()) if conf.get("relative_action", False) else frozenset()


def _supported(steps: Any, keys: _Keys, path: Path) -> None:
    """Every state and action must be normalised by quantiles, and be turned into nothing else."""
    modes: dict[str, str] = {}
    for step in steps:
        if str(step.get("_target_")).endswith(".StateActionTransform"):
            modes |= step.get("normalization_modes") or {}
            if turned := step.get("target_rotations"):
                raise UsageError(f"{path}: target_rotations of {', '.join(sorted(turned))}: not built here")
    for space in SPACES:
        for name in keys.order(space):
            if (mode := modes.get(f"{space}.{name}")) != "q99":
                raise UsageError(f"{path}: {space}.{name} is normalised by {mode!r}, allowed: 'q99'")


def _step(steps: Any, kind: str) -> dict[str, Any] | None:
    return next((step for step in steps if str(step.get("_target_")).endswith(f".{kind}")), None)


def _place(channels: tuple[Channel, ...], name: str) -> slice:
    begin = 0
    for channel in channels:
        if channel.name == name:
            return slice(begin, begin + channel.width)
        begin += channel.width
    raise UsageError(f"embodiment: no state {name!r}; it has: {', '.join(channel.name for channel in channels)}")


def _at(conf: dict[str, Any], dotted: str, path: Path) -> Any:
    value: Any = conf
    for key in dotted.split("."):
        if not isinstance(value, dict) or key not in value:
            raise UsageError(f"{path}: {dotted} is missing at {key!r}; the checkpoint's conf.yaml is not whole")
        value = value[key]
    return value


def _yaml(path: Path) -> dict[str, Any]:
    try:
        yaml = import_module("yaml")
    except ImportError as error:
        raise UsageError("PyYAML is missing and conf.yaml needs it: pip install 'dzedge[export]'") from error
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); it says what the numbers mean") from error
    if not isinstance(document, dict):
        raise UsageError(f"{path}: not a table; the checkpoint's conf.yaml is not whole")
    return document
