"""The Feetech arm: checks, activation without a jump, stops, against the emulated bus in memory and on a
pty."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from dzedge import config
from dzedge.clock import NS, FakeClock, MonotonicClock
from dzedge.errors import BusError, PortError, SafetyError
from dzedge.hardware.arm import Arm, StopCategory
from dzedge.hardware.control_table import STS3215, explain_error
from dzedge.hardware.feetech import FeetechArm
from dzedge.hardware.feetech_bus import FeetechBus
from dzedge.hardware.sim.memory_port import MemoryPort
from dzedge.hardware.sim.pty_server import PtyServer
from dzedge.hardware.sim.servo import Servo
from dzedge.hardware.sim.servo_bus import FirstOrder, ServoBus
from dzedge.kernels.bus import BusCode

JUMP = 13
"""[ticks] in 0.02 rad, the default arming error."""

ROBOT = config.load(Path(__file__).parents[1] / "robots" / "sim.toml")
IDS = [joint.id for joint in ROBOT.arm.joints]


class Rig:
    """A driver on a bus in memory, with every request that crossed it."""

    def __init__(self, arm: config.Arm = ROBOT.arm, echo: bool = False) -> None:
        self.clock = FakeClock()
        gripper = ROBOT.arm.joints[-1]
        middle = (gripper.zero + (gripper.open_ticks or 0)) // 2
        self.servos = [Servo(i, middle if i == gripper.id else 2048) for i in IDS]
        self.bus = ServoBus(self.servos, advance=FirstOrder(self.servos), echo=echo)
        self.arm = FeetechArm(arm, MemoryPort(self.bus, self.clock), clock=self.clock)
        self.arm.open()

    def servo(self, servo: int) -> Servo:
        return self.servos[servo - 1]

    def torques(self) -> list[int]:
        return [servo.get("torque_enable") for servo in self.servos]


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_it_is_an_arm() -> None:
    arm: Arm = FeetechArm(ROBOT.arm, "/dev/none")
    assert arm.names == tuple(joint.name for joint in ROBOT.arm.joints)
    assert arm.fd == -1
    with pytest.raises(BusError, match="call open"):
        arm.read()
    with pytest.raises(PortError, match="/dev/none"):
        arm.open()
    arm.close()


class TestTransactions:
    def test_scan(self, rig: Rig) -> None:
        assert rig.arm.bus.scan(range(10)) == dict.fromkeys(IDS, 777)

    def test_named_registers(self, rig: Rig) -> None:
        bus = rig.arm.bus
        bus.set(2, "goal_speed", -300)
        assert bus.get(2, "goal_speed") == -300 == rig.servo(2).get("goal_speed")

    def test_a_lost_reply_is_asked_for_again(self, rig: Rig) -> None:
        rig.bus.set_fault("3", "intermittent")
        values = []
        for _ in range(20):
            try:
                values.append(rig.arm.bus.get(3, "present_position"))
            except BusError:
                continue  # three losses in a row
        assert len(values) > 15 and set(values) == {2048}

    def test_silence_names_port_servo_and_remedy(self, rig: Rig) -> None:
        with pytest.raises(BusError, match="sim: servo 9 does not answer at 1000000 baud: check its cable"):
            rig.arm.bus.get(9, "model")

    def test_what_does_not_stick_is_an_error(self, rig: Rig) -> None:
        with pytest.raises(BusError, match="servo 1 keeps mode = 0 instead of 3"):
            rig.arm.bus.set(1, "mode", 3)
        with pytest.raises(BusError, match="does not fit"):
            rig.arm.bus.set(1, "mode", 300)

    def test_eeprom_is_written_once_and_locked_again(self, rig: Rig) -> None:
        assert rig.arm.bus.set_eeprom(1, "p_gain", 20)
        assert not rig.arm.bus.set_eeprom(1, "p_gain", 20)
        assert rig.servo(1).get("lock") == 1 and rig.servo(1).get("p_gain") == 20

    def test_echo_is_found_and_stripped(self) -> None:
        rig = Rig(echo=True)
        assert rig.arm.bus.echo
        assert rig.arm.bus.scan(range(1, 8)) == dict.fromkeys(IDS, 777)
        assert not Rig().arm.bus.echo

    def test_an_alert_is_no_echo(self) -> None:
        rig = Rig()
        rig.servo(1).alerts = 1  # the ping reply of such a servo equals the ping itself
        assert not FeetechBus(MemoryPort(rig.bus, rig.clock), clock=rig.clock).detect_echo(1)

    def test_a_stale_reply_is_dropped(self, rig: Rig) -> None:
        rig.bus.set_fault("2", "delayed")
        rig.arm.bus.ping(2)
        assert rig.arm.bus.get(2, "present_voltage") == 74
        assert rig.arm.bus.get(2, "present_temperature") == 30


class TestConfigure:
    def test_a_new_arm_is_set_up_once(self, rig: Rig) -> None:
        rig.arm.configure()
        assert [servo.get("return_delay") for servo in rig.servos] == [0] * 6
        assert rig.torques() == [0] * 6
        eeprom = [bytes(servo.registers[:40]) for servo in rig.servos]
        rig.arm.configure()
        assert [bytes(servo.registers[:40]) for servo in rig.servos] == eeprom

    @pytest.mark.parametrize(
        ("register", "value", "words"),
        [
            ("model", 2825, r"servo 3 \(elbow_flex\): model is 2825, must be 777"),
            ("mode", 1, "mode is 1, must be 0"),
            ("phase", 16, "phase 16 counts turns"),
            ("firmware_minor", 9, "unequal firmware"),
            ("max_position", 2200, "narrow lower and upper"),
        ],
    )
    def test_unfit_servos(self, rig: Rig, register: str, value: int, words: str) -> None:
        rig.servo(3).set(register, value)
        with pytest.raises(BusError, match=words):
            rig.arm.configure()

    def test_all_that_is_wrong_is_named(self, rig: Rig) -> None:
        rig.bus.set_fault("2", "off")
        rig.servo(5).set("mode", 3)
        with pytest.raises(BusError, match=r"servo 2 does not answer.*servo 5 \(wrist_roll\): mode is 3"):
            rig.arm.configure()

    def test_a_servo_that_acknowledges_no_write_is_made_to(self, rig: Rig) -> None:
        rig.servo(2).set("status_level", 0)
        rig.arm.configure()
        assert [rig.servo(2).get(name) for name in ("status_level", "return_delay", "lock")] == [1, 0, 1]

    def test_calibration_must_be_the_servos_own(self, tmp_path: Path) -> None:
        entries = {
            joint.name: {"id": joint.id, "drive_mode": 0, "homing_offset": 10, "range_min": 1000, "range_max": 3300}
            for joint in ROBOT.arm.joints
        }
        path = tmp_path / "arm.json"
        path.write_text(json.dumps(entries))
        rig = Rig(msgspec.structs.replace(ROBOT.arm, calibration=str(path)))
        with pytest.raises(BusError, match=r"servo 1 \(shoulder_pan\): offset is 0, must be 10"):
            rig.arm.configure()
        for servo in rig.servos:
            servo.set("offset", 10)
            servo.set("min_position", 1000)
            servo.set("max_position", 3300)
        rig.arm.configure()
        assert rig.arm.joints[0].zero == 2150


class TestActivate:
    def test_torque_comes_on_where_the_arm_stands(self, rig: Rig) -> None:
        rig.servo(2).set("goal_position", 3000)  # an old goal, which must never become the motion
        state = rig.arm.activate()
        assert rig.torques() == [1] * 6
        assert rig.arm.goal_ticks.tolist() == [servo.get("goal_position") for servo in rig.servos]
        assert rig.arm.goal_ticks[1] == 2048
        assert state.positions[1] == 0.0 and not state.velocities.any()
        assert rig.servo(1).get("torque_limit") == round(ROBOT.arm.joints[0].max_torque * 1000)

    def test_the_goal_is_written_before_torque(self) -> None:
        rig = Rig()
        seen: list[tuple[int, int]] = []
        servo = rig.servo(1)
        servo.set("goal_position", 3000)
        rig.bus.advance = lambda _: seen.append((servo.get("torque_enable"), servo.get("goal_position")))
        rig.arm.activate()
        assert (1, 3000) not in seen and (1, 2048) in seen

    def test_an_arm_that_is_held_keeps_its_goals(self, rig: Rig) -> None:
        rig.arm.activate()
        rig.bus.advance = None
        rig.servo(2).set_present(2048 - JUMP, 0, 0, 7.4, 30)
        rig.servo(3).set_present(2048 - JUMP - 1, 0, 0, 7.4, 30)
        state = rig.arm.activate()
        assert rig.arm.goal_ticks[:3].tolist() == [2048, 2048, 2048 - JUMP - 1]
        assert state.positions[1] == 0.0 and state.positions[2] < 0.0

    def test_outside_the_limits_is_refused(self, rig: Rig) -> None:
        rig.servo(1).set_present(3900, 0, 0, 7.4, 30)
        rig.bus.advance = None
        with pytest.raises(SafetyError, match=r"servo 1 \(shoulder_pan\) stands at 2.841 \(3900 ticks\), outside"):
            rig.arm.activate()
        assert rig.torques() == [0] * 6

    @pytest.mark.parametrize(
        ("voltage", "temperature", "alerts", "words"),
        [
            (5.0, 30, 0, "has 5.0 V, allowed 6.0 to 8.4 V"),
            (12.0, 30, 0, "has 12.0 V.*voltage outside"),
            (7.4, 66, 0, "has 66 °C, allowed up to 65"),
            (7.4, 30, 32, "reports: overloaded"),
        ],
    )
    def test_unhealthy_servos(
        self, rig: Rig, voltage: float, temperature: float, alerts: int, words: str
    ) -> None:
        rig.bus.advance = None
        rig.servo(4).alerts = alerts
        rig.servo(4).set_present(2048, 0, 0, voltage, temperature)
        with pytest.raises(SafetyError, match=words):
            rig.arm.activate()
        assert rig.torques() == [0] * 6

    def test_a_silent_servo(self, rig: Rig) -> None:
        rig.bus.set_fault("6", "off")
        with pytest.raises(BusError, match="no answer from servo 6"):
            rig.arm.activate()
        assert rig.torques() == [0] * 6

    def test_a_joint_that_jumps_ends_without_torque(self, rig: Rig) -> None:
        servo = rig.servo(3)

        def kick(_: int) -> None:
            if servo.torque_enabled:
                servo.set_present(2048 + JUMP + 1, 0, 0, 7.4, 30)

        rig.bus.advance = kick
        with pytest.raises(BusError, match=r"servo 3 \(elbow_flex\) moved by 14 ticks"):
            rig.arm.activate()
        assert rig.torques() == [0] * 6
        assert rig.arm.goal_ticks.tolist() == [-1] * 6


class TestDeactivate:
    @pytest.mark.parametrize(
        ("category", "torque"), [(StopCategory.OFF, 0), (StopCategory.STOP_THEN_OFF, 0), (StopCategory.HOLD, 1)]
    )
    def test_categories(self, rig: Rig, category: StopCategory, torque: int) -> None:
        rig.arm.activate()
        rig.arm.deactivate(category)
        assert rig.torques() == [torque] * 6

    def test_torque_goes_off_only_at_rest(self, rig: Rig) -> None:
        rig.arm.activate()
        rig.servo(1).set("goal_position", 2400)
        rig.arm.deactivate(StopCategory.STOP_THEN_OFF)
        assert abs(rig.servo(1).get("present_position") - 2400) < 10

    def test_an_arm_that_cannot_be_asked_goes_off_all_the_same(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        rig.arm.activate()

        def stuck(*_: object) -> None:
            raise PortError("did not take 14 bytes within 100 ms")

        monkeypatch.setattr(rig.arm.bus, "sync_read", stuck)
        rig.arm.deactivate(StopCategory.STOP_THEN_OFF)
        assert rig.torques() == [0] * 6

    def test_an_arm_that_never_rests_goes_off_all_the_same(self, rig: Rig) -> None:
        rig.arm.activate()
        rig.bus.advance = lambda _: rig.servo(1).set_present(2048, 500, 0, 7.4, 30)
        begin_ns = rig.clock.now_ns()
        rig.arm.deactivate(StopCategory.STOP_THEN_OFF)
        assert rig.torques() == [0] * 6 and 3 * NS <= rig.clock.now_ns() - begin_ns < 4 * NS

    @pytest.mark.parametrize("dead", IDS)
    def test_one_dead_servo_keeps_no_other_energised(self, rig: Rig, dead: int) -> None:
        rig.arm.activate()
        rig.bus.set_fault(str(dead), "off")
        with pytest.raises(BusError, match=rf"cut the power: servo {dead} \("):
            rig.arm.deactivate(StopCategory.OFF)
        assert [t for i, t in zip(IDS, rig.torques(), strict=True) if i != dead] == [0] * 5

    def test_an_alert_does_not_stop_the_stop(self, rig: Rig) -> None:
        rig.arm.activate()
        rig.servo(2).alerts = 32
        rig.arm.deactivate(StopCategory.OFF)
        assert rig.torques() == [0] * 6


class TestPlan:
    def test_wire_time_and_deadline(self, rig: Rig) -> None:
        plan = rig.arm.plan()
        assert plan.wire_ns == 190 * 10_000  # write 6 + read 15 bytes of 6 servos at 1 Mbps
        assert plan.wire_ns < plan.budget_ns < 10_000_000
        short = FeetechArm(ROBOT.arm, "x", state=False).plan()
        assert short.wire_ns == 88 * 10_000

    def test_read_only_until_seeded_then_goals(self, rig: Rig) -> None:
        rig.arm.configure()
        cycle = rig.arm.plan().build()

        def run() -> int:
            rig.clock.advance_to_ns(rig.clock.now_ns() + NS // 100)
            for _, reply in rig.bus.feed(cycle.request(rig.clock.now_ns()), rig.clock.now_ns()):
                cycle.feed(reply)
            return cycle.finish()

        assert run() == BusCode.BUS_OK
        measured = np.array(cycle.positions)
        assert cycle.compose(measured, rig.clock.now_ns()) == BusCode.BUS_UNSEEDED
        state = rig.arm.activate()
        assert np.array_equal(measured, state.positions)
        cycle.seed(rig.arm.goal_ticks, rig.clock.now_ns())
        rig.clock.advance_to_ns(rig.clock.now_ns() + NS // 100)
        assert cycle.compose(state.positions + 0.002, rig.clock.now_ns()) == BusCode.BUS_OK
        assert run() == BusCode.BUS_OK
        assert rig.servo(1).get("goal_position") == 2049


def test_on_the_real_pty() -> None:
    servos = [Servo(i, 2048) for i in IDS]
    clock = MonotonicClock()
    with PtyServer(ServoBus(servos, advance=FirstOrder(servos))) as server:
        arm = FeetechArm(ROBOT.arm, server.path)
        arm.open()
        with pytest.raises(PortError, match="in use"):
            FeetechArm(ROBOT.arm, server.path).open()
        arm.configure()
        positions = arm.read().positions
        assert positions[:5].tolist() == [0.0] * 5
        cycle = arm.plan().build()
        codes = [cycle.cycle(arm.fd, clock.now_ns() + NS) for _ in range(20)]
        assert codes == [BusCode.BUS_OK] * 20
        assert np.array_equal(cycle.positions, positions)
        arm.close()
        with pytest.raises(BusError, match="not open"):
            arm.read()


class TestControlTable:
    def test_registers_do_not_overlap(self) -> None:
        taken = [a for r in STS3215.values() for a in range(r.address, r.address + r.size)]
        assert len(taken) == len(set(taken))

    @pytest.mark.parametrize(
        ("error", "words"), [(0, ""), (32, "overloaded"), (5, "voltage outside the servo's limits, overheated")]
    )
    def test_errors_in_words(self, error: int, words: str) -> None:
        assert explain_error(error) == words
        assert explain_error(64 | error).endswith("unknown bits 0x40")


