"""640x480 RGB to a normalised 3x180x320 float32 tensor, with and without a 16:9 centre crop.

- image_crop, image_full: against OpenCV as its manual does it: INTER_AREA into a kept buffer, split into planes,
  each through a look-up table into its place in the tensor.
- image_crop_best, image_full_best: against the fastest way found with OpenCV in this run: the same, or with
  `addWeighted` straight to float32, or with NumPy in place.
- image_yuyv: the same from YUYV, fused; against OpenCV's conversion to RGB followed by its fastest way.

The crop is a view, as ours is a plan. OpenCV is held to one thread, as ours uses one; `threads` is the rival's wall
time with all of them. CPU time of the process, calls interleaved, medians.
"""

import os
import time
from collections.abc import Callable
from statistics import median

import cv2
import numpy as np

from dzedge.kernels.image import ImagePlan

HEIGHT, WIDTH = 180, 320
ROUNDS = 200
SCALE = 1 / np.array([58.4, 57.1, 57.4])
BIAS = np.array([-2.12, -2.04, -1.80])
TABLES = [(np.arange(256) * s + b).astype(np.float32) for s, b in zip(SCALE, BIAS, strict=True)]
IMAGE = np.random.default_rng(3).integers(0, 256, (480, 640, 3), dtype=np.uint8)
YUYV = np.random.default_rng(4).integers(100, 156, (480, 640, 2), dtype=np.uint8)


def ours(crop: tuple[int, int, int, int] | None, out: np.ndarray) -> Callable[[], None]:
    plan = ImagePlan(480, 640, crop, HEIGHT, WIDTH, SCALE, BIAS)
    return lambda: plan.run(IMAGE, out)


def rivals(crop: tuple[int, int, int, int] | None, out: np.ndarray) -> dict[str, Callable[[], None]]:
    source = IMAGE if crop is None else IMAGE[crop[0] : crop[0] + crop[2], crop[1] : crop[1] + crop[3]]
    small = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    planes = [np.empty((HEIGHT, WIDTH), np.uint8) for _ in range(3)]

    def shrink() -> None:
        cv2.resize(source, (WIDTH, HEIGHT), dst=small, interpolation=cv2.INTER_AREA)
        cv2.split(small, planes)

    def table() -> None:
        shrink()
        for c in range(3):
            cv2.LUT(planes[c], TABLES[c], dst=out[c])

    def weighted() -> None:
        shrink()
        for c in range(3):
            cv2.addWeighted(planes[c], SCALE[c], planes[c], 0.0, BIAS[c], dst=out[c], dtype=cv2.CV_32F)

    scale, bias = SCALE.astype(np.float32), BIAS.astype(np.float32)

    def in_place() -> None:
        shrink()
        for c in range(3):
            np.multiply(planes[c], scale[c], out=out[c])
            np.add(out[c], bias[c], out=out[c])

    return {"LUT": table, "addWeighted": weighted, "numpy": in_place}


def medians(calls: dict[str, Callable[[], None]], clock: Callable[[], int]) -> dict[str, float]:
    """Median microseconds a call, one call of each after the other."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            begin = clock()
            call()
            spent[name].append((clock() - begin) / 1e3)
    return {name: median(values[ROUNDS // 10 :]) for name, values in spent.items()}


def compare(name: str, crop: tuple[int, int, int, int] | None, bar: float, best_bar: float) -> list[dict]:
    out, theirs = np.empty((3, HEIGHT, WIDTH), np.float32), np.empty((3, HEIGHT, WIDTH), np.float32)
    others = rivals(crop, theirs)
    calls = {"ours": ours(crop, out), **others}
    calls["ours"]()
    for label, call in others.items():
        theirs.fill(np.nan)
        call()
        if not np.abs((out - theirs) / SCALE[:, None, None]).max() < 0.51:  # OpenCV rounds to uint8
            raise AssertionError(f"{label} does not compute the same image")
    cv2.setNumThreads(1)
    spent = medians(calls, time.process_time_ns)
    cv2.setNumThreads(os.cpu_count() or 1)
    threads = medians(others, time.perf_counter_ns)
    best = min(others, key=spent.__getitem__)
    rows = []
    for label, rival, most in ((name, "LUT", bar), (f"{name}_best", best, best_bar)):
        ratio = spent["ours"] / spent[rival]
        rows.append(
            {
                "id": label,
                "value": spent["ours"],
                "unit": "us",
                "rival": spent[rival],
                "ratio": ratio,
                "bar": most,
                "ok": ratio <= most,
                "way": rival,
                "threads": threads[rival],
            }
        )
    return rows


def from_yuyv(name: str, bar: float) -> dict:
    """One row: YUYV to tensor."""
    out, theirs = np.empty((3, HEIGHT, WIDTH), np.float32), np.empty((3, HEIGHT, WIDTH), np.float32)
    plan = ImagePlan(480, 640, None, HEIGHT, WIDTH, SCALE, BIAS, source="yuyv")
    rest = rivals(None, theirs)

    def converted(call: Callable[[], None]) -> Callable[[], None]:
        def way() -> None:
            cv2.cvtColor(YUYV, cv2.COLOR_YUV2RGB_YUYV, dst=IMAGE)
            call()

        return way

    calls: dict[str, Callable[[], None]] = {"ours": lambda: plan.run(YUYV, out)}
    calls |= {label: converted(call) for label, call in rest.items()}
    for call in calls.values():
        call()
    if not np.abs((out - theirs) / SCALE[:, None, None]).max() < 1.6:  # OpenCV rounds twice
        raise AssertionError("OpenCV does not compute the same image")
    cv2.setNumThreads(1)
    spent = medians(calls, time.process_time_ns)
    best = min(rest, key=spent.__getitem__)
    ratio = spent["ours"] / spent[best]
    return {
        "id": name, "value": spent["ours"], "unit": "us", "rival": spent[best], "ratio": ratio, "bar": bar,
        "ok": ratio <= bar, "way": best,
    }  # fmt: skip


def run() -> list[dict]:
    rows = [*compare("image_crop", (60, 0, 360, 640), 0.77, 1.0), *compare("image_full", None, 0.40, 0.40)]
    return [*rows, from_yuyv("image_yuyv", 0.5)]
