"""A trained (or untrained) model -> a signed bundle `NAME.dzp`."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dzedge import __version__, bundle
from dzedge.export import families, onnx, parity
from dzedge.export.fit_vla import SLOW_STEPS
from dzedge.export.model.latent import latent_mean, latent_std
from dzedge.export.model.moments import Moments
from dzedge.export.model.sizes import Sizes
from dzedge.export.source import Source
from dzedge.export.tokenizers import AnyTokenizer
from dzedge.minisign import SecretKey

EXECUTE = 4
SAMPLERS = {
    "wam": ("video_first(4,4)", "video_first(1,1)", "video_first(2,1)", "video_first(4,1)", "joint(4)", "flash(1)"),
    "flow_vla": ("euler(4)", "euler(10)", "euler(1)"), "dual_vla": ("euler(4)", "euler(10)", "euler(1)"),
    "token_vla": ("greedy", "sample(1.0)"), "wan_joint": ("joint(4)", "joint(1)", "joint(8)", "video_first(4,4)"),
}  # fmt: skip
"""What each family is asked with; the default first."""
IMAGINE = ("wam", "wan_joint")
"""Families that say what they expect to see."""


def samplers_of(family: str, recipe: Mapping[str, Any]) -> tuple[str, ...]:
    """Those of a family that a training prepared for: actions from a finished video need blocks that had one."""
    named = SAMPLERS[family]
    if family == "wan_joint" and not recipe.get("clean_share"):
        return tuple(sampler for sampler in named if not sampler.startswith("video_first"))
    return named


@dataclass(frozen=True, slots=True)
class Release:
    """What a bundle says about itself. samplers: the default first, empty for the family's own; max_prefix: committed
    actions trained for."""

    model_id: str
    version: int
    family: str = "wam"
    samplers: tuple[str, ...] = ()
    max_prefix: int = 0


def section(
    sizes: Sizes, moments: Moments, release: Release, variants: dict[str, list[bundle.Variant]],
    source: Source | None = None, sampler_errors: Mapping[str, float] | None = None, opset: int = onnx.OPSET,
) -> bundle.Section:  # fmt: skip
    """The manifest's `dzedge` section. source: of the training data, none for the simulator's; sampler_errors: by
    `sampler_errors.measure`; opset: of the graphs."""
    family, source = release.family, source or Source()
    imagines = family in IMAGINE
    rows = {"layers": sizes.layers, "heads": sizes.heads, "head_dim": sizes.head_width}
    window = bundle.Window(slots=sizes.window, **rows) if imagines else bundle.Window(**rows)
    return bundle.Section(
        family=family,  # type: ignore[arg-type]
        model_id=release.model_id, version=release.version, min_runtime=__version__,
        robot=source.robot, joints=source.joints, opset={"ai.onnx": opset},
        image=bundle.Image(height=sizes.image_height, width=sizes.image_width),
        horizon=sizes.horizon, dt_ns=source.dt_ns, execute=EXECUTE, max_prefix=release.max_prefix,
        video=bundle.Video(
            frames=sizes.frames if imagines else 0, frame_dt_ns=source.frame_dt_ns,
            history_ns=(source.frame_dt_ns, 0),
            tokens=sizes.tokens, channels=sizes.channels, token_names=sizes.token_names,
        ),
        window=None if family == "dual_vla" else window,
        slow_ns=SLOW_STEPS * source.dt_ns if family == "dual_vla" else None,  # as old as it was trained for
        language=bundle.Language(words=sizes.words, vocabulary=dict(source.vocabulary)),
        statistics=_statistics(sizes, moments, family),
        samplers=release.samplers or SAMPLERS[family], sampler_errors=dict(sampler_errors or {}),
        graphs={name: bundle.Graph(variants=tuple(files)) for name, files in variants.items()},
    )  # fmt: skip


def _statistics(sizes: Sizes, moments: Moments, family: str) -> bundle.Statistics:
    bins = family == "token_vla"
    # Structured tokens have none: their units are fixed.
    mean = latent_mean(sizes.channels) if moments.latent_mean is None else moments.latent_mean
    std = latent_std(sizes.channels) if moments.latent_std is None else moments.latent_std
    return bundle.Statistics(
        action_std=_matrix(moments.action_std), state_mean=_vector(moments.state_mean),
        state_std=_vector(moments.state_std),
        latent_mean=_matrix(mean), latent_std=_matrix(std),
        residual_std=tuple(_matrix(m) for m in moments.residual_std) if family == "wam" else None,
        action_low=_matrix(moments.action_low * moments.action_std) if bins else None,
        action_high=_matrix(moments.action_high * moments.action_std) if bins else None,
    )  # fmt: skip


def _vector(values: NDArray[np.floating]) -> tuple[float, ...]:
    return tuple(float(f"{value:.9g}") for value in values)


def _matrix(values: NDArray[np.floating]) -> tuple[tuple[float, ...], ...]:
    return tuple(_vector(row) for row in values)


def package(
    folder: Path,
    model: Any,
    tokenizer: AnyTokenizer,
    moments: Moments,
    release: Release,
    secret: SecretKey,
    created: str,
    quantized: dict[str, list[bundle.Variant]] | None = None,
    files: dict[str, Path] | None = None,
    card: str = "",
    source: Source | None = None,
) -> list[parity.Parity]:
    """Writes and signs the bundle in `folder`, after parity of every float graph. Returns what parity measured.

    model: of any family (`families.load`).

    files: float graphs already exported (else exported here); quantized: further variants whose files lie in the
    folder of `files`; card: a README.md that travels in the bundle; source: of the training data, none for the
    simulator's.
    """
    staging = folder.with_suffix(".staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    cut = families.cut(model, tokenizer)
    exported = files or onnx.export_all(cut, staging)
    found = parity.check(cut, exported)
    variants = {}
    for name, path in exported.items():
        variants[name] = [bundle.Variant(file=path.name, precision="fp32", ep="any", isa="any")]
        variants[name] += (quantized or {}).get(name, [])
        for variant in variants[name]:
            file = path.with_name(variant.file)
            if file.parent != staging:
                shutil.copyfile(file, staging / variant.file)
    if card:
        (staging / "README.md").write_text(card)
    bundle.pack(staging, section(model.sizes, moments, release, variants, source), secret, created, folder.stem)
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
    return found
