"""How good the dream is: what a world action model imagines, held against what a scripted expert then really does.

At moments 0.4 s apart of each demonstration the model gets what it would get on the robot, and is asked for a chunk.

    pictures   PSNR [dB] over moving pixels: those of the true future frame that differ from the present one by more
               than THRESHOLD in some channel; of each way to show a dream (`dream.py`), of copying the present frame,
               and of the inlay of a perfect dream, which only the tokenizer spoils. Moving pixels are by choice where
               a copy is wrong: `whole_psnr_db`, over all pixels, is fairer to it
    tip        distance [mm] of the gripper's tip from where it then was: imagined, as the encoder sees it in the true
               future frames (what is left of a perfect dream), in the present one (copied), and imagined by a model
               that is told the expert's commands, where it can be told any
    actions    R2 of the chunk against the expert's commands: inferred from the true future frames (inverse dynamics),
               and acted, from the imagined ones

Errors are summed over all pixels or actions of a group before a ratio is taken. Intervals are the 2.5 and 97.5 %
quantiles of a bootstrap over demonstrations, since moments of one are not independent (Efron and Tibshirani 1993).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table

from dzedge import dream
from dzedge.bundle import Bundle
from dzedge.clock import NS
from dzedge.config import RobotConfig
from dzedge.demonstration import STEP_NS, Demonstration, Theatre
from dzedge.dream import Eye, imagines
from dzedge.errors import UsageError
from dzedge.hardware.sim import task as tasks
from dzedge.policies import WorldActionModel, load_policy
from dzedge.types import ActionPrefix

Floats = NDArray[np.float64]
THRESHOLD = 16
"""A pixel has moved where a channel differs by more than this [8-bit counts]: 8 standard deviations of sensor noise."""
STRIDE = 4
"""Steps between moments: as many as a policy executes of a chunk."""
WAYS = ("copied", "decoded", "difference", "inlay", "perfect")
"""How the future frames are guessed, in the order of error arrays; perfect: the inlay of the true future's latents."""
TIPS = ("imagined", "perfect", "copied", "told")
CHUNKS = ("inferred", "acted")
SPLITS = ("seen", "semantic", "novel")
SCENES_PER_SEED = 1000
RESAMPLES = 1000


@dataclass(frozen=True)
class Moment:
    """What was measured at one moment of demonstration number `scene`.

    moving: Shape (F,), moving pixels of each future frame; error: Shape (ways, F), their squared error summed, mean
    over channels [counts^2]; whole: Shape (ways, F), mean squared error of all pixels; tip: Shape (4, F), [m], nan
    where a model cannot be told; wanted: Shape (H, J), the expert's commands less the measured joints, over the
    bundle's action_std; missed: Shape (2, H, J), by how much each of CHUNKS missed them, in the same unit.
    """

    scene: int
    verb: str
    split: str
    moving: NDArray[np.int64]
    error: Floats
    whole: Floats
    tip: Floats
    wanted: Floats
    missed: Floats


