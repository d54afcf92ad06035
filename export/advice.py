"""What to change so that a model runs on a board, or runs faster there: sentences with figures."""

from dataclasses import replace
from math import floor

from dzedge.export.boards import BOARDS, GB, PRECISIONS, Board
from dzedge.export.flops import Run
from dzedge.export.flops_wan import NAMED
from dzedge.export.roofline import Fit, fits, least, resident
from dzedge.export.workload import EYES, Workload, coupled

USUAL = 3.0
"""A usual stack's time by the least one (facts/dreamzero 7.3: plan on two to three times)."""
REACTIVE_S = 0.2
"""From a look at the scene to new actions (facts/dreamzero 2.1)."""
SHORT_S = 1e-3
LARGE_SHARE = 0.3
"""A part of the time or the memory worth a sentence."""
STEPS = ("video_step", "action_step", "joint_step")


def digits(value: float) -> str:
    """A figure with three digits, or all of them before the point: 0.0139, 16.4, 1008."""
    return f"{value:.0f}" if value >= 100.0 else f"{value:.3g}"


def seconds(value: float) -> str:
    """428 ms, 16.4 s."""
    return f"{digits(value)} s" if value >= 1.0 else f"{digits(value * 1e3)} ms"


def advice(device: Board, model: Workload, found: tuple[Fit, ...]) -> tuple[str, ...]:
    """What to change, the most telling first; empty where nothing is to be gained by any of it."""
    able = [fit for fit in found if fit.fits]
    if not able:
        return (*_does_not_fit(device, model, found), *_prompts(device, model, found[-1]))
    best = choice(able)
    said = [*_precision(device, found, best), *_slow(device, model, best), *_eye(device, model, best)]
    return (*said, *_prompts(device, model, best))


def choice(able: list[Fit]) -> Fit:
    """The precision to run of those that fit: the finest that usually is in time, else the fastest."""
    timely = [fit for fit in able if fit.least_s * USUAL <= REACTIVE_S]
    return max(timely, key=lambda fit: PRECISIONS[fit.precision].bits) if timely else min(
        able, key=lambda fit: fit.least_s
    )


def holds(device: Board, model: Workload) -> bool:
    """Whether any precision fits."""
    return any(fit.fits for fit in fits(device, model))


def _does_not_fit(device: Board, model: Workload, found: tuple[Fit, ...]) -> list[str]:
    """No precision does: without the weights of prompts, a smaller model, a larger board."""
    least_memory = min(found, key=lambda fit: fit.memory)
    said = [
        f"does not fit: {least_memory.memory / GB:.1f} GB in {least_memory.precision}, "
        f"{device.memory / GB:g} GB are usable"
    ]
    smaller = [
        name for name, config in NAMED.items() if (other := coupled(name, config)).parameters < model.parameters
        and holds(device, other)
    ]  # fmt: skip
    if smaller:
        name = max(smaller, key=lambda name: coupled(name, NAMED[name]).parameters)
        said.append(f"smaller model: {name} is the largest named one that fits")
    larger = [other for other in BOARDS.values() if holds(other, model)]
    if larger:
        said.append(f"larger board: {min(larger, key=lambda other: other.memory).name} holds it")
    return said


def _precision(device: Board, found: tuple[Fit, ...], best: Fit) -> list[str]:
    refused = [fit for fit in found if not fit.fits]
    timely = best.least_s * USUAL <= REACTIVE_S
    said = [
        f"precision: {best.precision} is the {'finest that is in time' if timely else 'fastest that fits'}, "
        f"{seconds(best.least_s)} at least"
    ]
    if best.least_s < SHORT_S:
        said.append("so short that what the least time leaves out, launches and copies, will be most of it: measure")
    if refused:
        named = ", ".join(f"{fit.precision} ({fit.memory / GB:.1f} GB)" for fit in refused)
        said.append(f"too large for {device.memory / GB:g} GB: {named}")
    return said


def _slow(device: Board, model: Workload, best: Fit) -> list[str]:
    """Fewer steps, where a usual stack would be late; what then is left."""
    for wanted_s, what in ((model.duration_s, "before the chunk has been played"), (REACTIVE_S, "within 200 ms")):
        if best.least_s * USUAL <= wanted_s:
            continue
        steps = {name: run for name, run in model.chunk.items() if name in STEPS}
        now = min(run.times for run in steps.values())
        once = {name: run._replace(times=run.times - now) for name, run in steps.items()}  # a video's last pass
        rest_s = least(device, model.chunk | once, best.precision)
        each_s = least(device, {name: run._replace(times=1) for name, run in steps.items()}, best.precision)
        count = floor((wanted_s / USUAL - rest_s) / each_s)
        if count >= 1:
            return [f"fewer steps: {count} instead of {now} end {what} even at {USUAL:g} times the least time"]
        return [f"too slow to end {what} at {USUAL:g} times the least time, whatever the steps: a smaller model"]
    return []


def _eye(device: Board, model: Workload, best: Fit) -> list[str]:
    sight = model.chunk["frame_encoder"]
    share = least(device, {"frame_encoder": sight}, best.precision) / best.least_s
    if share < LARGE_SHARE or sight.part.flops <= EYES["tiny"].flops:
        return []
    tiny = replace(model, chunk=model.chunk | {"frame_encoder": Run(EYES["tiny"], 1)})
    then_s = least(device, tiny.chunk, best.precision)
    return [f"frame encoder: {share:.0%} of the least time; a distilled one of 0.05 TFLOP leaves {seconds(then_s)}"]


def _prompts(device: Board, model: Workload, fit: Fit) -> list[str]:
    """Text embedded elsewhere: the language model, and the weights that make a prompt's rows."""
    said, language = [], 2 * model.text.weights
    if fit.memory + language > device.memory:
        said.append(
            f"prompts elsewhere: the language model's {language / GB:.1f} GB (float16) do not fit beside the trunk; "
            "ship prompts.safetensors"
        )
    without = resident(model, fit.precision, prompt=False)
    if (fit.memory - without) / fit.memory > LARGE_SHARE / 3:
        verdict = "which fits" if without <= device.memory else "which still does not fit"
        verdict = "" if fit.fits else f", {verdict}"
        said.append(
            f"cross-attention rows of prompts kept on disk: {(fit.memory - without) / GB:.1f} GB of weights stay out, "
            f"{without / GB:.1f} GB are left{verdict}"
        )
    return said
