"""The manifest of a policy bundle: what a signed folder says about its graphs and how to run them.

The `dzedge` section is strict, and complete for its family: a piece that is missing, or that nothing would read, is
refused by name.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from dzedge.errors import BundleError

File = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="(a plain file name)")]
Provider = Annotated[str, Meta(pattern=r"^(any|cpu|cuda|tensorrt)(\|(cpu|cuda|tensorrt))*$")]
Isa = Annotated[str, Meta(pattern=r"^(any|avx2|vnni|neon|gpu)(\|(avx2|vnni|neon|gpu))*$")]
SAMPLER = (
    r"video_first\([1-9][0-9]?, ?[1-9][0-9]?\)|joint\([1-9][0-9]?\)|flash\(1\)|euler\([1-9][0-9]?\)"
    r"|greedy|sample\((0\.[1-9][0-9]?|1(\.[0-9]{1,2})?|2(\.0{1,2})?)\)"
)
"""Every sampler of every family, as a pattern; which of them a family has stands in FAMILIES."""
SAMPLERS = (
    "video_first(nv,na), joint(n) or flash(1) (wam, wan_joint); euler(n) (flow_vla, dual_vla); greedy or sample(T) "
    "(token_vla)"
)
"""The same for people. nv, na, n: 1 to 99 steps; T: a temperature in [0.1, 2]."""
SamplerText = Annotated[str, Meta(pattern=f"^({SAMPLER})$", description=SAMPLERS)]
PROMPTS = "prompts.safetensors"
"""The file of what `text` makes of known instructions; see `dzedge.prompts`."""
Count = Annotated[int, Meta(ge=1, le=4096)]
CountOrZero = Annotated[int, Meta(ge=0, le=4096)]
Nanoseconds = Annotated[int, Meta(ge=0, le=10**10)]
Vector = tuple[float, ...]
Matrix = tuple[Vector, ...]
Cube = tuple[Matrix, ...]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the manifest's `dzedge` section."""


