"""What a policy is evaluated on: numbered scenes, and what is asked in each.

          0 ..  499 999    evaluation: seed s has the scenes 1000 s .. 1000 s + 999
    500 000 ..  999 999    tuning
    from 1 000 000         training data

Seeds 400 to 499 are the release test: for figures that are published. Choose by others; where one was looked at before
something changed, its page says so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from dzedge.errors import UsageError
from dzedge.hardware.sim import task as tasks
from dzedge.hardware.sim.scene import COLOURS, CUBE, draw_layout

SCENES_PER_SEED = 1000
FIRST_TUNING_SCENE = 500_000
SEEDS = FIRST_TUNING_SCENE // SCENES_PER_SEED
RELEASE_SEEDS = range(400, 500)
SPLITS = ("seen", "semantic", "novel")
SUITES = ("reach", "verbs", "zeroshot")


@dataclass(frozen=True, slots=True)
class Scene:
    """A scene and what is asked in it; task None: the scene's own."""

    seed: int
    task: str | None


def scenes(suite: str, episodes: int, seeds: Sequence[int]) -> list[Scene]:
    """The scenes of a suite, for each seed: `episodes` of the default task (reach), of each verb and motion (verbs), or
    of each split, spread evenly over its verbs (zeroshot). Raises UsageError.

    Scenes that a verb cannot be asked in (no cube of the split's colours, no free lane) are passed over.
    """
    if suite not in SUITES:
        raise UsageError(f"--suite {suite}: must be {', '.join(SUITES[:-1])} or {SUITES[-1]}")
    for seed in seeds:
        if not 0 <= seed < SEEDS:
            raise UsageError(
                f"--seeds {seed}: must be 0 to {SEEDS - 1}; scenes {FIRST_TUNING_SCENE} to "
                f"{2 * FIRST_TUNING_SCENE - 1} are for tuning, those above for training; choose another"
            )
    if len(set(seeds)) != len(seeds):
        raise UsageError(f"--seeds {' '.join(map(str, seeds))}: one is given twice; name each once")
    return [scene for seed in seeds for scene in _of_seed(suite, episodes, seed)]


def tuning_scenes(count: int) -> list[Scene]:
    """So many tuning scenes, all verbs and motions in turn: to calibrate and to choose by, never to judge by."""
    verbs, seed = (*tasks.VERBS, *tasks.MOTIONS), FIRST_TUNING_SCENE // SCENES_PER_SEED
    each = -(-count // len(verbs))
    asked = [_asking(verb, None, seed, i * SCENES_PER_SEED // len(verbs), each) for i, verb in enumerate(verbs)]
    return [scenes_of[i] for i in range(each) for scenes_of in asked][:count]


def verbs_of(split: str) -> tuple[str, ...]:
    """The verbs and motions that a split asks, in the order of the task list."""
    return tuple(
        verb
        for verb in (*tasks.VERBS, *tasks.MOTIONS)
        if any(tasks.Task(verb, colour).split == split for colour in COLOURS)
    )


def _of_seed(suite: str, episodes: int, seed: int) -> Iterator[Scene]:
    if suite == "reach":
        yield from (Scene(SCENES_PER_SEED * seed + i, None) for i in range(episodes))
    elif suite == "verbs":
        for verb in (*tasks.VERBS, *tasks.MOTIONS):
            yield from _asking(verb, None, seed, 0, episodes)
    else:
        for split in SPLITS:
            verbs = verbs_of(split)
            for i, verb in enumerate(verbs):
                share = episodes // len(verbs) + (i < episodes % len(verbs))
                # Each verb begins elsewhere in the thousand, so that few scenes are played twice.
                yield from _asking(verb, split, seed, i * SCENES_PER_SEED // len(verbs), share)


def _asking(verb: str, split: str | None, seed: int, start: int, count: int) -> list[Scene]:
    """`count` scenes of a seed with a task of that verb (and split), from `start` on and round. Raises UsageError."""
    numbers = (SCENES_PER_SEED * seed + (start + i) % SCENES_PER_SEED for i in range(SCENES_PER_SEED))
    found = list(islice((scene for number in numbers for scene in _asked(verb, split, number)), count))
    if len(found) < count:
        raise UsageError(
            f"--episodes: seed {seed} has {len(found)} scenes for {verb!r}{f' ({split})' if split else ''}, "
            f"{count} are asked; ask for fewer, and for more seeds"
        )
    return found


def _asked(verb: str, split: str | None, number: int) -> list[Scene]:
    """The scene of that number with a task of that verb, or nothing where no cube is fit for it."""
    layout = draw_layout(number)
    cubes = np.zeros((len(COLOURS), 4))
    for colour, (x, y, _) in zip(layout.colours, layout.places, strict=True):
        cubes[colour] = x, y, CUBE / 2, 1.0
    present = (tasks.Task(verb, COLOURS[colour]) for colour in sorted(layout.colours))
    fit = [task for task in present if (split is None or task.split == split) and tasks.lane_is_free(task, cubes)]
    return [Scene(number, fit[number % len(fit)].instruction)] if fit else []


def check_task(task: str, seed: int, cubes: int) -> None:
    """Raises UsageError where the simulated table of `seed` has no cube of the colour that a task names: it could only
    time out. cubes: how many it has. Words that no judge knows pass."""
    known = tasks.parse(task)
    colours = [COLOURS[colour] for colour in sorted(draw_layout(seed, cubes).colours)]
    if known is not None and known.colour not in colours:
        raise UsageError(
            f"task {task!r}: the table of seed {seed} has no {known.colour} cube, only {', '.join(colours)}; "
            "name one of these, or another --seed"
        )
