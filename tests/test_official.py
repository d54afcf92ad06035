"""Official checkpoints at toy size: the imported model is the one that was written, and computes what the published
module computes; no tensor is lost, added or made up."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dzedge.errors import UsageError
from dzedge.export import official, official_stub
from dzedge.export.model.wan_config import Config, Window
from dzedge.export.model.wan_joint import WanJoint
from dzedge.export.official_keys import expected

pytest.importorskip("yaml", reason="conf.yaml needs PyYAML (extra [export])")

TOY = Config(
    width=48, layers=2, heads=2, feed=96, channels=16, condition_channels=20, latent_height=4, latent_width=6,
    text_tokens=5, text_width=16, image_tokens=257, hidden=32, time_width=16, window=7, state_sees_all=True,
)  # fmt: skip
"""The structure of the published 14B, narrow and shallow."""


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def nothing_is_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", refuse)


def state(config: Config = TOY) -> dict[str, Tensor]:
    return {name: official_stub.drawn(name, shape) for name, shape in expected(config).items()}


def equal(model: WanJoint, wanted: dict[str, Tensor]) -> bool:
    found = model.state_dict()
    return set(found) == set(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.usefixtures("nothing_is_unpickled")
class TestImport:
    @pytest.mark.parametrize("shards", [1, 3])
    def test_every_bit(self, tmp_path: Path, shards: int) -> None:
        read = official.read(official_stub.write(tmp_path / "c", TOY, shards))
        assert read.config == TOY
        assert read.parameters == sum(tensor.numel() for tensor in state().values())
        assert equal(official.load(read), state())

    def test_half_precision_files(self, tmp_path: Path) -> None:
        read = official.read(official_stub.write(tmp_path / "c", TOY, dtype=torch.bfloat16))
        assert equal(official.load(read), {name: tensor.bfloat16().float() for name, tensor in state().items()})

    def test_category_tensors_stay_as_they_are(self, tmp_path: Path) -> None:
        folder = official_stub.write(tmp_path / "c", TOY)
        stored = load_file(folder / "model.safetensors")["action_head.model.action_decoder.layer1.W"]
        assert stored.shape == (1, TOY.width, TOY.hidden)
        assert torch.equal(official.load(official.read(folder)).action_decoder.layer1.W, stored)

    def test_what_is_left_out_is_said(self, tmp_path: Path) -> None:
        folder = official_stub.write(tmp_path / "c", TOY)
        (folder / "optimizer.pt").write_bytes(b"cos\nsystem\n.")
        notes = official.read(folder).notes
        for part in ("text encoder (UMT5), 1 tensors of 33", "(CLIP), 1 tensors", "(VAE), 2 tensors of 56"):
            assert any(part in note for note in notes)
        assert "not opened: optimizer.pt: a pickle can run code" in notes

    def test_picture_from_conf_or_by_hand(self, tmp_path: Path) -> None:
        folder = official_stub.write(tmp_path / "c", TOY)
        path = folder / "experiment_cfg" / "conf.yaml"
        path.write_text(path.read_text().replace("VideoResize", "VideoRotate"))
        with pytest.raises(UsageError, match="height and width"):
            official.read(folder)
        assert official.read(folder, picture=(32, 48)).config == TOY


@pytest.mark.usefixtures("nothing_is_unpickled")
class TestAdapters:
    RANK, ALPHA = 3, 6.0

    def merged(self) -> dict[str, Tensor]:
        """W + B A alpha / r, computed here."""
        wanted = state()
        for name, weight in wanted.items():
            layer = name.removesuffix(".weight")
            if name.startswith("blocks.") and name != layer and layer.endswith(
                (".q", ".k", ".v", ".o", ".ffn.0", ".ffn.2")
            ):  # fmt: skip
                low = official_stub.drawn(f"{layer}.A", (self.RANK, weight.shape[1]))
                high = official_stub.drawn(f"{layer}.B", (weight.shape[0], self.RANK))
                wanted[name] = weight + 2.0 * (high @ low)
        return wanted

    def test_whole(self, tmp_path: Path) -> None:
        folder = official_stub.write(tmp_path / "c", TOY, 2, rank=self.RANK, alpha=self.ALPHA)
        read = official.read(folder)
        assert "merged: 20 adapters of rank 3" in read.notes
        model = official.load(read)
        for name, wanted in self.merged().items():
            torch.testing.assert_close(model.state_dict()[name], wanted, rtol=0.0, atol=1e-6)
        assert not torch.equal(model.blocks[0].self_attn.q.weight, state()["blocks.0.self_attn.q.weight"])  # type: ignore[union-attr, index]

    def test_alone_with_its_base(self, tmp_path: Path) -> None:
        """Adapters and the encoders beside them in one folder, the rest in another, whose names have no prefix."""
        folder = official_stub.write(tmp_path / "c", TOY, rank=self.RANK, alpha=self.ALPHA, base=False)
        with pytest.raises(UsageError, match=r"tensors are missing: .*blocks\.1\.ffn\.2\.weight.*base model"):
            official.read(folder)
        under = tmp_path / "base"
        under.mkdir()
        old = {"state_encoder.layer1.W": torch.zeros(1, 64, 32), "scale_shift": torch.zeros(2)}
        save_file(state() | old, under / "diffusion_pytorch_model.safetensors")
        read = official.read(folder, base=under)
        assert "not used of the base model: scale_shift" in read.notes
        model = official.load(read)
        for name, wanted in self.merged().items():
            torch.testing.assert_close(model.state_dict()[name], wanted, rtol=0.0, atol=1e-6)

    def test_none_announced(self, tmp_path: Path) -> None:
        folder = official_stub.write(tmp_path / "c", TOY, rank=self.RANK)
        path = folder / "config.json"
        path.write_text(path.read_text().replace('"train_architecture": "lora"', '"train_architecture": "full"'))
        with pytest.raises(UsageError, match="which is true"):
            official.read(folder)


class TestAccount:
    def rewritten(self, folder: Path, gone: str = "", more: str = "") -> Path:
        official_stub.write(folder, TOY)
        tensors = load_file(folder / "model.safetensors")
        if gone:
            del tensors[gone]
        if more:
            tensors[more] = torch.zeros(2)
        save_file(tensors, folder / "model.safetensors")
        return folder

    def test_missing(self, tmp_path: Path) -> None:
        folder = self.rewritten(tmp_path / "c", gone="action_head.model.blocks.1.norm3.bias")
        with pytest.raises(UsageError, match=r"1 tensors are missing: blocks\.1\.norm3\.bias;"):
            official.read(folder)

    @pytest.mark.parametrize("name", ["action_head.model.blocks.2.norm3.bias", "value_head.weight"])
    def test_left_over(self, tmp_path: Path, name: str) -> None:
        folder = self.rewritten(tmp_path / "c", more=name)
        with pytest.raises(UsageError, match=f"1 tensors are not known: {name}"):
            official.read(folder)
        read = official.read(folder, ignore=(name,))
        assert f"left out as asked: {name}" in read.notes
        assert equal(official.load(read), state())

    def test_of_another_size(self, tmp_path: Path) -> None:
        folder = official_stub.write(tmp_path / "c", TOY)
        path = folder / "config.json"
        document = json.loads(path.read_text())
        document["action_head_cfg"]["config"]["diffusion_model_cfg"]["ffn_dim"] = 97
        path.write_text(json.dumps(document))
        with pytest.raises(UsageError, match=r"ffn\.0\.bias is \(96,\), expected \(97,\)"):
            official.read(folder)


NARROW_5B = replace(TOY, channels=48, condition_channels=0)
GOLDEN = {
    "14B": (TOY, [0.1784, 0.51221, -1.11861, -1.47825, 0.48169], 34.5035,
            [-1.21776, 0.46313, 0.06808, -1.38415, 0.84204], 19.5671),
    "5B": (NARROW_5B, [-0.5445, 0.02338, 1.02934, 0.52842, 0.51907], 56.8528,
           [-1.13941, 0.46108, 0.01397, -1.31197, 0.78357], 19.1912),
}  # fmt: skip
"""What the published module (commit ab790c1, eager, float32, its inference path) gave after loading the same file with
every key matched: values at equal strides and the norm of its video velocity (frame by frame), then of its actions'."""


