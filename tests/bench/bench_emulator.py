"""What the servo-bus emulator costs.

- emulator_cpu_feetech, emulator_cpu_dynamixel: share of a core (rusage of its process, physics, pty, control socket and
  transcript included) while a host writes goals to and reads positions of ten servos 100 times a second at 1 Mbps. No
  rival: the ratio is the share itself.
"""

import json
import subprocess
import sys

import numpy as np

from dzedge.clock import NS, MonotonicClock
from dzedge.hardware.arm import CyclePlan
from dzedge.hardware.calibration import JointCalibration
from dzedge.hardware.control_table import table
from dzedge.hardware.dynamixel_plan import compile_plan as dynamixel_plan
from dzedge.hardware.feetech_plan import compile_plan as feetech_plan
from dzedge.hardware.serial_port import SerialPort

IDS = list(range(1, 11))
TICKS_PER_RAD = 4096 / (2 * np.pi)
CLOCK = MonotonicClock()
PERIOD_NS, CYCLES = NS // 100, 500
BAR = 0.10

EMULATOR = """
import json, resource, sys
from dzedge.hardware.sim.emulator import Emulator, make_bus, make_servos
from dzedge.hardware.sim.servo_physics import ServoPhysics
protocol = sys.argv[1]
servos = make_servos(protocol, range(1, 11), [2048] * 10)
for servo in servos:
    servo.set("return_delay", 0)
    servo.set("torque_enable", 1)

def used():
    now = resource.getrusage(resource.RUSAGE_SELF)
    return now.ru_utime + now.ru_stime

with Emulator(make_bus(protocol, servos, advance=ServoPhysics(servos))) as emulator:
    print(emulator.port, flush=True)
    sys.stdin.readline()
    before, frames = used(), emulator.bus.frames
    print(flush=True)
    sys.stdin.readline()
    print(json.dumps([used() - before, emulator.bus.frames - frames]), flush=True)
"""


def plan(protocol: str) -> CyclePlan:
    joints = [JointCalibration(f"j{i}", i, 2048.0, TICKS_PER_RAD, 0, 4095) for i in IDS]
    speeds = [2.5] * len(IDS)
    if protocol == "feetech":
        return feetech_plan(joints, speeds, 1_000_000, state=False, allowance_ns=5_000_000)
    tables = [table("xl330-m288")] * len(IDS)
    return dynamixel_plan(joints, speeds, tables, 1_000_000, state=False, allowance_ns=5_000_000)


def drive(path: str, protocol: str) -> int:
    """CYCLES at 100 Hz; returns how many failed."""
    compiled = plan(protocol)
    cycle = compiled.build()
    failed = 0
    with SerialPort(path) as port:
        start_ns = CLOCK.now_ns()
        cycle.seed(np.full(len(IDS), 2048, np.int32), start_ns)
        for number in range(CYCLES):
            CLOCK.sleep_until_ns(start_ns + number * PERIOD_NS)
            now_ns = CLOCK.now_ns()
            refused = cycle.compose(np.full(len(IDS), 0.3 * np.sin(number / 50)), now_ns)
            failed += bool(refused or cycle.cycle(port.fd, now_ns + compiled.budget_ns))
    return failed


def measure(protocol: str) -> dict:
    child = subprocess.Popen(
        [sys.executable, "-I", "-c", EMULATOR, protocol], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None and child.stdout is not None

    def say() -> str:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write("\n")
        child.stdin.flush()
        return child.stdout.readline()

    try:
        path = child.stdout.readline().strip()
        say()
        start_ns = CLOCK.now_ns()
        failed = drive(path, protocol)
        seconds = (CLOCK.now_ns() - start_ns) / NS
        used, frames = json.loads(say())
    finally:
        child.stdin.close()
        child.wait(20)
        child.stdout.close()
    sys.stderr.write(f"emulator {protocol}: {used:.2f} s in {seconds:.1f} s, {frames} frames, {failed} cycles failed\n")
    share = used / seconds
    heard = frames >= 1.9 * CYCLES  # it did the work: a write and a read each cycle
    return {
        "id": f"emulator_cpu_{protocol}", "value": round(share, 4), "unit": "core", "rival": None,
        "ratio": round(share, 4), "bar": BAR, "ok": share <= BAR and heard,
    }  # fmt: skip


def run() -> list[dict]:
    return [measure("feetech"), measure("dynamixel")]
