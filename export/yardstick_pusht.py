"""A task that is not ours: episodes of gym-pusht by a scripted teacher, as frames, states and actions.

    python -m dzedge.export.yardstick_pusht --out data/pusht --episodes 200 --seed 1

gym-pusht (0.1.8, Apache-2.0) pushes a T-shaped block onto its outline with a round agent: actions are the agent's
target position [px] on a 512 px table, ten a second, at most 300 a run, and the task is done where more than 95 % of
the outline are covered. Its human demonstrations lie on a hub; the teacher (`yardstick_teacher.py`) needs none.

An `.npz` of E episodes with N steps in all, one every 0.1 s:

    images (N, 96, 96, 3) uint8     RGB as the environment shows it to a policy (`pixels_agent_pos`)
    states (N, 2) float32           the agent's position [px]
    actions (N, 2) float32          its target for the next 0.1 s [px]
    blocks (N, 3) float32           the block's true pose [px], [rad]: for a tokenizer's labels, not for a policy
    coverage (N,) float32           share of the outline that is covered, before the action
    offsets (E + 1,) int64          episode e is the steps offsets[e] : offsets[e + 1]
    seed (E,) int64, success (E,) bool
"""

import argparse
import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dzedge.export.yardstick_teacher import Expert, Table

log = logging.getLogger("dzedge.export.yardstick_pusht")

STEPS = 300
"""The environment's own limit of a run."""
FIRST_SCENE = 1_000_000
"""Demonstrations have seeds from here on, evaluation below: they never meet."""
Player = Callable[[NDArray[np.uint8], NDArray[np.float64]], NDArray[np.float64]]
"""A policy: image, Shape (96, 96, 3), and agent, Shape (2,), [px] -> its next targets, Shape (n, 2), [px]."""


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
        """A policy's run of that seed: whether it is solved, and the greatest coverage, 0..1."""
        seen, _ = self._played.reset(seed=seed)
        best = 0.0
        while True:
            for action in player(seen["pixels"], seen["agent_pos"]):
                seen, _, done, late, info = self._played.step(np.clip(action, 0.0, 512.0).astype(np.float32))
                best = max(best, float(info["coverage"]))
                if done or late:
                    return bool(info["is_success"]), best


def write(path: Path, episodes: list[Episode]) -> None:
    """The episodes as the `.npz` described above; a file that is there is complete."""
    per_step = [f.name for f in fields(Episode) if f.name not in ("seed", "success")]
    columns: dict[str, Any] = {name: np.concatenate([getattr(e, name) for e in episodes]) for name in per_step}
    columns["offsets"] = np.cumsum([0, *(len(e.states) for e in episodes)])
    columns["seed"] = np.array([e.seed for e in episodes])
    columns["success"] = np.array([e.success for e in episodes])
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, allow_pickle=False, **columns)
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/pusht"))
    parser.add_argument("--episodes", type=int, default=200, help="solved ones; the others are counted and dropped")
    parser.add_argument("--per-shard", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1, help="scenes start at seed million; evaluation uses those below")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    stage, scene, shard = Stage(), FIRST_SCENE * options.seed, list[Episode]()
    for solved in range(1, options.episodes + 1):
        while not (episode := stage.episode(scene := scene + 1)).success:
            pass
        shard.append(episode)
        if len(shard) == options.per_shard or solved == options.episodes:
            write(options.out / f"shard{(solved - 1) // options.per_shard:03d}.npz", shard)
            log.info("%d episodes solved of %d tried", solved, scene - FIRST_SCENE * options.seed)
            shard = []


if __name__ == "__main__":
    main()
