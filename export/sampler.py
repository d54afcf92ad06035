"""The exported graphs, driven as the runtime drives them: for calibration and for judging quantized files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dzedge.export import parity
from dzedge.export.dataset import Dataset
from dzedge.export.footage import Lens
from dzedge.export.model.moments import Moments
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.text import words_of
from dzedge.export.source import STATE, Source

FloatArray = NDArray[np.float32]
Feed = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Case:
    """One decision. image, image_before: Shape (1, 3, h, w); words: Shape (1, W); joints: Shape (J,), [rad]."""

    image: FloatArray
    image_before: FloatArray
    words: NDArray[np.int64]
    joints: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Answer:
    """latent: Shape (K, C); residuals: Shape (F, K, C); offsets: Shape (H, J), [rad] from the joints."""

    latent: FloatArray
    residuals: FloatArray
    offsets: NDArray[np.float64]


def nothing(graph: str, feed: Feed) -> None:
    """Watches no feed."""


class Graphs:
    """Sessions of one set of files. qdq_off: run quantized arithmetic in float, as the boards' int8 rounds."""

    def __init__(self, files: dict[str, Path], sizes: Sizes, moments: Moments, qdq_off: bool = False) -> None:
        self._sessions = {name: parity.session(path, qdq_off) for name, path in files.items()}
        self.sizes, self._moments = sizes, moments

    def _run(self, graph: str, feed: Feed, watch: Callable[[str, Feed], None]) -> list[FloatArray]:
        watch(graph, feed)
        outputs: list[FloatArray] = self._sessions[graph].run(None, feed)
        return outputs

    def answer(
        self,
        case: Case,
        seed: int,
        video_steps: int = 1,
        latent: FloatArray | None = None,
        watch: Callable[[str, Feed], None] = nothing,
    ) -> Answer:
        """One chunk by video-first sampling. latent: use this one instead of the encoder's; watch: sees every feed."""
        sizes, moments = self.sizes, self._moments
        rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
        if latent is None:
            latent = self._run("frame_encoder", {"image": case.image}, watch)[0]
        (before,) = self._run("frame_encoder", {"image": case.image_before}, watch)
        text, *words = self._run("text", {"words": case.words}, watch)
        place, key_text, value_text = words
        slots = [self._run("prefill", {"latent": frame}, watch) for frame in (latent, before)]
        key, value = (np.stack([slot[i] for slot in slots]) for i in (0, 1))
        window = {
            "key": key, "value": value, "key_text": key_text, "value_text": value_text,
            "slot_pos": -np.arange(sizes.window, dtype=np.float32)[None],
            "valid": np.ones((1, sizes.window), np.float32),
        }  # fmt: skip
        if sizes.given:
            nothing = np.zeros((1, sizes.horizon, sizes.joints), np.float32)
            window |= {"given": nothing, "has_given": np.zeros(1, np.float32)}
        rows = self._run("context", window, watch)
        names = ("key_context", "value_context", "mask")
        known = {"latent": latent, "place": place, **dict(zip(names, rows, strict=True))}

        def at(time: float) -> tuple[Feed, Feed]:
            t = np.array([time], np.float32)
            mod_video, mod_action = self._run("modulation", {"t": t, "text": text}, watch)
            return {"t_video": t, "mod_video": mod_video}, {"t_action": t, "mod_action": mod_action}

        video = rng.standard_normal((1, sizes.frames, sizes.tokens, sizes.channels)).astype(np.float32)
        for step in range(video_steps):
            velocity = self._run("video_step", {"video": video, **known, **at(step / video_steps)[0]}, watch)[0]
            video = video + velocity / np.float32(video_steps)
        _, key_video, value_video = self._run("video_step", {"video": video, **known, **at(1.0)[0]}, watch)
        action = rng.standard_normal((1, sizes.horizon, sizes.joints)).astype(np.float32)
        feed = {
            "action": action, "prefix": np.zeros_like(action),
            "prefix_mask": np.zeros((1, sizes.horizon), np.float32),
            "state": ((case.joints - moments.state_mean) / moments.state_std).astype(np.float32)[None],
            "key_video": key_video, "value_video": value_video, **at(0.0)[1],
        }  # fmt: skip
        (velocity,) = self._run("action_step", feed, watch)
        return Answer(latent[0], video[0], (action + velocity)[0].astype(np.float64) * moments.action_std)


def cases_of(root: Path, count: int, sizes: Sizes, seed: int = 0, source: Source | None = None) -> list[Case]:
    """Decisions from a dataset's episodes that have a task and actions, with the history frame. source: of the
    dataset, none for the simulator's."""
    rng, source, lens = np.random.default_rng([seed, 3]), source or Source(), Lens(sizes)
    data, back = Dataset(root), source.frame_steps
    offsets, joints = data.offsets, source.radians(data.column(STATE), f"{root}: {STATE}")
    acts = data.column("acts").reshape(-1) if "acts" in data.features else np.ones(len(joints), bool)
    long = np.diff(offsets) > back + 1
    able = [i for i in range(data.episodes) if data.tasks[i] and acts[offsets[i]] and long[i]]
    cases = []
    for episode in sorted(rng.choice(able, count)):
        step = int(rng.integers(back, offsets[episode + 1] - offsets[episode]))
        seen = lens.shrink(data.frames(source.camera, episode)[[step, step - back]])
        now, before = (
            np.ascontiguousarray(frame.transpose(2, 0, 1)[None], dtype=np.float32) / 127.5 - 1.0 for frame in seen
        )
        words = np.array([words_of(data.tasks[episode], sizes.words, source.vocabulary)], dtype=np.int64)
        cases.append(Case(now, before, words, joints[offsets[episode] + step].astype(np.float64)))
    return cases