def noise(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype=np.float32))


def second_block(model: WanJoint) -> tuple[Tensor, Tensor]:
    """Velocities of the block after a first frame and a block, as the published server asks for them."""
    config = model.config
    latent = noise(1, 1, config.channels, 5, 4, 6).transpose(1, 2)
    condition = noise(2, 1, 20, 5, 4, 6).transpose(1, 2) if config.condition_channels else None
    action, state = noise(3, 1, 24, 32), noise(4, 1, 1, 64)
    prompt = model.context(noise(5, 1, 5, 16), noise(6, 1, 257, 1280))
    rows = (1, config.window, config.layers, config.heads, config.tokens, config.head_width)
    key, value, seen = torch.zeros(rows), torch.zeros(rows), 0

    def window(frames: int) -> Window:
        place = torch.arange(seen - config.window, seen + frames, dtype=torch.float32)[None]
        return Window(key, value, place, (place[:, : config.window] >= 0).float())

    def beside(part: slice) -> Tensor | None:
        return None if condition is None else condition[:, part]

    for part in (slice(0, 1), slice(1, 3)):
        new = model.prefill(latent[:, part], prompt, window(part.stop - part.start), beside(part))
        key, value = (torch.cat([*pair], 1)[:, -config.window :] for pair in zip((key, value), new, strict=True))
        seen = part.stop
    time = torch.tensor([1.0 - 0.624])  # the published timestep 624
    ahead = slice(3, 5)
    v_video, v_action = model(
        latent[:, ahead], action, torch.zeros_like(action), torch.zeros(1, 24), state, prompt, window(2), time, time,
        beside(ahead),
    )  # fmt: skip
    return v_video, v_action


class TestPublishedNumbers:
    @pytest.mark.parametrize("name", GOLDEN)
    def test_equal(self, tmp_path: Path, name: str) -> None:
        config, video, video_norm, action, action_norm = GOLDEN[name]
        model = official.load(official.read(official_stub.write(tmp_path / "c", config, 2)))
        for velocity, values, norm in zip(
            second_block(model), (video, action), (video_norm, action_norm), strict=True
        ):  # fmt: skip
            flat = -velocity.flatten()  # the published velocity is noise - clean
            np.testing.assert_allclose(flat[:: len(flat) // 5][:5], values, atol=2e-5)
            assert flat.norm().item() == pytest.approx(norm, rel=1e-5)

    def test_with_the_rule_of_training_it_is_another(self, tmp_path: Path) -> None:
        """A state that sees itself alone, as in the published training: the server does otherwise."""
        read = official.read(official_stub.write(tmp_path / "c", NARROW_5B))
        model = official.load(replace(read, config=replace(read.config, state_sees_all=False)))
        assert abs(second_block(model)[1].norm().item() - GOLDEN["5B"][4]) > 1e-3
