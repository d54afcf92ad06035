"""config.json of an official checkpoint -> the sizes of `wan_joint` (facts/dreamzero 4)."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dzedge.errors import UsageError
from dzedge.export.model.wan_config import PATCH, Config

TARGET = "groot.vla.model.dreamzero.action_head.wan_flow_matching_action_tf.WANPolicyHead"
"""Name of the policy head's class."""
TARGETS = re.compile(
    r"groot\.vla\.model\.(dreamzero|dreamvla)\.action_head\.wan_flow_matching_action_tf(_efficient)?(_weighted)?"
    r"\.WANPolicyHead"
)
"""The same, and what early checkpoints call it."""
STRIDES = {"WanVideoVAE": (8, 16), "WanVideoVAE38": (16, 48)}
"""Of the published frame tokenizers: pixels a latent pixel is wide, and channels."""
IMAGE_TOKENS = 257
"""What the published image encoder (CLIP ViT-H/14 of 224 pixels) gives: 16 x 16 patches and one more."""
PUBLISHED = {
    "dim": 2048, "ffn_dim": 8192, "num_heads": 16, "num_layers": 32, "in_dim": 16, "out_dim": 16, "freq_dim": 256,
    "text_len": 512, "text_dim": 4096, "action_dim": 32, "max_state_dim": 64, "hidden_size": 1024, "eps": 1e-6,
    "frame_seqlen": 220, "num_frame_per_block": 1, "num_action_per_block": 32, "num_state_per_block": 1,
    "max_chunk_size": -1, "model_type": "t2v",
}  # fmt: skip
"""What the published class takes where its configuration is silent."""
IDLE = {
    "_target_", "_convert_", "_recursive_", "diffusion_model_pretrained_path", "concat_first_frame_latent",
    "num_registers", "max_num_embodiments", "patch_size", "qk_norm", "cross_attn_norm", "sink_size",
}  # fmt: skip
"""Keys of the network that change no tensor here, or only where `_fixed` looks."""


@dataclass(frozen=True, slots=True)
class Head:
    """config.json, understood. network, policy: its two tables; stride: of the frame tokenizer, in pixels; picture:
    height and width the checkpoint was trained for (None: it follows from the cameras); lora: rank and alpha, or None
    for a checkpoint without adapters."""

    network: dict[str, Any]
    policy: dict[str, Any]
    stride: int
    picture: tuple[int, int] | None
    lora: tuple[int, float] | None

    @property
    def frame_tokens(self) -> int:
        return int(self.network["frame_seqlen"])


def is_official(folder: Path) -> bool:
    """Whether a folder is a checkpoint of the official layout, by the class its config.json names."""
    try:
        target = _target(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False
    return TARGETS.fullmatch(target) is not None


def read_head(folder: Path) -> Head:
    """Raises UsageError: no config.json, another class, a key that is not understood or a value out of range."""
    path = folder / "config.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); name a folder of the official layout") from error
    if not TARGETS.fullmatch(target := _target(document)):
        raise UsageError(f"{path}: action_head_cfg._target_ is {target!r}, allowed: {TARGET}, or its older names")
    policy = document["action_head_cfg"].get("config")
    if not isinstance(policy, dict) or not isinstance(policy.get("diffusion_model_cfg"), dict):
        raise UsageError(f"{path}: action_head_cfg.config.diffusion_model_cfg is missing; the file is not whole")
    given = policy["diffusion_model_cfg"]
    if unknown := sorted(set(given) - set(PUBLISHED) - IDLE):
        raise UsageError(f"{path}: diffusion_model_cfg: {', '.join(unknown)}: not known here; update dzedge")
    network = PUBLISHED | {key: value for key, value in given.items() if key in PUBLISHED}
    stride, channels = _tokenizer(policy, path)
    _fixed(given, network, channels, path)
    sides = policy.get("target_video_height"), policy.get("target_video_width")
    picture = None if None in sides else (int(sides[0]), int(sides[1]))  # type: ignore[arg-type]
    adapted = policy.get("train_architecture", "lora") == "lora"
    lora = (int(policy.get("lora_rank", 4)), float(policy.get("lora_alpha", 4))) if adapted else None
    return Head(network, policy, stride, picture, lora)