class Examiner:
    """A world action model and the eye it sees through.

    Raises UsageError for a policy without imagination, or one whose steps are not the expert's.
    """

    def __init__(self, config: RobotConfig, bundle: Bundle) -> None:
        section = bundle.manifest.dzedge
        if not imagines(bundle):
            raise UsageError(f"{bundle.name}: {section.family} draws nothing that it imagines; choose a wam bundle")
        if section.video.token_names[:1] != ("arm",):
            raise UsageError(
                f"{bundle.name}: token 0 is {', '.join(section.video.token_names[:1])!r}, must be 'arm', whose tip is "
                "judged; choose a bundle with structured tokens"
            )
        policy = load_policy(config, bundle)
        assert isinstance(policy, WorldActionModel)  # by its family
        if section.dt_ns != STEP_NS or section.video.frame_dt_ns % STEP_NS:
            raise UsageError(
                f"{bundle.name}: dt_ns {section.dt_ns} must be {STEP_NS} and frame_dt_ns {section.video.frame_dt_ns} a "
                "multiple of it, as the scripted expert's steps are; export it at 10 Hz"
            )
        camera = config.cameras[0]
        self.policy, self.section = policy, section
        self._eye = Eye(section, (camera.height, camera.width), camera.crop)
        self._ahead = (np.arange(section.video.frames) + 1) * (section.video.frame_dt_ns // STEP_NS)
        self._action_std = np.array(section.statistics.action_std)
        self._asked = 0

    def examine(self, shown: Demonstration, scene: int) -> Iterator[Moment]:
        """Every STRIDE-th step that has a whole future."""
        self.policy.reset(shown.task.instruction)
        last = len(shown.frames) - 1 - max(int(self._ahead[-1]), self.section.horizon)
        for step in range(0, last + 1, STRIDE):
            yield self._look(shown, step, scene)

    def _look(self, shown: Demonstration, step: int, scene: int) -> Moment:
        policy, future = self.policy, step + self._ahead
        observation = shown.observation(step, policy.history_ns)
        nothing = ActionPrefix(np.zeros((0, len(self.section.joints))))
        self._asked += 1
        chunk = policy.infer(observation, nothing, self._asked)
        true = np.stack([policy.latent(shown.frames[i]) for i in future])
        inferred = policy.infer_actions(observation, true, nothing, self._asked)
        now = policy.latent(shown.frames[step])
        commands = shown.commands[step : step + self.section.horizon]
        tips = policy.metres(np.stack([chunk.imagined, true, np.broadcast_to(now, true.shape)]))[..., 0, :3]
        told = np.full((1, *tips.shape[1:]), np.nan)
        if policy.follows_actions:
            told[0] = policy.metres(policy.imagine(observation, self._asked, commands))[..., 0, :3]
        missed = np.stack([inferred.positions, chunk.positions]) - commands
        moving, error, whole = self._compare(shown, step, now, chunk.imagined, true)
        return Moment(
            scene, shown.task.verb, shown.task.split, moving, error, whole,
            np.linalg.norm(np.concatenate([tips, told]) - shown.tips[future], axis=-1),
            (commands - shown.joints[step]) / self._action_std, missed / self._action_std,
        )  # fmt: skip

    def _compare(
        self, shown: Demonstration, step: int, now: NDArray[np.float32], imagined: NDArray[np.float32],
        true: NDArray[np.float32],
    ) -> tuple[NDArray[np.int64], Floats, Floats]:  # fmt: skip
        """`moving`, `error` and `whole` of a moment; now: Shape (K, C), imagined, true: Shape (F, K, C), latents."""
        decode = self.policy.decode
        present, came = self._eye.see(shown.frames[step]), self._future(shown, step)
        decoded_now, decoded = decode(now[None])[0], decode(imagined)
        guesses = (
            np.broadcast_to(present, came.shape), decoded, dream.difference(present, decoded_now, decoded),
            dream.inlay(present, decoded_now, decoded), dream.inlay(present, decoded_now, decode(true)),
        )  # fmt: skip
        moved = np.abs(came.astype(np.int16) - present).max(axis=-1) > THRESHOLD
        squared = np.stack([((guess - came.astype(np.float64)) ** 2).mean(axis=-1) for guess in guesses])
        return moved.sum(axis=(1, 2)), (squared * moved).sum(axis=(2, 3)), squared.mean(axis=(2, 3))

    def _future(self, shown: Demonstration, step: int) -> NDArray[np.uint8]:
        return np.stack([self._eye.see(shown.frames[step + ahead]) for ahead in self._ahead])


def demonstrations(
    theatre: Theatre, split: str, verbs: Sequence[str], episodes: int, seed: int
) -> Iterator[Demonstration]:
    """`episodes` of a split, its verbs in turn, in scenes from SCENES_PER_SEED * seed on. Raises UsageError where the
    scenes of the seed have too few of a verb's tasks."""
    scenes = {verb: iter(range(SCENES_PER_SEED * seed, SCENES_PER_SEED * (seed + 1))) for verb in verbs}
    for i in range(episodes):
        verb = verbs[i % len(verbs)]
        found = (shown for scene in scenes[verb] if (shown := theatre.perform(scene, verb, split)) is not None)
        shown = next(found, None)
        if shown is None:
            raise UsageError(f"--episodes {episodes}: seed {seed} has fewer scenes for {split} {verb}; use more seeds")
        yield shown


def verbs_of(split: str, vocabulary: Mapping[str, int]) -> tuple[str, ...]:
    """The verbs and motions of a split that a model of that vocabulary can be asked for."""
    asked = [task for task in tasks.TASKS if task.split == split]
    known = [task for task in asked if all(word in vocabulary for word in task.instruction.split())]
    return tuple(dict.fromkeys(task.verb for task in known))


def measure(
    config: RobotConfig, bundle: Bundle, episodes: int, seeds: Sequence[int], advance: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """One entry of `results`: `episodes` demonstrations of each split and seed, at the configuration's sampler.

    advance: called after each of the at most 3 * episodes * len(seeds) demonstrations. Raises UsageError.
    """
    examiner = Examiner(config, bundle)
    theatre = Theatre(config.sim.cubes, config.sim.camera_noise)
    vocabulary = examiner.section.language.vocabulary
    moments: list[Moment] = []
    scene = 0
    for split in SPLITS:
        verbs = verbs_of(split, vocabulary)
        for seed in seeds if verbs else ():
            for shown in demonstrations(theatre, split, verbs, episodes, seed):
                moments += examiner.examine(shown, scene)
                scene += 1
                advance()
    unknown = {task.verb for task in tasks.TASKS} - {verb for split in SPLITS for verb in verbs_of(split, vocabulary)}
    return document(examiner, moments) | {"not_asked": sorted(unknown), "episodes": episodes, "seeds": list(seeds)}


def document(examiner: Examiner, moments: Sequence[Moment]) -> dict[str, Any]:
    """Settings, and the figures of each split and of each of its verbs."""
    section, sampler = examiner.section, examiner.policy.sampler
    entry: dict[str, Any] = {
        "policy": section.model_id, "suite": "imagination", "video_steps": sampler.video_steps,
        "action_steps": sampler.action_steps, "coupled": sampler.coupled, "threshold": THRESHOLD,
        "size": [section.image.width, section.image.height],
        "ahead_s": [(i + 1) * section.video.frame_dt_ns / NS for i in range(section.video.frames)],
    }  # fmt: skip
    for split in SPLITS:
        chosen = [moment for moment in moments if moment.split == split]
        if chosen:
            verbs = {verb: [m for m in chosen if m.verb == verb] for verb in dict.fromkeys(m.verb for m in chosen)}
            entry[split] = figures(chosen) | {"verbs": {verb: figures(those) for verb, those in verbs.items()}}
    return entry


def figures(moments: Sequence[Moment]) -> dict[str, Any]:
    """What a group of moments says; None for a figure that it cannot give, as where nothing moves."""
    scenes = [moment.scene for moment in moments]
    error = np.stack([moment.error for moment in moments])
    moving = np.stack([moment.moving for moment in moments]).sum(axis=0)
    wanted = np.stack([moment.wanted for moment in moments])
    missed = (np.stack([moment.missed for moment in moments]) ** 2).sum(axis=(2, 3))
    spread = ((wanted - wanted.mean(axis=0)) ** 2).sum(axis=(1, 2))
    copied, inlay = (error[:, WAYS.index(way)].sum(axis=1) for way in ("copied", "inlay"))
    return {
        "scenes": len(set(scenes)), "moments": len(moments), "moving_pixels": int(moving.sum()),
        "psnr_db": {way: _psnr(error[:, i].sum(), moving.sum()) for i, way in enumerate(WAYS)},
        "psnr_db_ahead": {
            way: [_psnr(error[:, i, f].sum(), count) for f, count in enumerate(moving)] for i, way in enumerate(WAYS)
        },
        "whole_psnr_db": {way: _psnr(np.mean([m.whole[i] for m in moments]), 1) for i, way in enumerate(WAYS)},
        "gain_db": _estimate(scenes, copied, inlay, lambda ratio: 10.0 * np.log10(ratio)),
        "tip_mm": {
            name: _millimetres([m.tip[i] for m in moments]) if np.isfinite(moments[0].tip[i]).all() else None
            for i, name in enumerate(TIPS)
        },
        "actions_r2": {
            name: _estimate(scenes, missed[:, i], spread, lambda ratio: 1.0 - ratio) for i, name in enumerate(CHUNKS)
        },
    }  # fmt: skip


def _psnr(error: float, count: int) -> float | None:
    """Peak signal-to-noise ratio [dB] of 8-bit pixels from a summed squared error; None where there is none of it."""
    return round(float(10.0 * np.log10(255.0**2 * count / error)), 3) if error > 0.0 and count else None


def _millimetres(tips: Sequence[Floats]) -> list[float]:
    return [round(float(value), 2) for value in 1e3 * np.mean(tips, axis=0)]


def _estimate(
    scenes: Sequence[int], above: Floats, below: Floats, figure: Callable[[Floats], Floats]
) -> dict[str, float | None] | None:
    """`figure` of sum(above) / sum(below), and its interval over scenes, which one scene does not give. above, below:
    Shape (moments,)."""
    _, index = np.unique(scenes, return_inverse=True)
    pair = np.stack([np.bincount(index, weights) for weights in (above, below)])
    if not (pair.sum(axis=1) > 0.0).all():
        return None
    value, count = round(float(figure(pair[:1].sum() / pair[1:].sum())), 4), pair.shape[1]
    if count < 2:
        return {"value": value, "low": None, "high": None}
    draw = np.random.Generator(np.random.Philox(key=[0, 0xB007])).integers(count, size=(RESAMPLES, count))
    top, bottom = pair[:, draw].sum(axis=-1)
    some = (top > 0.0) & (bottom > 0.0)
    low, high = np.quantile(figure(top[some] / bottom[some]), (0.025, 0.975))
    return {"value": value, "low": round(float(low), 4), "high": round(float(high), 4)}


def table(entry: Mapping[str, Any]) -> Group:
    """Two tables, one line for each split and verb: pictures; where the tip goes, and actions."""
    title = f"{entry['policy']} (imagination, {entry['video_steps']} video steps)"
    look: Mapping[str, Any] = {"box": None, "header_style": "bold", "padding": (0, 2, 0, 0)}
    pictures, motions = Table(title=title, title_justify="left", **look), Table(**look)
    ways = [way for way in WAYS if way != "difference"]  # the document has it
    for rows, columns in (
        (pictures, ("n", *ways, "gain")), (motions, ("tip [mm]", "told", "copied", "R2 inferred", "R2 acted")),
    ):  # fmt: skip
        for column in ("split", "verb", *columns):
            rows.add_column(column, justify="left" if column in ("split", "verb") else "right", no_wrap=True)
    for split in SPLITS:
        for verb, row in [*entry[split]["verbs"].items(), ("all", entry[split])] if split in entry else []:
            style = "bold" if verb == "all" else None
            psnr = (_number(row["psnr_db"][way]) for way in ways)
            pictures.add_row(split, verb, str(row["scenes"]), *psnr, _interval(row["gain_db"], 1), style=style)
            tips = (_span(row["tip_mm"][name]) for name in ("imagined", "told", "copied"))
            acts = (_interval(row["actions_r2"][name], 2) for name in CHUNKS)
            motions.add_row(split, verb, *tips, *acts, style=style)
    size, ahead = "x".join(map(str, entry["size"])), entry["ahead_s"]
    told = [
        f"PSNR [dB] of what changes by more than {entry['threshold']} of 255, at {size}; gain: of inlay over copied",
        f"tip: how far from where it then was, {ahead[0]:.1f} to {ahead[-1]:.1f} s ahead",
        "told: imagined by a model that is told the commands to come, where it can be told any",
    ]
    if entry["not_asked"]:
        told.append(f"not asked, for want of words: {', '.join(entry['not_asked'])}")
    return Group(pictures, "", motions, "", *told)


def _span(ahead: Sequence[float] | None) -> str:
    return "-" if ahead is None else f"{ahead[0]:.0f} to {ahead[-1]:.0f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _interval(value: Mapping[str, float | None] | None, digits: int) -> str:
    if value is None:
        return "-"
    figure, low, high = value["value"], value["low"], value["high"]
    return f"{figure:.{digits}f}" + (f" [{low:.{digits}f}, {high:.{digits}f}]" if low is not None else "")
