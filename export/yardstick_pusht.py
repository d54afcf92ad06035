"""A task that is not ours: gym-pusht, demonstrated by a scripted teacher, then played by a bundle.

    python -m dzedge.export.yardstick_pusht demonstrate --out pusht --episodes 800    # in .venv-judges
    dzedge train pusht --data pusht --out checkpoints/pusht                           # in .venv-dev, and
    dzedge export checkpoints/pusht/pusht-0.safetensors --data pusht --out pusht.dzp --version 1
    python -m dzedge.export.yardstick_pusht judge pusht.dzp --runs 150                # in .venv-judges

gym-pusht (0.1.8, Apache-2.0) pushes a T-shaped block onto its outline with a round agent: actions are the agent's
target position [px] on a 512 px table, ten a second, at most 300 a run, and the task is done where more than 95 % of
the outline are covered. Its human demonstrations lie on a hub; the teacher (`yardstick_teacher.py`) needs none.

The demonstrations are a LeRobotDataset v3 as anybody's: a camera of 96 x 96 and two "joints", the agent's place in
halves of the table, -1 to 1, which stand where an arm's radians stand.
"""

import argparse
import importlib
import json
import logging
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dzedge import bundle, minisign
from dzedge.engine import Machine
from dzedge.export.dataset_writer import Writer
from dzedge.export.yardstick_teacher import Expert, Table
from dzedge.policies import FAMILIES
from dzedge.proportion import wilson
from dzedge.types import ActionPrefix, Frame, JointState, Observation

log = logging.getLogger("dzedge.export.yardstick_pusht")

STEPS = 300
"""The environment's own limit of a run."""
FIRST_SCENE = 1_000_000
"""Demonstrations have seeds from here on, judged runs below: they never meet."""
FPS, SIDE = 10, 96
HALF = 256.0
"""Half a table [px]."""
CAMERA, TASK = "observation.images.top", "push the tee onto its outline"
CHANNEL: dict[str, Any] = {"dtype": "float32", "shape": (2,), "names": ["x", "y"]}
FEATURES: dict[str, dict[str, Any]] = {"observation.state": CHANNEL, "action": CHANNEL, CAMERA: {"dtype": "video"}}


class Player(Protocol):
    """What plays a run."""

    def begin(self) -> None:
        """A new run."""

    def see(self, image: NDArray[np.uint8]) -> None:
        """The table as it is, at the start and after every action. Shape (96, 96, 3)."""

    def next(self, agent: NDArray[np.float64]) -> NDArray[np.float64]:
        """Its next targets, Shape (n, 2), [px], given where the agent is, Shape (2,), [px]."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One run. images: Shape (n, 96, 96, 3); states, actions: Shape (n, 2), [px]; blocks: Shape (n, 3), [px], [rad];
    coverage: Shape (n,), 0..1; success: whether the environment called it solved."""

    images: NDArray[np.uint8]
    states: NDArray[np.float32]
    actions: NDArray[np.float32]
    blocks: NDArray[np.float32]
    coverage: NDArray[np.float32]
    seed: int
    success: bool


class Stage:
    """gym-pusht, played by the teacher or by a policy. Raises ImportError where gym-pusht is missing."""

    def __init__(self) -> None:
        gymnasium = importlib.import_module("gymnasium")
        importlib.import_module("gym_pusht")
        name = "gym_pusht/PushT-v0"
        self._played = gymnasium.make(name, obs_type="pixels_agent_pos", max_episode_steps=STEPS)
        self._rehearsal = gymnasium.make(name, obs_type="state").unwrapped
        self._rehearsal.reset(seed=0)

    def episode(self, seed: int) -> Episode:
        """The run of that seed: the same for the same seed."""
        seen, info = self._played.reset(seed=seed)
        table, expert = Table(self._played.unwrapped), Expert(self._rehearsal)
        rows: list[tuple[Any, ...]] = []
        over = False
        while not over:
            state = table.state()
            action = expert.next(state).astype(np.float32)
            rows.append((seen["pixels"], seen["agent_pos"], action, state.block, np.array(table.coverage())))
            seen, _, done, late, info = self._played.step(action)
            over = done or late
        images, *numbers = (np.stack(column) for column in zip(*rows, strict=True))
        states, actions, blocks, coverage = (column.astype(np.float32) for column in numbers)
        return Episode(images, states, actions, blocks, coverage, seed, bool(info["is_success"]))

    def judge(self, player: Player, seed: int) -> tuple[bool, float]:
        """A player's run of that seed: whether it is solved, and the greatest coverage, 0..1."""
        seen, _ = self._played.reset(seed=seed)
        best = 0.0
        player.begin()
        player.see(seen["pixels"])
        while True:
            for action in player.next(seen["agent_pos"]):
                seen, _, done, late, info = self._played.step(np.clip(action, 0.0, 512.0).astype(np.float32))
                best = max(best, float(info["coverage"]))
                if done or late:
                    return bool(info["is_success"]), best
                player.see(seen["pixels"])