def config_of(head: Head, picture: tuple[int, int]) -> Config:
    """Sizes of the network for a picture of height x width pixels. Raises UsageError where the two do not agree."""
    net, (height, width) = head.network, (side // head.stride for side in picture)
    if (tokens := (height // PATCH) * (width // PATCH)) != head.frame_tokens:
        raise UsageError(
            f"config.json: frame_seqlen is {head.frame_tokens}, but a picture of {picture[0]} x {picture[1]} makes "
            f"{tokens} tokens; config.json and conf.yaml are of different checkpoints, or name the picture's size"
        )
    frames, chunks = int(net["num_frame_per_block"]), int(net["max_chunk_size"])
    # Without a bound of its own a checkpoint looks back as far as it was trained: 1 + 4 pixel frames a latent frame.
    span = chunks * frames + 1 if chunks != -1 else (int(head.policy["num_frames"]) - 1) // 4 + 1
    return Config(
        width=net["dim"], layers=net["num_layers"], heads=net["num_heads"], feed=net["ffn_dim"],
        channels=net["out_dim"], condition_channels=net["in_dim"] - net["out_dim"],
        latent_height=height, latent_width=width, text_tokens=net["text_len"], text_width=net["text_dim"],
        image_tokens=0 if net["model_type"] == "t2v" else IMAGE_TOKENS,
        action_width=net["action_dim"], state_width=net["max_state_dim"], hidden=net["hidden_size"],
        time_width=net["freq_dim"], frames=frames, actions=net["num_action_per_block"],
        states=net["num_state_per_block"], window=span - frames,
        state_sees_all=True,  # what its server does; its training does not (facts/dreamzero 1.2)
        epsilon=net["eps"],
    )  # fmt: skip


def _target(document: Any) -> str:
    head = document.get("action_head_cfg") if isinstance(document, dict) else None
    return str(head.get("_target_")) if isinstance(head, dict) else "missing"


def _tokenizer(policy: dict[str, Any], path: Path) -> tuple[int, int]:
    name = str((policy.get("vae_cfg") or {}).get("_target_")).rpartition(".")[2]
    if name not in STRIDES:
        raise UsageError(f"{path}: vae_cfg._target_ ends in {name!r}, allowed: {', '.join(STRIDES)}")
    return STRIDES[name]


def _fixed(given: dict[str, Any], network: dict[str, Any], channels: int, path: Path) -> None:
    """What is built one way here must not be asked for otherwise."""
    for key, only in (
        ("patch_size", [1, PATCH, PATCH]), ("qk_norm", True), ("cross_attn_norm", True), ("sink_size", 0),
    ):  # fmt: skip
        value = list(given[key]) if isinstance(given.get(key), tuple) else given.get(key, only)
        if value != only:
            raise UsageError(f"{path}: diffusion_model_cfg.{key} is {value!r}, allowed: {only!r}")
    if network["model_type"] not in ("t2v", "i2v", "ti2v"):
        raise UsageError(f"{path}: model_type is {network['model_type']!r}, allowed: t2v, i2v, ti2v")
    extra = network["in_dim"] - network["out_dim"]
    concatenates = given.get("concat_first_frame_latent", True)
    # The first frame's latent and a mask of four come beside the noisy latent: 16 + 4 + 16.
    if network["out_dim"] != channels or extra != (channels + 4 if concatenates else 0):
        raise UsageError(
            f"{path}: in_dim {network['in_dim']}, out_dim {network['out_dim']} with a tokenizer of {channels} channels "
            f"and concat_first_frame_latent {concatenates}; allowed: out_dim {channels}, in_dim "
            f"{2 * channels + 4 if concatenates else channels}"
        )
