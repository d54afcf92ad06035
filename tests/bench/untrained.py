"""World action models of any size without training, for timing: what a weight is worth does not change how long it
takes. Seeded, with no output at zero; exported, quantized and packed once, below build/bench."""

import hashlib
import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import torch

from dzedge import bundle, config, minisign
from dzedge.export import families, onnx, package, quantize
from dzedge.export.calibration import recording
from dzedge.export.fit_tokenizer import Tokenizer
from dzedge.export.model.moments import Moments
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.vae import Vae
from dzedge.export.model.wam import Wam
from dzedge.export.stub import TEST_SECRET
from dzedge.manifest import Precision
from dzedge.policies import WorldActionModel, load_policy
from dzedge.types import ActionPrefix, Frame, JointState, Observation

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "bench"
MAKERS = ("onnx", "package", "quantize", "layers", "migration")
SOURCES = ("export/model/*.py", *(f"export/{name}.py" for name in MAKERS), "tests/bench/[ur]*.py")
CALIBRATION = 6
"""Decisions that int8 is calibrated on."""
CREATED = "20261124T000000Z"
JOINTS, CAMERA = 6, (120, 160)
FRAME_NS, FIRST_NS = 66_666_667, 1_000_000_000
MOST = 3
"""Committed actions."""


def models(sizes: Sizes) -> tuple[Wam, Tokenizer | Vae]:
    """Trunk and tokenizer, in evaluation."""
    torch.manual_seed(7)
    trunk, tokenizer = Wam(sizes).eval(), (Tokenizer if sizes.structured else Vae)(sizes).eval()
    for stream in (trunk.video, trunk.action):
        torch.nn.init.normal_(stream.leave.weight, std=0.05)
        torch.nn.init.normal_(stream.shared.weight, std=0.02)
    for part in (trunk, tokenizer):
        part.requires_grad_(False)
    return trunk, tokenizer


def folder(name: str, sizes: Sizes) -> Path:
    """Where what is made of a model lies: a new place, the old removed, for each change of the code that makes it."""
    digest = hashlib.sha256(json.dumps(sizes.to_json(), sort_keys=True).encode())
    for pattern in SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    place = KEPT / f"{name}-{digest.hexdigest()[:12]}"
    if not place.exists():
        for old in KEPT.glob(f"{name}-*"):
            shutil.rmtree(old)
        place.mkdir(parents=True)
    return place


def kept(name: str, sizes: Sizes) -> Path:
    """Bundle of an untrained model, float32 and int8, made where it is not there yet. Returns the path."""
    target = folder(name, sizes) / f"{name}.dzp"
    if not target.exists():
        _make(target, name, sizes)
    return target


def _make(target: Path, name: str, sizes: Sizes) -> None:
    trunk, tokenizer = models(sizes)
    shape = (sizes.tokens, sizes.channels)
    moments = replace(Moments.neutral(sizes), latent_mean=np.zeros(shape), latent_std=np.ones(shape))
    secret = minisign.SecretKey.decode(TEST_SECRET.read_text(encoding="ascii"), str(TEST_SECRET))
    release = package.Release(name, 1, max_prefix=MOST)
    graphs = target.with_name("graphs")
    files = onnx.export_all(families.cut(trunk, tokenizer), graphs)
    plain = target.with_name("plain.dzp")
    package.package(plain, trunk, tokenizer, moments, release, secret, CREATED, files=files)
    with recording() as feeds:
        policy = load(plain, 1, "fp32")
        policy.reset("reach the red cube")
        for number in range(CALIBRATION):
            policy.infer(*scene(number), number)
    variants = quantize.build(files, feeds, ("int8",))
    package.package(target, trunk, tokenizer, moments, release, secret, CREATED, variants, files)
    shutil.rmtree(plain)


def load(path: Path | str, threads: int, precision: Precision = "auto") -> WorldActionModel:
    """A bundle as the simulated robot runs it."""
    robot = config.load(config.default_path())
    opened = bundle.open_bundle(str(path), minisign.load_keys(robot.policy.trusted_keys), allow_test_key=True)
    changed = msgspec.structs.replace(robot.policy, threads=threads, precision=precision, cache=False)
    policy = load_policy(msgspec.structs.replace(robot, policy=changed), opened)
    assert isinstance(policy, WorldActionModel)
    return policy


@cache
def scene(number: int) -> tuple[Observation, ActionPrefix]:
    """What is seen at frame `number + 1` of nothing in particular: that frame, the one before, and joints."""
    frames, joints = (frame(number), frame(number + 1)), np.random.default_rng(number).uniform(-0.5, 0.5, JOINTS)
    state = JointState(joints, np.zeros(JOINTS), frames[-1].capture_ns)
    return Observation(frames, state, frames[-1].capture_ns, "", 0), ActionPrefix(np.zeros((0, JOINTS)))


@cache
def frame(number: int) -> Frame:
    """Frame `number` of a camera of 160 x 120 pixels."""
    image = np.random.default_rng(number).integers(0, 256, (*CAMERA, 3), dtype=np.uint8)
    return Frame(image, number, FIRST_NS + number * FRAME_NS, 0)