class Entry(Table, frozen=True):
    """One file of the folder."""

    path: File
    size: Annotated[int, Meta(ge=1, le=2**40)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    role: Literal["graph", "data", "document"]


Precision = Literal["fp32", "fp16", "int8", "w8", "w4", "fp8", "nvfp4"]
"""int8: weights and activations; w8, w4: weights alone."""


class Variant(Table, frozen=True):
    """One file of a graph. ep: "any" or execution providers; isa: where its arithmetic is right."""

    file: File
    precision: Precision
    ep: Provider
    isa: Isa


class Graph(Table, frozen=True):
    variants: Annotated[tuple[Variant, ...], Meta(min_length=1, max_length=16)]


class Image(Table, frozen=True):
    """What the encoder sees. crop: [left, top, width, height] of the camera image, or all of it."""

    height: Count
    width: Count
    crop: tuple[int, int, int, int] | None = None


class Video(Table, frozen=True):
    """Imagination: `frames` frames at t_obs + (i + 1) * frame_dt_ns, each of tokens x channels; frames is 0 for a
    policy that imagines nothing.

    history_ns: how long before t_obs the frames that the policy remembers were taken, newest last (0).
    """

    frames: CountOrZero
    frame_dt_ns: Nanoseconds
    history_ns: tuple[Nanoseconds, ...]
    tokens: Count
    channels: Count
    token_names: tuple[str, ...]


class Window(Table, frozen=True):
    """Key and value rows that lead from one graph to another. slots: of a world action model's sliding window of
    frames, Shape (slots, layers, heads, tokens, head_dim); 0 where only what was seen last is attended to."""

    layers: Count
    heads: Count
    head_dim: Count
    slots: CountOrZero = 0


class Language(Table, frozen=True):
    """vocabulary: word -> id >= 1; words: how many an instruction may have (0 pads)."""

    words: Count
    vocabulary: dict[str, Annotated[int, Meta(ge=1)]]


class Statistics(Table, frozen=True):
    """Of the training set. action_*: Shape (H, J), [rad] relative to the anchor; state_*: (J,), [rad];
    residual_std: (F, K, C); latent_*: (K, C), [m] for positions. action_low, action_high: the range that action
    tokens divide."""

    action_std: Matrix
    state_mean: Vector
    state_std: Vector
    latent_mean: Matrix
    latent_std: Matrix
    action_mean: Matrix | None = None
    action_low: Matrix | None = None
    action_high: Matrix | None = None
    residual_std: Cube | None = None


class Section(Table, frozen=True, kw_only=True):
    """manifest["dzedge"]. version: grows with every release of `model_id`; samplers: the default first;
    execute: actions meant to be run before the next chunk; max_prefix: committed actions trained for; slow_ns: how
    long dual_vla keeps what it has seen (None: its own default); sampler_errors: of each, [rad], as measured by
    `dzedge.export.sampler_errors`. Which pieces a family has stands in FAMILIES."""

    family: Literal["wam", "flow_vla", "token_vla", "dual_vla", "wan_joint"]
    model_id: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    version: Annotated[int, Meta(ge=1, le=2**31)]
    min_runtime: Annotated[str, Meta(pattern=r"^[0-9]{1,6}\.[0-9]{1,6}\.[0-9]{1,6}$")]
    robot: str
    joints: tuple[str, ...]
    absolute_joints: tuple[str, ...] = ()
    opset: dict[str, int]
    image: Image
    horizon: Count
    dt_ns: Annotated[int, Meta(ge=10**6, le=10**9)]
    execute: Count
    max_prefix: Annotated[int, Meta(ge=0, le=64)]
    video: Video
    window: Window | None = None
    slow_ns: Nanoseconds | None = None
    language: Language
    statistics: Statistics
    samplers: Annotated[tuple[SamplerText, ...], Meta(min_length=1)]
    sampler_errors: dict[str, Annotated[float, Meta(ge=0)]] = {}
    graphs: dict[str, Graph]
    files: tuple[Entry, ...] = ()

    @property
    def latents(self) -> int:
        """Numbers in one imagination: F * K * C."""
        return self.video.frames * self.video.tokens * self.video.channels


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`policy_package` 1.0; unknown keys beside `dzedge` are kept by their writers and ignored here."""

    format: Literal["policy_package"]
    version: Literal["1.0"]
    policy: dict[str, Any]
    model: dict[str, Any]
    hardware: dict[str, Any]
    metadata: dict[str, Any]
    dzedge: Section


@dataclass(frozen=True, slots=True)
class Family:
    """What distinguishes a family's section from the others'. samplers: their names; needs, may: pieces as `pieces`
    names them, that it must and that it may have."""

    samplers: tuple[str, ...]
    needs: frozenset[str]
    may: frozenset[str]


def _family(samplers: str, graphs: str, needs: str = "", may: str = "") -> Family:
    every = {f"graphs.{name}" for name in ("frame_encoder", *graphs.split())}
    return Family(
        tuple(samplers.split()), frozenset(every | set(needs.split())), frozenset({"graphs.text", *may.split()})
    )


MEAN = "statistics.action_mean"
FAMILIES = {
    "wam": _family(
        "video_first joint flash",
        "modulation prefill context video_step action_step",
        "video.frames window window.slots statistics.residual_std",
        f"graphs.frame_decoder {MEAN}",
    ),
    "flow_vla": _family("euler", "context action_step", "window", MEAN),
    "token_vla": _family("greedy sample", "context token_step", "window statistics.action_low statistics.action_high"),
    "dual_vla": _family("euler", "features action_step", may=f"slow_ns {MEAN}"),
    "wan_joint": _family(
        "video_first joint flash",
        "prefill joint_step",
        "video.frames window window.slots",
        f"graphs.frame_decoder {MEAN}",
    ),
}


def pieces(section: Section) -> set[str]:
    """The pieces of a section that not every family has: `slow_ns`, `window.slots`, `graphs.context`, ..."""
    table, window = section.statistics, section.window
    present = {
        "video.frames": section.video.frames > 0,
        "window": window is not None,
        "window.slots": window is not None and window.slots > 0,
        "slow_ns": section.slow_ns is not None,
        "statistics.residual_std": table.residual_std is not None,
        "statistics.action_mean": table.action_mean is not None,
        "statistics.action_low": table.action_low is not None,
        "statistics.action_high": table.action_high is not None,
    }
    return {name for name, here in present.items() if here} | {f"graphs.{name}" for name in section.graphs}


def check_family(section: Section, source: str) -> None:
    """Raises BundleError naming what the section's family lacks, or has no use for. source: names the manifest."""
    family, found = FAMILIES[section.family], pieces(section)
    if missing := sorted(family.needs - found):
        raise BundleError(f"{source}: family {section.family} needs dzedge.{', dzedge.'.join(missing)}; export again")
    if "graphs.text" not in found and not any(entry.path == PROMPTS for entry in section.files):
        raise BundleError(f"{source}: needs dzedge.graphs.text or a file {PROMPTS}; export again with one of them")
    if spare := sorted(found - family.needs - family.may):
        raise BundleError(
            f"{source}: family {section.family} has no use for dzedge.{', dzedge.'.join(spare)}; leave it out"
        )
    for sampler in section.samplers:
        if sampler.partition("(")[0] not in family.samplers:
            known = ", ".join(family.samplers)
            raise BundleError(f"{source}: sampler {sampler!r}: family {section.family} has {known}; change it")
    for sampler in section.sampler_errors:
        if sampler not in section.samplers:
            named = ", ".join(section.samplers)
            raise BundleError(f"{source}: sampler_errors of {sampler!r}: the bundle has {named}; leave it out")
