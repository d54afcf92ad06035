"""What a robot's computer must have: disk for `.venv`, memory while it runs, time to the first motion.

size_install and size_memory have a budget instead of a rival: rival is the budget, the bar 1.
"""

import json
import os
import statistics
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / ".venv" / "bin" / "dzedge"
INSTALL_MB, MEMORY_MB, START_S = 300.0, 400.0, 3.0
STAGES = ("capture_loop", "inference_loop", "control_loop")
STARTS = 5
SETTLE_S = 6.0


def run() -> list[dict[str, object]]:
    """Rows size_install, size_memory, start."""
    return [install(), memory(), start()]


def budget(name: str, value: float, unit: str, most: float) -> dict[str, object]:
    """A row with a budget as rival."""
    ratio = value / most
    return {"id": name, "value": value, "unit": unit, "rival": most, "ratio": ratio, "bar": 1.0, "ok": ratio <= 1.0}


def install() -> dict[str, object]:
    """`.venv` site-packages as `pip install --no-compile` leaves it: without pip, and without the byte code that
    running wrote since."""
    site = next((ROOT / ".venv" / "lib").glob("python3*/site-packages"))
    total = 0
    for folder, folders, files in os.walk(site):
        folders[:] = [name for name in folders if name != "__pycache__"]
        if Path(folder) == site:
            folders[:] = [name for name in folders if name.split("-")[0] not in ("pip", "setuptools")]
        total += sum(os.lstat(os.path.join(folder, name)).st_blocks * 512 for name in files)
    return budget("size_install", total / 1e6, "MB", INSTALL_MB)


def memory() -> dict[str, object]:
    """Proportional set size of supervisor, capture, inference and control, in the middle of a run."""
    with subprocess.Popen(
        [PROGRAM, "run", "--headless", "--json", "--duration", "12", "--out", ROOT / "build" / "bench-run"],
        stdout=subprocess.DEVNULL,
    ) as process:
        time.sleep(SETTLE_S)
        mapped = {process.pid: "supervisor"} | {
            pid: name for pid, name in children(process.pid).items() if name in STAGES
        }
        if set(mapped.values()) != {"supervisor", *STAGES}:
            raise RuntimeError(f"not all stages run: {sorted(mapped.values())}")
        total = sum(pss(pid) for pid in mapped)
        process.wait()
    return budget("size_memory", total / 1e6, "MB", MEMORY_MB)


def children(parent: int) -> dict[int, str]:
    """pid -> module of the stages that a supervisor started."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            ppid = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            command = (entry / "cmdline").read_bytes().decode().split("\0")
        except (OSError, IndexError):
            continue
        if ppid == parent and "-m" in command:
            found[int(entry.name)] = command[command.index("-m") + 1].removeprefix("dzedge.")
    return found


def pss(pid: int) -> int:
    """Proportional set size [bytes]."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith("Pss:")))


def start() -> dict[str, object]:
    """Process start, before the simulator even exists, to the first measured motion of the arm; median of some,
    after one run that warms the file cache."""
    once()
    return budget("start", statistics.median(once() for _ in range(STARTS)), "s", START_S)


def once() -> float:
    """Seconds from before the process is started until its arm has moved."""
    out = ROOT / "build" / "bench-run"
    command = [PROGRAM, "run", "--headless", "--json", "--duration", "4", "--out", out]
    started_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    moved_ns = json.loads((out / "summary.json").read_text())["first_motion_ns"]
    if moved_ns is None:
        raise RuntimeError("the arm never moved")
    return (moved_ns - started_ns) / 1e9
