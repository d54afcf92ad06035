"""What happened in a run, for its summary: joints, seams, imagined and observed frames, timings."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dzedge.mailboxes import STAGES, Mailboxes

MOMENTS = 512
"""Observed frames and chunks kept; the oldest go first."""
TICKS = 60_000
"""Control ticks kept: ten minutes at 100 Hz."""


@dataclass(frozen=True)
class Imagination:
    """One chunk as it was made. imagined: Shape (F * K * C,), latents of the frames after `t_obs_ns`."""

    chunk_id: int
    t_obs_ns: int
    imagined: NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """One camera frame. image: Shape (height, width, 3), uint8."""

    capture_ns: int
    image: NDArray[np.uint8]


@dataclass
class History:
    """Everything that one run has shown, oldest first.

    times_ns: of each control tick; states: State of each; chunk_ids: the chunk it played; positions, commands:
    Shape (J,) each, [rad], gripper [1].
    """

    times_ns: list[int] = field(default_factory=list)
    states: list[int] = field(default_factory=list)
    chunk_ids: list[int] = field(default_factory=list)
    positions: list[NDArray[np.float64]] = field(default_factory=list)
    commands: list[NDArray[np.float64]] = field(default_factory=list)
    imaginations: list[Imagination] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    _ticks: int = 0
    _chunks: int = 0
    _frames: int = 0

    def collect(self, mailboxes: Mailboxes) -> None:
        """Take over what is new in the mailboxes; often enough (each second at 500 Hz) nothing is missed."""
        for count, time_ns, state, chunk_id, _, positions, _, command in mailboxes.states.since(self._ticks):
            self._ticks = count
            self.times_ns.append(time_ns)
            self.states.append(state)
            self.chunk_ids.append(chunk_id)
            self.positions.append(positions)
            self.commands.append(command)
        if len(self.times_ns) > TICKS:
            for row in (self.times_ns, self.states, self.chunk_ids, self.positions, self.commands):
                del row[: TICKS // 2]
        chunk = mailboxes.chunks.newest(after=self._chunks)
        if chunk is not None:
            self._chunks, _, imagined, chunk_id, _, t_obs_ns, _ = chunk
            self.imaginations.append(Imagination(chunk_id, t_obs_ns, imagined))
            del self.imaginations[:-MOMENTS]
        frame = mailboxes.frames[0].newest(after=self._frames)
        if frame is not None:
            self._frames, image, _, capture_ns, _ = frame
            self.seen.append(Seen(capture_ns, image))
            del self.seen[:-MOMENTS]

    @property
    def seams_ns(self) -> list[int]:
        """When each chunk began to be played."""
        ids = self.chunk_ids
        return [self.times_ns[i] for i in range(1, len(ids)) if ids[i] != ids[i - 1]]


@dataclass(frozen=True)
class RunResult:
    """What `dzedge run` reports. success: None where nobody can judge it (a real arm).

    refused: chunks refused at the mailbox and commands refused by the gate, by name; wire_sha256: of all bytes
    written to the bus (lockstep only, else ""); stages: timing of each by name; real_time_factor: simulated seconds a
    second, starting up included; measure: the judge's last number (`hardware.sim.task.Judge.measure`), lockstep only.
    """

    task: str
    success: bool | None
    seed: int
    duration_s: float
    chunks: int
    refused: dict[str, int]
    restarts: int
    wire_sha256: str
    stages: dict[str, dict[str, float]]
    history: History = field(repr=False)
    real_time_factor: float = 1.0
    measure: float | None = None


@dataclass(frozen=True)
class Status:
    """A moment of a run, for the live status line. joints: measured, Shape (J,), [rad], gripper [1]."""

    task: str
    state: str
    cause: str
    elapsed_s: float
    joints: NDArray[np.float64]
    chunks: int
    distance: float | None
    stages: dict[str, dict[str, float]]


OnStatus = Callable[[Status], None]


def stage_timings(mailboxes: Mailboxes) -> dict[str, dict[str, float]]:
    """Every timed stage, `process.stage` -> {count, p50_ms, p99_ms, max_ms}."""
    return {
        f"{process}.{name}": {"count": row["count"]} | {f"{q}_ms": row[f"{q}_ns"] * 1e-6 for q in ("p50", "p99", "max")}
        for process in STAGES
        for name, row in mailboxes.marks[process].summary().items()
    }
