"""act.onnx: one graph for a whole chunk, held against the training side's policy."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from dzedge.bundle import UNROLLED
from dzedge.engine import Noise
from dzedge.errors import UsageError
from dzedge.export import parity, stub, unrolled
from dzedge.export.fit_tokenizer import Tokenizer
from dzedge.export.model.moments import Moments
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.text import words_of
from dzedge.export.model.wam import Wam
from dzedge.export.source import Source
from dzedge.export.torch_policy import Trained, torch_policy
from dzedge.kernels.image import ImagePlan
from dzedge.types import ActionPrefix

SIZES = Sizes(width=16, layers=1, heads=2, encoder_width=4, decoder_width=4)
MOMENTS = Moments(
    action_std=np.linspace(0.02, 0.2, 48).reshape(8, 6), state_mean=np.linspace(-0.2, 0.3, 6),
    state_std=np.linspace(0.5, 0.9, 6), residual_std=np.full((4, 7, 10), 0.3),
    action_low=np.full((8, 6), -4.0), action_high=np.full((8, 6), 4.0),
)  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained() -> Trained:
    torch.manual_seed(3)
    model, tokenizer = Wam(SIZES).eval(), Tokenizer(SIZES).eval()
    for name, part in model.named_modules():  # a fresh trunk's heads are zero; zeros prove nothing
        if isinstance(part, nn.Linear) and name.rsplit(".", 1)[-1] in ("shared", "leave"):
            nn.init.normal_(part.weight, std=0.2)
    return Trained("wam", model, tokenizer, MOMENTS, {"max_prefix": 3}, Source())


@pytest.fixture(scope="module")
def folder(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("act")
    found = unrolled.write(made, trained.model, trained.tokenizer.encoder, MOMENTS, "video_first(2,1)")
    assert [(row.graph, row.output) for row in found] == [("act", "action")]
    return made


def feed(*numbers: int, instruction: str = stub.ASKED, chunk_id: int = 7) -> dict[str, np.ndarray]:
    plan, images = ImagePlan(120, 160, None, 72, 96), []
    for number in numbers:
        image = np.empty((1, 3, 72, 96), np.float32)
        plan.run(stub.frame(number).image, image[0])
        images.append(image)
    noise = Noise(0).of(chunk_id)
    return {
        "image": images[1], "image_before": images[0], "state": stub.STATE[None].astype(np.float32),
        "words": np.array([words_of(instruction, SIZES.words)]),
        "noise_video": noise.standard_normal((1, 4, 7, 10), dtype=np.float32),
        "noise": noise.standard_normal((1, 8, 6), dtype=np.float32),
    }  # fmt: skip


def test_gives_the_targets_of_the_policy(trained: Trained, folder: Path) -> None:
    session = parity.session(folder / UNROLLED)
    policy = torch_policy(trained, (120, 160), "video_first(2,1)")
    for instruction, chunk_id in ((stub.ASKED, 7), ("press the blue cube", 8)):
        policy.reset(instruction)
        seen = stub.observation(0, 3)
        wanted = policy.infer(seen, ActionPrefix(np.zeros((0, 6))), chunk_id).positions
        [found] = session.run(["action"], feed(0, 3, instruction=instruction, chunk_id=chunk_id))
        assert (found.shape, found.dtype) == ((1, 8, 6), np.float32)
        np.testing.assert_allclose(found[0], wanted, atol=2e-6)
        assert np.abs(wanted - stub.STATE).max() > 0.01, "it wants to move"


def test_every_input_counts(folder: Path) -> None:
    session = parity.session(folder / UNROLLED)
    before = feed(0, 3)
    assert [node.name for node in session.get_inputs()] == list(before)
    [first] = session.run(None, before)
    other = {**feed(4, 1, instruction="press the blue cube", chunk_id=8), "state": before["state"] + 0.1}
    for name in before:
        [second] = session.run(None, {**before, name: other[name]})
        assert np.abs(first - second).max() > 1e-6, name


def test_weights_are_there_once(folder: Path) -> None:
    model = onnx.load(str(folder / UNROLLED))
    large = [tensor.raw_data for tensor in model.graph.initializer if len(tensor.raw_data) > 1000]
    assert len(set(large)) == len(large)
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_both_at_once_cannot_be_unrolled(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'joint\(4\)': must be video_first\(nv,na\)"):
        unrolled.write(tmp_path, trained.model, trained.tokenizer.encoder, MOMENTS, "joint(4)")
