"""policy: one chunk through dzedge against a bare loop of `session.run` on the same graphs.

Both take a camera image and joint positions to absolute actions and imagined latents: resize by the same kernel,
encode one frame, keep the window of K/V rows, draw noise, sample, de-normalise. The rival is the loop that one would
write without dzedge, and it keeps all that can be kept: text, modulation, rows of the older frame, one generator. It
runs the very same sessions, because a second set of weights would push the first out of the cache. 200 pairs, each
side first in turn; ratio = median over the pairs.
"""

import time
from collections.abc import Callable
from statistics import median

import numpy as np

from dzedge import bundle, config, minisign
from dzedge.kernels.image import ImagePlan
from dzedge.policies import WorldActionModel, load_policy
from dzedge.types import ActionPrefix, Frame, JointState, Observation

PAIRS, WARM = 200, 30
BAR = 1.05


class Bare:
    """The rival. ours: whose sessions, sampler and statistics it borrows."""

    def __init__(self, ours: WorldActionModel, height: int, width: int) -> None:
        graphs = (ours.encoder, ours.prefill, ours.context, ours.video, ours.action, ours.modulation.graph)
        self.run = {graph.name: graph.session.run for graph in graphs}
        self.sampler, self.table = ours.sampler, ours.statistics
        self.image = np.zeros_like(ours.encoder.inputs["image"])
        self.plan = ImagePlan(height, width, None, *self.image.shape[2:])
        self.context = {name: array.copy() for name, array in ours.context.inputs.items()}
        self.video = {name: array.copy() for name, array in ours.video.inputs.items()}
        self.action = {name: array.copy() for name, array in ours.action.inputs.items()}
        text = ours.modulation.graph.inputs["text"].copy()
        times = {t: np.array([t], np.float32) for t in self.sampler.times}
        self.modulation = {
            t: (array, *self.run["modulation"](None, {"t": array, "text": text})) for t, array in times.items()
        }
        self.rng = np.random.default_rng(0)

    def chunk(self, image: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        run, context, video, action, table = self.run, self.context, self.video, self.action, self.table
        self.plan.run(image, self.image[0])
        latent = run["frame_encoder"](None, {"image": self.image})[0]
        context["key"][0], context["value"][0] = run["prefill"](None, {"latent": latent})
        video["key_context"], video["value_context"], video["mask"] = run["context"](None, context)
        video["latent"] = latent
        video["video"] = self.rng.standard_normal(video["video"].shape, dtype=np.float32)
        action["action"] = self.rng.standard_normal(action["action"].shape, dtype=np.float32)
        action["state"][0] = (positions - table.state_mean) / table.state_std
        nv, na = self.sampler.video_steps, self.sampler.action_steps
        for i in range(nv):
            video["t_video"], video["mod_video"], _ = self.modulation[i / nv]
            video["video"] = video["video"] + run["video_step"](["v_video"], video)[0] / np.float32(nv)
        video["t_video"], video["mod_video"], _ = self.modulation[1.0]
        action["key_video"], action["value_video"] = run["video_step"](["key_video", "value_video"], video)
        for i in range(na):
            action["t_action"], _, action["mod_action"] = self.modulation[i / na]
            action["action"] = action["action"] + run["action_step"](None, action)[0] / np.float32(na)
        imagined = (latent + video["video"][0] * table.residual_std).astype(np.float32)
        return positions + action["action"][0] * table.action_std, imagined


def run() -> list[dict]:
    robot = config.load(config.default_path())
    keys = minisign.load_keys(robot.policy.trusted_keys)
    opened = bundle.open_bundle(robot.policy.bundle, keys, robot.policy.allow_test_key)
    ours = load_policy(robot, opened)
    ours.reset(robot.task.instruction or "")
    camera, joints = robot.cameras[0], len(robot.arm.joints)
    image = np.random.default_rng(0).integers(0, 256, (camera.height, camera.width, 3), dtype=np.uint8)
    positions = np.zeros(joints)
    state, nothing = JointState(positions, np.zeros(joints), 0), ActionPrefix(np.zeros((0, joints)))
    frames = [Frame(image, n, 1_000_000_000 + n * 66_666_667, 0) for n in range(WARM + PAIRS + 3)]

    def mine(n: int) -> None:
        observation = Observation((frames[n - 3], frames[n]), state, frames[n].capture_ns, "", 0)
        ours.observe(frames[n])
        ours.infer(observation, nothing, n)

    for n in range(3):
        ours.observe(frames[n])
    mine(3)
    bare = Bare(ours, camera.height, camera.width)

    def other(n: int) -> None:
        bare.chunk(image, positions)

    pairs = [timed_pair(mine, other, n) for n in range(4, WARM + PAIRS)][-PAIRS:]
    ratio = median(a / b for a, b in pairs)
    value, rival = (median(times) * 1e3 for times in zip(*pairs, strict=True))
    return [
        {
            "id": "policy",
            "value": value,
            "unit": "ms, camera image to chunk",
            "rival": f"session.run loop, {rival:.3g} ms",
            "ratio": ratio,
            "bar": BAR,
            "ok": ratio <= BAR,
        }
    ]


def timed_pair(mine: Callable[[int], None], other: Callable[[int], None], n: int) -> tuple[float, float]:
    """Seconds of both, the first to go alternating."""
    seconds = {}
    for side in (mine, other) if n % 2 else (other, mine):
        start = time.perf_counter()
        side(n)
        seconds[side] = time.perf_counter() - start
    return seconds[mine], seconds[other]
