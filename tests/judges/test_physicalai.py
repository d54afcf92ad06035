"""physicalai 0.3.0, opt-in: it loads a signed bundle of ours as its own policy package, and decides what we decide.

In a venv of its own (requirements-physicalai.txt), run by `make judges`.
"""

import logging
import shutil
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from dzedge.bundle import UNROLLED, Bundle, open_bundle
from dzedge.engine import Machine, Noise
from dzedge.errors import BundleError
from dzedge.policies import WorldActionModel
from dzedge.policies.tokenizer import Tokenizer
from dzedge.types import ActionPrefix, Frame, JointState, Observation

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "wam-nano.dzp"
SAMPLER = "video_first(1,1)"
"""What act.onnx has unrolled."""
SEED, CHUNK = 3, 11
CLOSE = 1e-5
"""Of two chunks [rad]: theirs sums in float32 what ours sums in float64."""
pytestmark = [
    pytest.mark.skipif(find_spec("physicalai") is None, reason="physicalai is in .venv-physicalai: run `make judges`"),
    pytest.mark.skipif(not (BUNDLE / UNROLLED).exists(), reason=f"{BUNDLE.name} was exported without {UNROLLED}"),
    pytest.mark.filterwarnings("ignore"),  # theirs
]


@pytest.fixture(scope="module")
def physicalai() -> ModuleType:
    import physicalai.inference
    from loguru import logger

    logger.remove()
    logging.disable(logging.WARNING)
    return physicalai.inference


@pytest.fixture(scope="module")
def opened() -> Bundle:
    return open_bundle(BUNDLE, allow_test_key=True)


def seen(opened: Bundle, number: int = 0) -> Observation:
    """Two smooth pictures as large as the model wants them, one frame apart, and some joints."""
    section, rng = opened.manifest.dzedge, np.random.default_rng(number)
    y, x = np.mgrid[0 : section.image.height, 0 : section.image.width]
    base = np.stack([60 + y, 60 + x, 120 + 0 * x], -1) + rng.integers(0, 60, 3)
    t_obs_ns = 10**9
    captures = (t_obs_ns - section.video.frame_dt_ns, t_obs_ns)
    frames = tuple(Frame((base + 9 * i).astype(np.uint8), i, ns, ns) for i, ns in enumerate(captures))
    joints = rng.uniform(-0.3, 0.5, len(section.joints))
    return Observation(frames, JointState(joints, np.zeros_like(joints), t_obs_ns), t_obs_ns, "reach the red cube", 0)


def ours(opened: Bundle, observation: Observation, chunk_id: int = CHUNK) -> NDArray[np.float64]:
    """The robot's own runtime, in float32 and with the sampler that is unrolled."""
    section = opened.manifest.dzedge
    camera = section.image.height, section.image.width
    policy = WorldActionModel(opened, Machine.detect(1), camera, precision="fp32", sampler=SAMPLER, seed=SEED)
    policy.reset(observation.instruction)
    return policy.infer(observation, ActionPrefix(np.zeros((0, len(section.joints)))), chunk_id).positions


def asked(opened: Bundle, observation: Observation, chunk_id: int = CHUNK) -> dict[str, NDArray]:
    """The same question as physicalai asks it: tensors by the graph's input names; nothing of our pipeline is used."""
    section, generator = opened.manifest.dzedge, Noise(SEED).of(chunk_id)
    video = (1, section.video.frames, section.video.tokens, section.video.channels)
    pictures = (frame.image.transpose(2, 0, 1)[None] for frame in observation.frames)
    before, now = (picture / np.float32(127.5) - 1 for picture in pictures)
    return {
        "image": now, "image_before": before,
        "state": observation.state.positions.astype(np.float32)[None],
        "words": Tokenizer(section.language).ids(observation.instruction).reshape(1, -1),
        "noise_video": generator.standard_normal(video, dtype=np.float32),
        "noise": generator.standard_normal((1, section.horizon, len(section.joints)), dtype=np.float32),
    }  # fmt: skip


@pytest.mark.parametrize("number", range(3))
def test_it_decides_what_we_decide(physicalai: ModuleType, opened: Bundle, number: int) -> None:
    observation = seen(opened, number)
    theirs = physicalai.InferenceModel(BUNDLE).predict_action_chunk(asked(opened, observation))
    mine = ours(opened, observation)
    assert theirs.shape == mine.shape
    assert np.abs(theirs - mine).max() < CLOSE
    assert np.abs(mine - observation.state.positions).max() > 1000 * CLOSE  # it does not just stay where it is


def test_other_noise_words_or_pictures_are_another_decision(physicalai: ModuleType, opened: Bundle) -> None:
    observation = seen(opened)
    question, mine = asked(opened, observation), ours(opened, observation)
    model = physicalai.InferenceModel(BUNDLE)
    others = {
        "noise": asked(opened, observation, CHUNK + 1)["noise"],
        "noise_video": asked(opened, observation, CHUNK + 1)["noise_video"],
        "words": Tokenizer(opened.manifest.dzedge.language).ids("circle").reshape(1, -1),
        "image": question["image_before"],
        "image_before": question["image"],
        "state": question["state"] + np.float32(0.1),
    }
    assert set(others) == set(question)
    for name, value in others.items():
        assert np.abs(model.predict_action_chunk(question | {name: value}) - mine).max() > 3e-4, name


def test_action_by_action(physicalai: ModuleType, opened: Bundle) -> None:
    question, mine = asked(opened, seen(opened)), ours(opened, seen(opened))
    with physicalai.InferenceModel(BUNDLE) as model:
        model.reset()
        played = np.stack([model.select_action(question) for _ in range(len(mine))])
    assert np.abs(played - mine).max() < CLOSE


def test_the_manifest_tells_it_robot_and_camera(physicalai: ModuleType, opened: Bundle) -> None:
    model, section = physicalai.InferenceModel(BUNDLE), opened.manifest.dzedge
    (arm,), (camera,) = model.manifest.hardware.robots, model.manifest.hardware.cameras
    assert arm.action.order == arm.state.order == list(section.joints)
    assert camera.shape == [3, section.image.height, section.image.width]
    assert (model.backend, model.policy_name) == ("onnx", "act")
    assert model.manifest.model.artifacts == {"onnx": UNROLLED}
    assert model.manifest.model_extra["dzedge"]["model_id"] == section.model_id


def test_it_checks_nothing_and_we_do(physicalai: ModuleType, opened: Bundle, tmp_path: Path) -> None:
    """Why a robot should not run a bundle that way: a changed graph is loaded there, and refused here."""
    folder = Path(shutil.copytree(BUNDLE, tmp_path / "act.dzp"))
    (folder / "manifest.json.minisig").unlink()
    assert physicalai.InferenceModel(folder).predict_action_chunk(asked(opened, seen(opened))).shape
    with pytest.raises(BundleError, match="cannot open"):
        open_bundle(folder, allow_test_key=True)


def test_our_runtime_leaves_it_alone(opened: Bundle) -> None:
    section = opened.manifest.dzedge
    (entry,) = [entry for entry in section.files if entry.path == UNROLLED]
    assert entry.role == "data"
    assert UNROLLED not in {variant.file for graph in section.graphs.values() for variant in graph.variants}
