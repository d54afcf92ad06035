"""Pseudo-labels: an inverse-dynamics model that reads joints and commands off videos without actions.

It learns from the episodes that have actions what joints a seen arm has and what command made it move so, and then
labels the arm's other videos, as a VLA that may use the same videos would (LAPA and others label this way).
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dzedge.export.episodes import LABELLED, VIDEO, Episodes

REACH = 2
"""Steps before and after the present that are seen."""
WIDTH, ITERATIONS, BATCH, RATE = 256, 4000, 256, 2e-3
HELD_OUT = 0.1


def views(episodes: Episodes) -> NDArray[np.float32]:
    """The arm's token from two steps before to two steps after each step. Shape (N, 5 C)."""
    steps = np.arange(len(episodes.start))
    near = np.clip(steps[:, None] + np.arange(-REACH, REACH + 1), episodes.start[:, None], episodes.end[:, None] - 1)
    seen: NDArray[np.float32] = episodes.latents[near, 0].reshape(len(steps), -1)
    return seen


def calm(episodes: Episodes) -> NDArray[np.bool_]:
    """Steps with actions, near which nothing was disturbed. Shape (N,)."""
    marks = np.convolve(episodes.disturbed.astype(int), np.ones(2 * REACH + 1, int), mode="same")
    quiet: NDArray[np.bool_] = (episodes.kind != VIDEO) & (marks == 0)
    return quiet


def labelled(episodes: Episodes, seed: int, log: Callable[[str], None]) -> Episodes:
    """The episodes with the arm's videos made labelled ones. Logs R2 of joints and of commands on unseen steps."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 77])
    seen, known = views(episodes), np.flatnonzero(calm(episodes))
    starts = np.unique(episodes.start[known])
    unseen = np.isin(episodes.start[known], rng.choice(starts, round(HELD_OUT * len(starts)), replace=False))
    target = np.concatenate([episodes.joints, episodes.commands - episodes.joints], axis=1)
    mean, std = target[known].mean(0), np.maximum(target[known].std(0), 1e-2)
    scaled = ((target - mean) / std).astype(np.float32)
    sides = (seen.shape[1], WIDTH, WIDTH, target.shape[1])
    layers = [part for a, b in pairwise(sides) for part in (nn.Linear(a, b), nn.GELU())]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=ITERATIONS)
    pool = known[~unseen]
    for _ in range(ITERATIONS):
        pick = rng.choice(pool, BATCH)
        loss = ((model(torch.from_numpy(seen[pick])) - torch.from_numpy(scaled[pick])) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        guessed = model(torch.from_numpy(seen)).numpy() * std + mean
    test, joints = known[unseen], episodes.joints.shape[1]
    share = ((guessed[test] - target[test]) ** 2).sum(0) / ((target[test] - target[test].mean(0)) ** 2).sum(0)
    log(f"inverse dynamics on unseen steps: joints R2 {1 - share[:joints].mean():.3f}, "
        f"commands R2 {1 - share[joints:-1].mean():.3f} (gripper left out)")  # fmt: skip
    filled = (episodes.kind == VIDEO) & (episodes.body == 0)
    guessed = guessed.astype(np.float32)
    now = np.where(filled[:, None], guessed[:, :joints], episodes.joints)
    told = np.where(filled[:, None], guessed[:, :joints] + guessed[:, joints:], episodes.commands)
    return replace(episodes, joints=now, commands=told, kind=np.where(filled, LABELLED, episodes.kind))
