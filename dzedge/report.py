"""What is told of a run: the JSON document, and the folder `runs/<time>/` with its summary and picture."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dzedge import dream, picture
from dzedge.bundle import Bundle
from dzedge.config import RobotConfig
from dzedge.dream import Eye
from dzedge.errors import UsageError
from dzedge.history import History, RunResult, Seen
from dzedge.picture import Imaginer
from dzedge.policies import JointWorldModel, WorldActionModel, load_policy
from dzedge.types import Frame

MOTION = 0.005
"""Farther than this from the first reading, a joint has moved [rad]: three times an encoder's resolution."""


def imaginer(config: RobotConfig, bundle: Bundle) -> Imaginer | None:
    """What turns this bundle's latents into pictures; None where it imagines nothing, or has no decoder."""
    section, camera = bundle.manifest.dzedge, config.cameras[0]
    if not dream.imagines(bundle):
        return None
    policy = load_policy(config, bundle)
    assert isinstance(policy, WorldActionModel | JointWorldModel)  # by its family
    eye, video = Eye(section, (camera.height, camera.width), camera.crop), section.video

    def draw(latents: NDArray[np.float32], present: Seen) -> NDArray[np.uint8]:
        frame = Frame(present.image, 0, present.capture_ns, present.capture_ns)
        decoded_now = policy.decode(policy.latent(frame)[None])[0]
        decoded = policy.decode(latents.reshape(video.frames, video.tokens, video.channels))
        return dream.inlay(eye.see(frame), decoded_now, decoded)

    return Imaginer(draw, video.frame_dt_ns, video.frames)


def document(result: RunResult, files: list[str]) -> dict[str, Any]:
    """The one JSON document of `dzedge run`."""
    return {
        "task": result.task,
        "success": result.success,
        "seed": result.seed,
        "duration_s": round(result.duration_s, 3),
        "chunks": result.chunks,
        "refused": result.refused,
        "restarts": result.restarts,
        "wire_sha256": result.wire_sha256,
        "stages": {name: _timing(row) for name, row in result.stages.items() if "p50_ms" in row},
        "files": files,
    }


def write(result: RunResult, config: RobotConfig, bundle: Bundle, out: Path) -> list[str]:
    """Write `summary.png` and `summary.json` into the folder `out`. Returns their paths."""
    try:
        files = [str(out / "summary.png"), str(out / "summary.json")]
        picture.summary(result, config, imaginer(config, bundle), Path(files[0]))
        told = document(result, files) | {"first_motion_ns": first_motion_ns(result.history)}
        Path(files[1]).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{out}: cannot write the summary: {error.strerror}; choose another --out") from error
    return files


def first_motion_ns(history: History) -> int | None:
    """When a measured joint first was `MOTION` away from where it was first read; None: never."""
    if not history.positions:
        return None
    away = np.abs(np.array(history.positions) - history.positions[0]).max(axis=1) > MOTION
    return history.times_ns[int(np.argmax(away))] if away.any() else None


def _timing(row: dict[str, float]) -> dict[str, float]:
    return {key: round(value, 4) for key, value in row.items() if math.isfinite(value)}
