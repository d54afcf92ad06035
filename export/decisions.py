"""Decisions to judge policies by: recorded scenes as the runtime's own observations.

They come in pairs. The first begins a task, some of them without an earlier frame; the second follows a fifth of a
second later without a reset, so that kept frames, rows and features count too. Committed actions are the recorded ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dzedge.errors import UsageError
from dzedge.export.dataset import Dataset
from dzedge.export.source import ACTION, STATE, Source
from dzedge.types import ActionChunk, ActionPrefix, Frame, JointState, Observation

LATER = 2
"""Actions between the two decisions of a pair."""
NEWCOMERS = 8
"""Every so many-th pair begins at the first frame of its episode."""
EPOCH_NS = 10**12
"""Capture times of an episode begin here, each episode in an hour of its own."""
HOUR_NS = 3600 * 10**9


class Decider(Protocol):
    """What can be judged: `dzedge.policies.BundledPolicy`, or `torch_policy.TorchPolicy`."""

    def reset(self, instruction: str) -> None: ...

    def infer(self, observation: Observation, prefix: ActionPrefix, chunk_id: int) -> ActionChunk: ...


@dataclass(frozen=True, slots=True)
class Decision:
    """fresh: whether it begins a task."""

    observation: Observation
    prefix: ActionPrefix
    fresh: bool

    @property
    def camera(self) -> tuple[int, int]:
        """(height, width) of the frames."""
        height, width = self.observation.frames[-1].image.shape[:2]
        return height, width


def decide(policy: Decider, decisions: Sequence[Decision]) -> list[ActionChunk]:
    """All of them in turn; the place in the sequence names the noise. Raises PolicyError."""
    chunks = []
    for number, decision in enumerate(decisions):
        if decision.fresh:
            policy.reset(decision.observation.instruction)
        chunks.append(policy.infer(decision.observation, decision.prefix, number))
    return chunks


def recorded(root: Path, source: Source, pairs: int, history_ns: Sequence[int], most: int, seed: int) -> list[Decision]:
    """Pairs of decisions from a dataset's episodes that have a task and actions.

    source: of the policy's training data; history_ns: how long before t_obs its frames were taken, the newest (0)
    last; most: committed actions, of which 0 to that many are given. Raises UsageError where no episode is long enough.
    """
    data = Dataset(root)
    joints, commands = (source.radians(data.column(name), f"{root}: {name}") for name in (STATE, ACTION))
    acts = data.column("acts").reshape(-1) if ACTS in data.features else np.ones(len(joints), bool)
    starts, later = data.offsets, LATER * source.action_steps
    back = max(round(age * source.fps / 1e9) for age in history_ns)
    able = [i for i in range(data.episodes)
            if data.tasks[i] and acts[starts[i]] and starts[i + 1] - starts[i] > back + later]  # fmt: skip
    if not able:
        raise UsageError(f"{root}: no episode with a task, actions and {back + later + 1} frames; record longer ones")
    rng = np.random.default_rng([seed, 3])
    found: list[Decision] = []
    for number, episode in enumerate(sorted(rng.choice(able, pairs).tolist())):
        rows = slice(int(starts[episode]), int(starts[episode + 1]))
        take = _Take(data.frames(source.camera, episode), joints[rows], commands[rows], data.tasks[episode], number)
        newcomer = number % NEWCOMERS == NEWCOMERS - 1
        step = 0 if newcomer else int(rng.integers(back, len(take.joints) - later))
        for fresh, at in ((True, step), (False, step + later)):
            found.append(take.decision(source, at, history_ns, int(rng.integers(0, most + 1)), fresh))
    return found


ACTS = "acts"


@dataclass(frozen=True, slots=True)
class _Take:
    """One episode. images: Shape (n, h, w, 3); joints, commands: Shape (n, J), [rad]."""

    images: NDArray[np.uint8]
    joints: NDArray[Any]
    commands: NDArray[Any]
    task: str
    number: int

    def decision(self, source: Source, at: int, history_ns: Sequence[int], committed: int, fresh: bool) -> Decision:
        """What was known at one step, and the commands that followed as committed ones."""
        steps = [at - round(age * source.fps / 1e9) for age in history_ns]
        frames = tuple(self._frame(step, source) for step in steps if step >= 0)
        t_obs_ns = frames[-1].capture_ns
        # Commands are targets for one step later, a chunk's for a whole action later.
        ahead = at + (np.arange(committed) + 1) * source.action_steps - 1
        prefix = self.commands[ahead[ahead < len(self.commands)]].astype(np.float64)
        positions = self.joints[at].astype(np.float64)
        state = JointState(positions, np.zeros_like(positions), t_obs_ns)
        return Decision(Observation(frames, state, t_obs_ns, self.task, self.number), ActionPrefix(prefix), fresh)

    def _frame(self, step: int, source: Source) -> Frame:
        capture_ns = EPOCH_NS + self.number * HOUR_NS + round(step * 1e9 / source.fps)
        return Frame(self.images[step].copy(), step, capture_ns, capture_ns)
