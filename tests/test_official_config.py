"""config.json of the published checkpoints -> sizes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dzedge.errors import UsageError
from dzedge.export.model.wan_config import preset
from dzedge.export.official_config import TARGET, config_of, is_official, read_head

MODULES = "groot.vla.model.dreamzero.modules"
NETWORK_14B = {
    "_convert_": "object", "_target_": f"{MODULES}.wan_video_dit_action_casual_chunk.CausalWanModel",
    "diffusion_model_pretrained_path": "checkpoints/Wan2.1-I2V-14B-480P", "dim": 5120, "eps": 1e-06, "ffn_dim": 13824,
    "frame_seqlen": 880, "freq_dim": 256, "in_dim": 36, "max_chunk_size": 4, "model_type": "i2v",
    "num_action_per_block": 24, "num_frame_per_block": 2, "num_heads": 40, "num_layers": 40, "num_state_per_block": 1,
    "out_dim": 16,
}  # fmt: skip
NETWORK_5B = NETWORK_14B | {
    "model_type": "ti2v", "dim": 3072, "in_dim": 48, "concat_first_frame_latent": False, "ffn_dim": 14336,
    "out_dim": 48, "num_heads": 24, "num_layers": 30, "frame_seqlen": 50,
}  # fmt: skip
"""As published: what the class's own defaults say is left out."""


def written(folder: Path, network: dict[str, Any], vae: str, target: str = TARGET, **policy: Any) -> Path:
    head = {
        "num_frames": 33, "max_state_dim": 64, "max_action_dim": 32, "hidden_size": 64, "train_architecture": "full",
        "diffusion_model_cfg": network, "vae_cfg": {"_target_": f"{MODULES}.wan_video_vae.{vae}"},
        **policy,
    }  # fmt: skip
    document = {"model_type": "vla", "action_head_cfg": {"_target_": target, "config": head}}
    (folder / "config.json").write_text(json.dumps(document))
    return folder


class TestPublished:
    def test_14_b(self, tmp_path: Path) -> None:
        head = read_head(written(tmp_path, NETWORK_14B, "WanVideoVAE"))
        assert config_of(head, (352, 640)) == replace(preset("14B"), state_sees_all=True)
        assert head.lora is None and head.picture is None

    def test_5_b(self, tmp_path: Path) -> None:
        """Its picture is smaller than the mosaic and stands in config.json."""
        folder = written(tmp_path, NETWORK_5B, "WanVideoVAE38", target_video_height=160, target_video_width=320)
        head = read_head(folder)
        assert head.picture == (160, 320)
        assert config_of(head, head.picture) == replace(preset("5B"), state_sees_all=True)

    @pytest.mark.parametrize(
        ("old", "new"),
        [("_tf.", "_tf_efficient_weighted."), ("_tf.", "_tf_efficient."), (".dreamzero.", ".dreamvla.")],
    )
    def test_older_names_of_the_class(self, tmp_path: Path, old: str, new: str) -> None:
        target = TARGET.replace(old, new)
        assert target != TARGET
        folder = written(tmp_path, NETWORK_14B, "WanVideoVAE", target)
        assert is_official(folder) and read_head(folder).frame_tokens == 880

    def test_adapters(self, tmp_path: Path) -> None:
        folder = written(tmp_path, NETWORK_14B, "WanVideoVAE", train_architecture="lora", lora_rank=8, lora_alpha=16)
        assert read_head(folder).lora == (8, 16.0)

    def test_no_bound_means_as_trained(self, tmp_path: Path) -> None:
        """33 pixel frames are 9 latent ones."""
        head = read_head(written(tmp_path, NETWORK_14B | {"max_chunk_size": -1}, "WanVideoVAE"))
        assert config_of(head, (352, 640)).window == 7
        longer = read_head(written(tmp_path, NETWORK_14B | {"max_chunk_size": 5}, "WanVideoVAE"))
        assert config_of(longer, (352, 640)).window == 9


class TestErrors:
    def test_of_another_class(self, tmp_path: Path) -> None:
        folder = written(tmp_path, NETWORK_14B, "WanVideoVAE", "groot.vla.model.other.Head")
        assert not is_official(folder)
        with pytest.raises(UsageError, match=r"'groot\.vla\.model\.other\.Head', allowed"):
            read_head(folder)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"action_head_cfg": 3}'])
    def test_not_a_checkpoint(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "config.json").write_text(text)
        assert not is_official(tmp_path)
        with pytest.raises(UsageError, match=r"config\.json"):
            read_head(tmp_path)
        assert not is_official(tmp_path / "nowhere")

    @pytest.mark.parametrize(
        ("change", "vae", "named"),
        [
            ({"num_experts": 8}, "WanVideoVAE", "num_experts: not known here"),
            ({"patch_size": [1, 4, 4]}, "WanVideoVAE", "patch_size"),
            ({"qk_norm": False}, "WanVideoVAE", "qk_norm is False"),
            ({"sink_size": 1}, "WanVideoVAE", "sink_size is 1"),
            ({"model_type": "s2v"}, "WanVideoVAE", "model_type is 's2v'"),
            ({"in_dim": 16}, "WanVideoVAE", "in_dim 16, out_dim 16.*allowed: out_dim 16, in_dim 36"),
            ({"concat_first_frame_latent": False}, "WanVideoVAE", "in_dim 16$"),
            ({}, "WanVideoVAE38", "tokenizer of 48 channels"), ({}, "OtherVAE", "'OtherVAE', allowed: WanVideoVAE"),
        ],
    )  # fmt: skip
    def test_what_is_built_otherwise(self, tmp_path: Path, change: dict[str, Any], vae: str, named: str) -> None:
        with pytest.raises(UsageError, match=named):
            read_head(written(tmp_path, NETWORK_14B | change, vae))

    def test_picture_of_another_size(self, tmp_path: Path) -> None:
        head = read_head(written(tmp_path, NETWORK_14B, "WanVideoVAE"))
        with pytest.raises(UsageError, match=r"frame_seqlen is 880, but a picture of 320 x 640 makes 800"):
            config_of(head, (320, 640))
