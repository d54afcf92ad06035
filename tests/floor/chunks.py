"""Two chunks of a bundle as an .npz file: `chunks.py BUNDLE PRECISION OUT`. Runs in either environment, with what is
installed there."""

import sys

import numpy as np
import onnxruntime

from dzedge.bundle import open_bundle
from dzedge.engine import Machine
from dzedge.policies import FAMILIES
from dzedge.types import ActionPrefix, Frame, JointState, Observation

CAMERA, STEP_NS = (120, 160), 200_000_000


def main(path: str, precision: str, out: str) -> None:
    """Writes positions (n, H, J), imagined (n, ...), the versions, and the precisions that ran."""
    bundle = open_bundle(path, allow_test_key=True)
    section, rng = bundle.manifest.dzedge, np.random.default_rng(0)
    machine = Machine.detect(1)
    policy = FAMILIES[section.family](bundle, machine, camera=CAMERA, precision=precision, seed=3)
    policy.reset("reach the red cube")
    joints = len(section.joints)
    blocks = rng.integers(0, 256, (4, 12, 16, 3), dtype=np.uint8).repeat(10, 1).repeat(10, 2)
    frames = [Frame(np.ascontiguousarray(b), n, 10**9 + n * STEP_NS, 0) for n, b in enumerate(blocks)]
    chunks = []
    for n in (1, 3):
        t_obs_ns = frames[n].capture_ns
        state = JointState(rng.uniform(-0.3, 0.3, joints), np.zeros(joints), t_obs_ns)
        observation = Observation((frames[n - 1], frames[n]), state, t_obs_ns, "reach the red cube", 0)
        chunks.append(policy.infer(observation, ActionPrefix(np.zeros((0, joints))), n))
    np.savez(
        out,
        positions=np.stack([chunk.positions for chunk in chunks]),
        imagined=np.stack([np.asarray(chunk.imagined) for chunk in chunks]),
        versions=np.array([onnxruntime.__version__, np.__version__]),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
