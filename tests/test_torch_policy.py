"""Torch and the robot's runtime decide alike, whatever the family: pixels, words, joints, window, commitments, noise.

wan_joint, whose window slides over more frames: test_wan_policy.py.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from dzedge.bundle import Bundle, open_bundle
from dzedge.engine import Machine
from dzedge.errors import UsageError
from dzedge.export import families, judge, stub
from dzedge.export.decisions import Decision, decide
from dzedge.export.fit_tokenizer import Tokenizer
from dzedge.export.model.moments import Moments
from dzedge.export.model.sizes import Sizes
from dzedge.export.onnx import export_all
from dzedge.export.package import Release, package
from dzedge.export.source import Source
from dzedge.export.torch_policy import Trained, torch_policy
from dzedge.minisign import SecretKey
from dzedge.types import ActionPrefix, Observation

TOY = Sizes(width=32, layers=1, heads=2, encoder_width=4, decoder_width=4)
MOMENTS = Moments(
    action_std=np.linspace(0.02, 0.2, 48).reshape(8, 6), state_mean=np.linspace(-0.2, 0.3, 6),
    state_std=np.linspace(0.5, 0.9, 6), residual_std=np.full((4, 7, 10), 0.3),
    action_low=np.linspace(-4.0, -2.0, 48).reshape(8, 6), action_high=np.linspace(3.0, 5.0, 48).reshape(8, 6),
)  # fmt: skip
SAMPLERS = {
    "wam": ("video_first(2,3)", "joint(2)"), "flow_vla": ("euler(3)",), "dual_vla": ("euler(2)",),
    "token_vla": ("greedy", "sample(0.7)"),
}  # fmt: skip

pytestmark = pytest.mark.slow


class Made(NamedTuple):
    trained: Trained
    bundle: Bundle
    folder: Path


@pytest.fixture(scope="module", params=SAMPLERS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    torch.manual_seed(3)
    family = request.param
    model, tokenizer = families.LEARNERS[family]().build(TOY, MOMENTS).eval(), Tokenizer(TOY).eval()
    for name, part in model.named_modules():  # a fresh trunk's heads are zero; zeros prove nothing
        if isinstance(part, nn.Linear) and name.rsplit(".", 1)[-1] in ("shared", "leave"):
            nn.init.normal_(part.weight, std=0.1)
    nn.init.normal_(model.text.points, std=0.1)
    folder = tmp_path_factory.mktemp(family) / "toy.dzp"
    secret = SecretKey.decode(stub.TEST_SECRET.read_text(), "test.key")
    about = Release("toy", 1, family, SAMPLERS[family], max_prefix=3)
    files = export_all(families.cut(model, tokenizer), folder.parent / "graphs")
    package(folder, model, tokenizer, MOMENTS, about, secret, "2026-01-01T00:00:00Z", files=files)
    trained = Trained(family, model, tokenizer, MOMENTS, {"max_prefix": 3}, Source())
    return Made(trained, open_bundle(folder, allow_test_key=True), folder)


def decisions() -> list[Decision]:
    """A pair without commitments, one that begins with a single frame, one with commitments."""
    committed = ActionPrefix(stub.STATE + np.array([[0.01], [0.02]]))
    nothing = ActionPrefix(np.zeros((0, 6)))
    rows = [((0, 3), nothing, True), ((3, 6), nothing, False), ((9,), nothing, True), ((9, 12), committed, False),
            ((0, 3), committed, True)]  # fmt: skip
    return [Decision(stub.observation(*numbers), prefix, fresh) for numbers, prefix, fresh in rows]


@pytest.mark.parametrize("place", range(2))
def test_decide_alike(made: Made, place: int) -> None:
    samplers = SAMPLERS[made.trained.family]
    if place >= len(samplers):
        pytest.skip("one sampler is enough for Euler steps")
    ours = judge.policy_of(made.bundle, judge.Way(), (120, 160), samplers[place])
    theirs = torch_policy(made.trained, (120, 160), samplers[place])
    for found, wanted in zip(decide(ours, decisions()), decide(theirs, decisions()), strict=True):
        np.testing.assert_allclose(found.positions, wanted.positions, atol=2e-5)
        np.testing.assert_allclose(found.imagined, wanted.imagined, atol=2e-5)
        assert np.abs(wanted.positions - stub.STATE).max() > 1e-3, "a chunk that stays where it is proves nothing"


def test_another_noise_or_another_weight_is_another_chunk(made: Made) -> None:
    sampler, family = SAMPLERS[made.trained.family][-1], made.trained.family
    twins = (torch_policy(made.trained, (120, 160), sampler, seed) for seed in (0, 1))
    one, other = (decide(twin, decisions()[:1])[0] for twin in twins)
    assert np.abs(one.positions - other.positions).max() > 1e-4
    weight = next(p for name, p in made.trained.model.named_parameters() if name.endswith("leave.weight"))
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.add_(0.2 * torch.randn_like(weight))
        changed = decide(torch_policy(made.trained, (120, 160), sampler), decisions()[:1])[0]
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    moved = changed.imagined - one.imagined if family == "wam" else changed.positions - one.positions
    assert np.abs(moved).max() > 1e-4


def test_what_has_no_sampler_is_refused() -> None:
    alien = Trained("diffusion", None, Tokenizer(TOY), MOMENTS, {}, Source())
    with pytest.raises(UsageError, match="family 'diffusion': no torch sampler; known: wam"):
        torch_policy(alien, (120, 160), "euler(4)")


def test_machine_of_a_way() -> None:
    boards = judge.Way("int8", "cuda|tensorrt", "gpu", in_float=True)
    assert boards.name == "int8 (gpu, in float)"
    assert Machine("cpu", "vnni", 1, in_float=True) != Machine("cpu", "vnni", 1), "they need sessions of their own"


def test_observations_are_the_runtimes_own() -> None:
    assert isinstance(decisions()[0].observation, Observation)
    assert decisions()[0].camera == (120, 160)
