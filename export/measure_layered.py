"""How much memory an export layer by layer takes: `python -m dzedge.export.measure_layered FOLDER`.

Writes a synthetic checkpoint of 1.6 billion parameters into FOLDER (unless one lies there), exports it in a process of
its own, watches that process's anonymous memory (RssAnon of /proc: what it holds itself, not what it reads from
files) and says how it compares with the largest shard. Exit code 1 over the bar.
"""

import argparse
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dzedge.export import official_stub
from dzedge.export.model.wan_config import Config
from dzedge.export.official_export import export

SIZES = Config(
    width=1536, layers=30, heads=12, feed=8960, text_tokens=512, image_tokens=257, state_sees_all=True,
)  # fmt: skip
"""Wan 2.1's 1.3 B trunk with DreamZero's additions."""
SHARDS = 4
BAR = 1.5
"""Most anonymous memory, in sizes of the largest shard."""
EVERY_S = 0.005


def anonymous_bytes() -> int:
    """RssAnon of this process. Source: proc(5), /proc/pid/status."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc/self/status: Linux >= 4.5 is wanted")


def peak_of(work: Callable[[], Any]) -> tuple[int, int]:
    """Anonymous memory before some work and its highest during it, looked at every 5 ms."""
    done, before = threading.Event(), anonymous_bytes()
    highest = [before]

    def watch() -> None:
        while not done.wait(EVERY_S):
            highest[0] = max(highest[0], anonymous_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return before, max(highest[0], anonymous_bytes())


def measure(checkpoint: Path, out: Path, precision: str) -> dict[str, Any]:
    """Exports a checkpoint in this process. Sizes in bytes."""
    shards = {path.name: path.stat().st_size for path in sorted(checkpoint.glob("*.safetensors"))}
    found: dict[str, Any] = {}
    before, peak = peak_of(lambda: found.update(export(checkpoint, out, precision=precision)))
    largest = max(shards.values())
    return {
        "parameters": found["parameters"], "precision": precision, "shards": shards, "largest_shard": largest,
        "anonymous_before": before, "anonymous_peak": peak, "ratio": peak / largest, "bar": BAR,
        "ok": peak <= BAR * largest,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where checkpoint and export may lie: 10 GB")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--inside", action="store_true", help="measure in this process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = options.folder / "checkpoint"
    if options.inside:
        found = measure(checkpoint, options.folder / "parts", options.precision)
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        sys.exit(0 if found["ok"] else 1)
    if not checkpoint.exists():
        official_stub.write(checkpoint, SIZES, SHARDS, torch.bfloat16)
    command = [sys.executable, "-m", "dzedge.export.measure_layered", str(options.folder), "--inside"]
    sys.exit(subprocess.run([*command, "--precision", options.precision], check=False).returncode)


if __name__ == "__main__":
    main()