def units(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Places on the table, [px], in halves of it, -1 to 1."""
    return (pixels / HALF - 1.0).astype(np.float32)


def demonstrate(root: Path, episodes: int, first: int) -> int:
    """That many solved runs of the teacher as a dataset; those that it does not solve are left out. first: seed of the
    first. Returns how many were tried. Raises DatasetError where `root` exists."""
    stage, seed, solved = Stage(), first, 0
    with Writer(root, FEATURES, FPS, "pusht", (SIDE, SIDE)) as writer:
        while solved < episodes:
            episode, seed = stage.episode(seed), seed + 1
            if episode.success:
                columns = {"observation.state": units(episode.states), "action": units(episode.actions)}
                writer.add(columns, {CAMERA: episode.images}, TASK)
                solved += 1
    return seed - first


class Contestant:
    """A bundle as a player: what the runtime runs, a chunk at a time, `execute` actions of each.

    bundle: opened; seed: of its noise; sampler: as in the robot file.
    """

    def __init__(self, opened: bundle.Bundle, execute: int, seed: int, sampler: str = "auto") -> None:
        section = opened.manifest.dzedge
        machine = Machine.detect(1)
        self.policy = FAMILIES[section.family](opened, machine, (SIDE, SIDE), sampler=sampler, seed=seed)
        self.policy.reset(TASK)
        self._execute, self._step_ns = execute, section.dt_ns
        self._frames: deque[Frame] = deque(maxlen=max(section.video.history_ns) // section.dt_ns + 1)
        self._chunks = 0

    def begin(self) -> None:
        """Forget the last run."""
        self.policy.reset(TASK)
        self._frames.clear()

    def see(self, image: NDArray[np.uint8]) -> None:
        """A frame, one every step."""
        at = self._frames[-1].capture_ns + self._step_ns if self._frames else 10**9
        self._frames.append(Frame(np.ascontiguousarray(image), at // self._step_ns, at, at))

    def next(self, agent: NDArray[np.float64]) -> NDArray[np.float64]:
        """Targets of the next steps, Shape (execute, 2), [px]."""
        seen = tuple({frame.capture_ns: frame for frame in (self._frames[0], self._frames[-1])}.values())
        if len(self._frames) < (self._frames.maxlen or 0):
            seen = (self._frames[-1],)
        place, now = units(agent).astype(np.float64), self._frames[-1].capture_ns
        observation = Observation(seen, JointState(place, np.zeros(2), now), now, TASK, 0)
        chunk = self.policy.infer(observation, ActionPrefix(np.zeros((0, 2))), self._chunks)
        self._chunks += 1
        return (chunk.positions[: self._execute] + 1.0) * HALF


def judged(path: Path, key: Path, runs: int, execute: int, sampler: str) -> dict[str, Any]:
    """A bundle's runs of the seeds 0 to `runs` - 1: none of them demonstrated."""
    opened = bundle.open_bundle(path, minisign.load_keys((str(key),)), True)
    stage, contestant = Stage(), Contestant(opened, execute, 0, sampler)
    found = [stage.judge(contestant, seed) for seed in range(runs)]
    solved = sum(success for success, _ in found)
    low, high = wilson(solved, runs)
    coverage = np.array([best for _, best in found])
    return {
        "policy": opened.manifest.dzedge.model_id, "runs": runs, "execute": execute, "sampler": sampler,
        "success": solved / runs, "low": low, "high": high, "coverage_mean": float(coverage.mean()),
        "coverage_median": float(np.median(coverage)), "over_half": float((coverage > 0.5).mean()),
        "coverage": [round(float(value), 4) for value in coverage],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    teach = parts.add_parser("demonstrate", help="write the teacher's runs")
    teach.add_argument("--out", type=Path, default=Path("pusht"))
    teach.add_argument("--episodes", type=int, default=800)
    judge = parts.add_parser("judge", help="play a bundle")
    judge.add_argument("bundle", type=Path)
    judge.add_argument("--key", type=Path, default=Path("bundles/test.pub"))
    judge.add_argument("--runs", type=int, default=150)
    judge.add_argument("--execute", type=int, default=4, help="actions of a chunk that are played")
    judge.add_argument("--sampler", default="auto")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.part == "demonstrate":
        tried = demonstrate(options.out, options.episodes, FIRST_SCENE)
        log.info("%s: %d runs solved of %d tried", options.out, options.episodes, tried)
    else:
        found = judged(options.bundle, options.key, options.runs, options.execute, options.sampler)
        sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
