"""Synthetic checkpoints of the official layout: its file names, keys and tables at any width and depth, random
weights. For tests, and to measure exports of sizes whose weights nobody here has.

Tensors are drawn one by one from their names, so that a large one is written without being held.
"""

import json
import math
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from dzedge.export.model.wan_config import PATCH, Config
from dzedge.export.official_config import IMAGE_TOKENS, STRIDES, TARGET
from dzedge.export.official_keys import expected

GROOT = "groot.vla"
CHANNELS = {space: {"joint_position": 7, "gripper_position": 1} for space in ("state", "action")}
CAMERAS = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
RELATIVE = ("joint_position",)
ADAPTED = ("q", "k", "v", "o", "ffn.0", "ffn.2")
"""Ends of the names of the layers that the published adapters change."""
BESIDE = {
    "text_encoder.token_embedding.weight": (11, 3), "image_encoder.model.visual.conv1.weight": (4, 3, 2, 2),
    "vae.model.encoder.conv1.weight": (2, 3, 1, 3, 3), "vae.model.encoder.conv1.bias": (2,),
}  # fmt: skip
"""One tensor or two of each part that is left out."""

Draw = Callable[[str, tuple[int, ...]], Tensor]


def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """Weights that keep the size of what passes through: seeded by the name (the same with any torch), scaled by the
    inputs."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    inputs = shape[-2] if len(shape) == 3 else math.prod(shape[1:])
    spread = 0.02 if len(shape) == 1 or "modulation" in name else inputs**-0.5
    tensor = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)) * spread
    # Norms scale around one.
    return tensor + 1.0 if "norm" in name and name.endswith("weight") else tensor


def write(
    folder: Path, config: Config, shards: int = 1, dtype: torch.dtype = torch.float32, rank: int = 0,
    alpha: float = 4.0, draw: Draw = drawn, base: bool = True, tag: str = "oxe_droid",
) -> Path:  # fmt: skip
    """Writes a whole checkpoint of `config`, which must be one that the layout can say (see `document`). Returns the
    folder. rank: of adapters on every adapted layer, 0 for none; base: whether the weights that they change, and all
    others, lie in the file too."""
    (folder / "experiment_cfg").mkdir(parents=True)
    table = document(config, rank, alpha)
    (folder / "config.json").write_text(json.dumps(table, indent=2), encoding="utf-8")
    (folder / "experiment_cfg" / "conf.yaml").write_text(conf(config, tag), encoding="utf-8")
    (folder / "experiment_cfg" / "metadata.json").write_text(json.dumps({tag: metadata()}), encoding="utf-8")
    save(folder, tensors(expected(config), rank, base, base), shards, dtype, draw)
    return folder


def tensors(
    shapes: dict[str, tuple[int, ...]], rank: int = 0, base: bool = True, beside: bool = True
) -> dict[str, tuple[str, tuple[int, ...]]]:  # fmt: skip
    """Published names -> (the name that a tensor is drawn by, its shape). base: see `write`; beside: the other parts'
    tensors too."""
    prefix = "action_head.model.base_model.model." if rank else "action_head.model."
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        layer, _, kind = name.rpartition(".")
        adapted = rank and name.startswith("blocks.") and layer.endswith(tuple(f".{end}" for end in ADAPTED))
        trained = name.startswith(("state_encoder", "action_encoder", "action_decoder"))
        if base or trained:
            found[f"{prefix}{layer}.base_layer.{kind}" if adapted else prefix + name] = (name, shape)
        if adapted and kind == "weight":
            for side, size in (("A", (rank, shape[1])), ("B", (shape[0], rank))):
                found[f"{prefix}{layer}.lora_{side}.default.weight"] = (f"{layer}.{side}", size)
    if beside:
        found |= {f"action_head.{name}": (name, shape) for name, shape in BESIDE.items()}
    return found


def save(
    folder: Path, named: dict[str, tuple[str, tuple[int, ...]]], shards: int, dtype: torch.dtype, draw: Draw
) -> None:  # fmt: skip
    """Writes tensors in shards of about one size, one shard in memory at a time."""
    sizes = {name: math.prod(shape) for name, (_, shape) in named.items()}
    total, held = sum(sizes.values()), 0
    parts: list[list[str]] = [[] for _ in range(shards)]
    for name, size in sizes.items():
        parts[min(shards - 1, held * shards // total)].append(name)
        held += size
    files = ["model.safetensors"] if shards == 1 else _numbered(shards)
    for path, names in zip(files, parts, strict=True):
        save_file({name: draw(*named[name]).to(dtype) for name in names}, folder / path, metadata={"format": "pt"})
    if shards > 1:
        where = {name: path for path, names in zip(files, parts, strict=True) for name in names}
        index = {"metadata": {"total_size": total * dtype.itemsize}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _numbered(shards: int) -> list[str]:
    return [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]


def document(config: Config, rank: int = 0, alpha: float = 4.0) -> dict[str, Any]:
    """config.json of a network of these sizes. A window of S frames before blocks of F must be whole chunks of F."""
    assert (config.window - 1) % config.frames == 0, "window must be 1 + a multiple of frames"
    assert config.image_tokens in (0, IMAGE_TOKENS), "image_tokens must be 0 or the published number"
    kind = next(name for name, (_, channels) in STRIDES.items() if channels == config.channels)
    network = {
        "_target_": f"{GROOT}.model.dreamzero.modules.wan_video_dit_action_casual_chunk.CausalWanModel",
        "_convert_": "object", "diffusion_model_pretrained_path": "checkpoints/base",
        "model_type": "i2v" if config.image_tokens else "t2v", "frame_seqlen": config.tokens, "dim": config.width,
        "in_dim": config.channels + config.condition_channels, "ffn_dim": config.feed, "out_dim": config.channels,
        "freq_dim": config.time_width, "eps": config.epsilon, "num_heads": config.heads, "num_layers": config.layers,
        "max_chunk_size": (config.window - 1) // config.frames + 1, "num_frame_per_block": config.frames,
        "num_action_per_block": config.actions, "num_state_per_block": config.states,
        "concat_first_frame_latent": bool(config.condition_channels), "text_len": config.text_tokens,
        "text_dim": config.text_width, "hidden_size": config.hidden, "action_dim": config.action_width,
        "max_state_dim": config.state_width,
    }  # fmt: skip
    policy = {
        "num_frames": 33, "num_frame_per_block": config.frames, "max_state_dim": config.state_width,
        "max_action_dim": config.action_width, "hidden_size": 64, "train_architecture": "lora" if rank else "full",
        "lora_rank": rank or 4, "lora_alpha": alpha, "diffusion_model_cfg": network,
        "vae_cfg": {"_target_": f"{GROOT}.model.dreamzero.modules.wan_video_vae.{kind}"},
    }  # fmt: skip
    return {
        "model_type": "vla", "architectures": ["VLA"], "action_dim": config.action_width, "hidden_size": 0,
        "action_horizon": config.actions, "action_head_cfg": {"_target_": TARGET, "config": policy},
    }  # fmt: skip


def metadata() -> dict[str, Any]:
    """metadata.json of one embodiment: quantiles that tell the channels apart, the last of each range constant."""
    statistics: dict[str, Any] = {}
    camera = {"resolution": [320, 180], "channels": 3, "fps": 15}
    modalities: dict[str, Any] = {"video": {name: camera for name in CAMERAS}}
    for space, channels in CHANNELS.items():
        scale = 1.0 if space == "state" else 0.25
        statistics[space] = {
            name: {
                "q01": [-scale * (i + 1) for i in range(width)],
                "q99": [scale * (i + 2) if i < width - 1 or width == 1 else -scale * (i + 1) for i in range(width)],
            }
            for name, width in channels.items()
        }
        modalities[space] = {
            name: {"absolute": True, "rotation_type": None, "shape": [width], "continuous": True}
            for name, width in channels.items()
        }
    return {"statistics": statistics, "modalities": modalities, "embodiment_tag": "oxe_droid"}


def conf(config: Config, tag: str = "oxe_droid") -> str:
    """conf.yaml: what of it is read, and a little that is not."""
    stride, _ = next(pair for pair in STRIDES.values() if pair[1] == config.channels)
    # One view is half of the mosaic, and a latent pixel `stride` pixels.
    height, width = (PATCH * side * stride // 2 for side in config.grid)
    keys = {"video": CAMERAS, **CHANNELS}
    lines = ["eval_bf16: true", "save_lora_only: false", "relative_action: true", "relative_action_per_horizon: false"]
    lines += ["relative_action_keys:", *(f"- {name}" for name in RELATIVE), "modality_configs:", f"  {tag}:"]
    for space, names in keys.items():
        lines += [f"    {space}:", "      modality_keys:", *(f"      - {space}.{name}" for name in names)]
    lines += ["transforms:", f"  {tag}:", f"    _target_: {GROOT}.data.transform.ComposedModalityTransform"]
    lines += ["    transforms:", *_step("VideoToTensor"), *_step("VideoCrop", "scale: 0.95", "mode: random")]
    lines += _step("VideoResize", f"height: {height}", f"width: {width}", "interpolation: linear")
    for space, channels in CHANNELS.items():
        modes = [f"  {space}.{name}: q99" for name in channels]
        lines += _step("StateActionTransform", "normalization_modes:", *modes)
    return "\n".join(lines) + "\n"


def _step(kind: str, *rows: str) -> Iterable[str]:
    return [f"    - _target_: {GROOT}.data.transform.{kind}", *(f"      {row}" for row in rows)]
