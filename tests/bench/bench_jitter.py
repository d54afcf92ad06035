"""Lateness of the control tick at 200 Hz while ONNX Runtime saturates the other core, against cyclictest.

Twelve slices of 10 s, alternately ours and the rival's, at the same SCHED_FIFO priority on the same core; slices in
which the host stole time are dropped and counted. Ours is the whole tick on a pty whose servo bus is emulated in
another process on the same core; cyclictest only wakes up. Needs `cyclictest` (Debian's rt-tests) and the right to
SCHED_FIFO.
"""

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np

SLICES, SECONDS = 12, 10
RATE_HZ = 200
PRIORITY = 80
CONTROL_CORE, LOAD_CORE = "0", "1"
BAR, ABSOLUTE_US = 2.0, 50.0
BURST_GAP = 0.2
"""Two ticks closer than this share of a period are a burst. (One that is late by half a period is followed by one
that is on time after the other half: that is no burst.)"""

LOAD = textwrap.dedent(
    """
    from dzedge.bundle import open_bundle
    from dzedge.config import default_path, load
    import onnxruntime as ort, numpy as np
    config = load(default_path())
    bundle = open_bundle(config.policy.bundle, allow_test_key=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    data = bundle.read(bundle.manifest.dzedge.graphs["video_step"].variants[0].file)
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    feed = {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs()}
    while True:
        session.run(None, feed)
    """
)

PARTNER = textwrap.dedent(
    """
    import sys
    from dzedge.config import default_path, load
    from dzedge.hardware.sim.pty_server import PtyServer
    from dzedge.hardware.sim.servo import Servo
    from dzedge.hardware.sim.servo_bus import FirstOrder, ServoBus
    joints = load(default_path()).arm.joints
    servos = [Servo(joint.id, round(joint.zero + 0.5 * (joint.lower + joint.upper) / joint.scale)) for joint in joints]
    for servo in servos:
        servo.set_present(servo.get("present_position"), 0.0, 0.0, 7.5, 30.0)
    server = PtyServer(ServoBus(servos, advance=FirstOrder(servos)))
    sys.stdout.write(server.path + "\\n")
    sys.stdout.flush()
    server.serve()
    """
)

OURS = textwrap.dedent(
    """
    import sys
    import msgspec, numpy as np
    from dzedge import realtime
    from dzedge.clock import MonotonicClock
    from dzedge.config import default_path, load
    from dzedge.control_loop import activate
    from dzedge.hardware import open_arm
    from dzedge.hardware.arm import StopCategory
    from dzedge.mailboxes import Mailboxes
    path, rate, seconds, priority = sys.argv[1], *map(int, sys.argv[2:5])
    config = load(default_path())
    config = msgspec.structs.replace(config, arm=msgspec.structs.replace(config.arm, rate_hz=rate))
    mailboxes = Mailboxes(config, 8, 280)
    arm = open_arm(config, path)
    tick, _ = activate(arm, config, 8, 100_000_000, mailboxes, MonotonicClock().now_ns, hold=False)
    granted = realtime.claim(priority, lock_memory=True)
    if granted.refused:
        raise SystemExit("; ".join(granted.refused))
    tick.run(arm.fd, 20)
    mailboxes.marks["control"].clear()
    tick.run(arm.fd, rate * seconds)
    events = mailboxes.marks["control"].events()
    late = events[(events["stage"] == 0) & (events["kind"] == 0)]
    gaps = np.diff(late["time_ns"].astype(np.int64))
    bursts = int((gaps < float(sys.argv[5]) * 1e9 / rate).sum())
    sys.stdout.write(" ".join([str(bursts), str(tick.missed), *(str(int(v)) for v in late["value"])]))
    arm.deactivate(StopCategory.OFF)
    arm.close()
    """
)


def _pinned(core: str, code: str, *arguments: str, stdout: int | None = None) -> subprocess.Popen[str]:
    command = ["taskset", "-c", core, sys.executable, "-I", "-c", code, *arguments]
    return subprocess.Popen(command, text=True, stdout=stdout)


def _stolen() -> int:
    """Ticks that the host took from the control core since boot (8th figure of its line in /proc/stat)."""
    lines = (line.split() for line in Path("/proc/stat").read_text().splitlines())
    return next(int(words[8]) for words in lines if words[0] == f"cpu{CONTROL_CORE}")


def _ours(path: str) -> tuple[np.ndarray, int]:
    """(lateness [us], bursts) of one slice."""
    child = _pinned(
        CONTROL_CORE, OURS, path, str(RATE_HZ), str(SECONDS), str(PRIORITY), str(BURST_GAP), stdout=subprocess.PIPE
    )
    out, _ = child.communicate()
    if child.returncode:
        raise RuntimeError(f"the control tick ended with {child.returncode}; its message stands above")
    bursts, _, *values = out.split()
    return np.array(values, float) / 1000.0, int(bursts)


def _rival() -> np.ndarray:
    """Lateness [us] of one slice of cyclictest, from its histogram."""
    loops = str(RATE_HZ * SECONDS)
    command = ["cyclictest", "-q", "-m", "-t1", f"-p{PRIORITY}", f"-a{CONTROL_CORE}", "-i", str(1_000_000 // RATE_HZ)]
    out = subprocess.run([*command, "-l", loops, "-h", "20000"], check=True, capture_output=True, text=True).stdout
    rows = re.findall(r"^(\d{6,})\s+(\d+)$", out, re.M)
    return np.repeat([float(us) for us, _ in rows], [int(n) for _, n in rows])


def run() -> list[dict[str, object]]:
    """The `jitter` row; raises where cyclictest is missing."""
    if shutil.which("cyclictest") is None:
        raise RuntimeError("cyclictest is missing: apt-get install rt-tests")
    pooled: dict[str, list[np.ndarray]] = {"ours": [], "rival": []}
    bursts = dropped = 0
    load = _pinned(LOAD_CORE, LOAD)
    partner = _pinned(CONTROL_CORE, PARTNER, stdout=subprocess.PIPE)
    assert partner.stdout is not None
    path = partner.stdout.readline().strip()
    try:
        for index in range(SLICES):
            who = "ours" if index % 2 == 0 else "rival"
            before = _stolen()
            if who == "ours":
                values, found = _ours(path)
            else:
                values, found = _rival(), 0
            if _stolen() != before:
                dropped += 1
                continue
            pooled[who].append(values)
            bursts += found
    finally:
        for child in (load, partner):
            child.kill()
            child.wait()
    if not pooled["ours"] or not pooled["rival"]:
        raise RuntimeError(f"the host stole time in {dropped} of {SLICES} slices: nothing is left to compare")
    ours, rival = (float(np.percentile(np.concatenate(pooled[who]), 99)) for who in ("ours", "rival"))
    return [
        {
            "id": "jitter",
            "value": round(ours, 1),
            "unit": "us",
            "rival": f"cyclictest, p99 {rival:.1f} us; {bursts} bursts, {dropped} of {SLICES} slices dropped for steal",
            "ratio": round(ours / rival, 3),
            "bar": BAR,
            "ok": bursts == 0 and (ours <= BAR * rival or ours <= rival + ABSOLUTE_US),
        }
    ]
