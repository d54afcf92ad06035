"""Closed loop in torch, straight on the simulated world: a quick look while training, not the evaluation.

    python -m dzedge.export.rollout --checkpoints checkpoints --episodes 20 [--joint 4]

It sees rendered frames through the tokenizer and executes part of each chunk before it plans again. Scenes are
the tuning scenes (500 000 and up), which neither training data nor the evaluation uses. `dzedge evaluate` runs
the exported graphs through the whole runtime and is the figure to quote.
"""

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dzedge.export import fit_tokenizer, fit_wam
from dzedge.export.data import Studio, shrink
from dzedge.export.fit_wam import act, decide_together, imagine
from dzedge.export.model.moments import Moments
from dzedge.export.model.text import words_of
from dzedge.export.model.tokenizer import FrameEncoder
from dzedge.export.model.wam import Wam
from dzedge.export.windows import FRAME_STRIDE, Batch
from dzedge.hardware.sim.task import MOTIONS, TIMEOUT_S, VERBS, Judge, sample_task

FIRST_TUNING_SCENE = 500_000
DT = 0.1


@dataclass(frozen=True, slots=True)
class Plan:
    """How the model is used. execute: actions run of each chunk; delay: actions of the old chunk that still run
    after an observation was taken; video_steps: passes of the imagination; joint_steps: 0 for video-first sampling,
    else passes of joint sampling (1: "flash")."""

    execute: int = 4
    delay: int = 1
    video_steps: int = 1
    joint_steps: int = 0
    seconds: float = TIMEOUT_S


class Policy:
    """Frames, joints and words in, absolute joint targets out."""

    def __init__(self, wam: Wam, encoder: FrameEncoder, moments: Moments, plan: Plan, seed: int = 0) -> None:
        self._wam, self._encoder, self._moments, self._plan = wam, encoder, moments, plan
        self._noise = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def latent(self, image: NDArray[np.uint8]) -> torch.Tensor:
        """image: Shape (120, 160, 3), uint8 -> Shape (1, K, C)."""
        small = torch.from_numpy(shrink(image)).permute(2, 0, 1).unsqueeze(0).float() / 127.5 - 1.0
        return self._encoder(small)

    @torch.no_grad()
    def chunk(
        self, latent: torch.Tensor, before: torch.Tensor | None, joints: NDArray[np.float64], instruction: str
    ) -> NDArray[np.float64]:
        """Targets for t + 0.1 s, t + 0.2 s, ... Shape (H, J), [rad]."""
        sizes, moments = self._wam.sizes, self._moments
        state = ((joints - moments.state_mean) / moments.state_std).astype(np.float32)
        batch = Batch(
            latent=latent, before=latent if before is None else before,
            has_history=torch.tensor([0.0 if before is None else 1.0]),
            video=torch.empty(0), frame_mask=torch.empty(0), action=torch.empty(0), action_mask=torch.empty(0),
            state=torch.from_numpy(state).unsqueeze(0),
            words=torch.tensor([words_of(instruction, sizes.words)]), colour=torch.empty(0),
        )  # fmt: skip
        noise = torch.randn(1, sizes.frames, sizes.tokens, sizes.channels, generator=self._noise)
        chunk_noise = torch.randn(1, sizes.horizon, sizes.joints, generator=self._noise)
        if self._plan.joint_steps:
            action = decide_together(self._wam, batch, noise, chunk_noise, self._plan.joint_steps)
        else:
            _, rows = imagine(self._wam, batch, noise, self._plan.video_steps)
            action = act(self._wam, batch, rows, chunk_noise)
        return joints + action[0].double().numpy() * moments.action_std


def episode(studio: Studio, policy: Policy, plan: Plan, verb: str, split: str, scene: int) -> tuple[bool, float] | None:
    """One task in one scene: success, and the judge's measure. None where the scene has no such task."""
    world = studio.world
    world.reset(scene)
    task = sample_task(scene, world, verb, split)
    if task is None:
        return None
    judge = Judge(task)
    command = world.joints()
    queue = np.tile(command, (plan.delay, 1))
    latents: list[torch.Tensor] = []
    judge.update(world.time, world.tip(), world.cubes())
    for step in range(round(plan.seconds / DT)):
        if step % plan.execute in (0, plan.execute - FRAME_STRIDE):
            latents.append(policy.latent(studio.camera.render(step)[0]))
        if step % plan.execute == 0:
            before = latents[-2] if len(latents) > 1 else None
            chunk = policy.chunk(latents[-1], before, world.joints(), task.instruction)
            queue = np.concatenate([queue[: plan.delay], chunk[plan.delay :]])
        studio.execute(command, queue[0])
        command, queue = queue[0], queue[1:]
        if judge.update(world.time, world.tip(), world.cubes()):
            break
    return judge.success, judge.measure()


def table(
    wam: Wam, encoder: FrameEncoder, moments: Moments, plan: Plan, episodes: int, log: Callable[[str], None],
    cases: tuple[tuple[str, str], ...] = (),
) -> dict[str, float]:  # fmt: skip
    """Success by split and verb over tuning scenes. cases: (verb, split) pairs; empty: all there are."""
    chosen = cases or (
        *((verb, "seen") for verb in VERBS), *((verb, "semantic") for verb in VERBS[1:]),
        *((verb, "novel") for verb in MOTIONS),
    )  # fmt: skip
    studio, results = Studio(), {}
    for verb, split in chosen:
        done: list[tuple[bool, float]] = []
        scene = FIRST_TUNING_SCENE
        while len(done) < episodes:
            scene += 1
            result = episode(studio, Policy(wam, encoder, moments, plan, scene), plan, verb, split, scene)
            if result is not None:
                done.append(result)
        share = sum(success for success, _ in done) / episodes
        results[f"{split}/{verb}"] = share
        log(f"{split:9s} {verb:11s} {share:.2f}  measure median {np.median([m for _, m in done]):.3f}")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--joint", type=int, default=0, help="passes of joint sampling instead of video-first")
    parser.add_argument("--execute", type=int, default=4)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    wam, moments = fit_wam.load(options.checkpoints / "dit.pt")
    encoder = fit_tokenizer.load(options.checkpoints / "tokenizer.pt").encoder
    plan = Plan(execute=options.execute, joint_steps=options.joint)
    table(wam, encoder, moments, plan, options.episodes, logging.getLogger("dzedge.export.rollout").info)


if __name__ == "__main__":
    main()
