"""The driver of Dynamixel arms against the emulated bus in memory."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dzedge.errors import BusError, ConfigError, SafetyError
from dzedge.hardware.arm import StopCategory
from dzedge.kernels.bus import BusCode

rig_file = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("dynamixel_rig.py"))))
Rig, COUNT, MS, HOME, joint = rig_file.Rig, rig_file.COUNT, rig_file.MS, rig_file.HOME, rig_file.joint
ALL = list(range(COUNT))


def joints(**changes) -> list:
    """The arm's joints, the first of them changed."""
    return [joint(0, **changes), *(joint(number) for number in range(1, COUNT))]


def writes(rig) -> list[tuple[int, str, int]]:
    """EEPROM registers that differ from a new servo's: (id, name, value)."""
    rows = ((servo, register) for servo in rig.servos for register in servo.table.registers.values())
    return [
        (servo.id, register.name, servo.get(register.name))
        for servo, register in rows
        if register.eeprom and register.initial not in (None, servo.get(register.name))
        and register.name not in ("id", "baud_rate")
    ]  # fmt: skip


class TestConfigure:
    def test_writes_what_differs_once(self) -> None:
        rig = Rig().configured()
        expected = [(servo.id, "return_delay", 0) for servo in rig.servos]
        assert sorted(writes(rig)) == sorted([*expected, (6, "mode", 5)])
        frames = rig.bus.frames
        rig.arm.configure()
        again = rig.bus.frames - frames
        assert sorted(writes(rig)) == sorted([*expected, (6, "mode", 5)])
        rig.arm.configure()
        assert rig.bus.frames - frames == 2 * again
        assert rig.torque() == [0] * COUNT

    def test_nothing_is_written_to_a_servo_that_is_as_it_must_be(self) -> None:
        rig = Rig().configured()
        written: list[tuple[int, int]] = []
        for servo in rig.servos:
            servo.write = lambda address, data, servo=servo: written.append((servo.id, address)) or 0
        rig.arm.configure()
        assert {address for _, address in written} <= {68}  # status level, which is RAM

    def test_all_that_is_wrong_is_named(self) -> None:
        rig = Rig()
        rig[1].set("model", 1070)
        rig[2].set("firmware", 30)
        rig[3].set("max_position", 2500)
        rig.bus.set_fault("4", "off")
        rig.bus.set_fault("5", "alert")
        rig.arm.open()
        with pytest.raises(BusError) as error:
            rig.arm.configure()
        text = str(error.value)
        for part in ("servo 1 (j0): its model number is 1070, a xl430-w250 has 1060", "servo 2 (j1): firmware 30",
                     "servo 3 (j2): allows [0, 2500] ticks", "servo 4 does not answer", "servo 5: overloaded",
                     "reboot"):  # fmt: skip
            assert part in text
        assert "servo 6" not in text
        assert all(servo.get("return_delay") == 250 for servo in rig.servos if servo.id != 6)

    def test_drive_mode_keeps_only_its_direction(self) -> None:
        rig = Rig()
        rig[1].set("drive_mode", 0b1101)
        rig.configured()
        assert rig[1].get("drive_mode") == 1

    def test_a_servo_obeys_no_other_joints_id(self) -> None:
        rig = Rig()
        rig[3].set("secondary_id", 2)
        rig[4].set("secondary_id", 253)
        rig.configured()
        assert (rig[3].get("secondary_id"), rig[4].get("secondary_id")) == (255, 253), "253 means none as well"

    def test_an_arm_that_is_held_is_not_dropped_to_be_configured(self) -> None:
        rig = Rig()
        rig[6].set("torque_enable", 1)
        rig.arm.open()
        with pytest.raises(BusError, match=r"servo 6 \(j5\) holds its joint.*mode from 3 to 5"):
            rig.arm.configure()
        assert rig[6].get("torque_enable") == 1 and rig[6].get("mode") == 3

    def test_models_without_a_table_are_refused(self) -> None:
        with pytest.raises((ConfigError, ValueError), match="xl999"):
            Rig(joints=joints(model="xl999"))

    def test_the_watchdog_has_its_range(self) -> None:
        with pytest.raises(ValueError, match="2540"):
            Rig(watchdog_ms=3000)


class TestActivate:
    def test_holds_where_it_stands(self) -> None:
        rig = Rig()
        for number, servo in enumerate(rig.servos):
            servo.set_present(HOME + 10 * number, 0.0, 0.0, servo.supply_v, 30.0)
            servo.set("goal_position", 1000)  # an old goal, which must not be gone to
        rig.bus.advance.__init__(rig.servos)
        rig.configured()
        held = rig.arm.activate()
        assert rig.torque() == [1] * COUNT
        assert rig.arm.goal_ticks.tolist() == [HOME + 10 * number for number in ALL]
        assert [servo.get("goal_position") for servo in rig.servos] == rig.arm.goal_ticks.tolist()
        assert held.positions[1] == pytest.approx(-10 * 2 * np.pi / 4096)
        assert np.all(held.velocities == 0)

    def test_torque_limits_and_no_profile(self) -> None:
        rig = Rig(joints=joints(max_torque=0.5))
        for servo in rig.servos:
            servo.set("profile_velocity", 50)
        rig.configured().arm.activate()
        assert rig[1].get("goal_pwm") == round(0.5 * 885)
        assert rig[2].get("goal_pwm") == 885
        assert (rig[6].get("goal_pwm"), rig[6].get("goal_current")) == (885, round(0.4 * 1750))
        assert all(servo.get("profile_velocity") == 0 for servo in rig.servos)

    @pytest.mark.parametrize(
        ("spoil", "text"),
        [
            (lambda rig: rig[1].set_present(3800, 0.0, 0.0, 11.0, 30.0), r"servo 1 \(j0\) stands at"),
            (lambda rig: rig[2].set_present(HOME, 0.0, 0.0, 5.0, 30.0), r"has 5.0 V, allowed 6.0 to"),
            (lambda rig: rig[3].set_present(HOME, 0.0, 0.0, 12.0, 30.0), r"has 12.0 V, allowed 4.5 to 7.0"),
            (lambda rig: rig[4].set_present(HOME, 0.0, 0.0, 5.0, 70.0), r"has 70 °C, allowed up to 65"),
            (lambda rig: rig.bus.set_fault("5", "alert"), r"servo 5: overloaded"),
        ],
    )
    def test_refuses_what_is_out_of_bounds(self, spoil, text: str) -> None:
        rig = Rig().configured()
        rig.bus.advance = None
        spoil(rig)
        with pytest.raises(SafetyError, match=text):
            rig.arm.activate()
        assert rig.torque() == [0] * COUNT

    def test_a_silent_servo_leaves_all_without_torque(self) -> None:
        rig = Rig().configured()
        rig.bus.set_fault("4", "off")
        with pytest.raises(BusError, match="no answer from servo 4"):
            rig.arm.activate()
        assert rig.torque() == [0] * COUNT

    def test_a_servo_that_dies_while_torque_comes_on_takes_it_from_the_others(self) -> None:
        rig = Rig().configured()
        dying = rig[5]
        taken = dying.write

        def write(address: int, data: bytes) -> int:
            if address == 64 and data == b"\1":
                dying.set_fault("off")
            return taken(address, data)

        dying.write = write
        with pytest.raises(BusError, match="servo 5"):
            rig.arm.activate()
        assert [servo.get("torque_enable") for servo in rig.servos if servo.id != 5] == [0] * (COUNT - 1)

    def test_the_watchdog_stops_the_arm_when_the_host_dies_and_is_cleared_again(self) -> None:
        rig = Rig(watchdog_ms=100).active()
        assert [servo.get("bus_watchdog") for servo in rig.servos] == [5] * COUNT
        pose = np.array([0.0] * 5 + [48 / 1000])
        for _ in range(10):
            pose[:5] += 0.01
            assert rig.run(pose) == BusCode.BUS_OK
        assert [servo.get("bus_watchdog") for servo in rig.servos] == [5] * COUNT
        rig.clock.time_ns += 150 * MS  # killed here
        rig.run()
        assert [servo.get("bus_watchdog") for servo in rig.servos] == [-1] * COUNT
        assert rig.torque() == [1] * COUNT
        before = [servo.get("goal_position") for servo in rig.servos]
        pose[:5] += 0.01
        rig.run(pose)
        assert [servo.get("goal_position") for servo in rig.servos] == before  # read-only now
        rig.arm.activate()
        assert [servo.get("bus_watchdog") for servo in rig.servos] == [5] * COUNT and rig.torque() == [1] * COUNT

    def test_a_held_arm_keeps_its_goals(self) -> None:
        rig = Rig().active()
        rig[2].set("goal_position", HOME + 8)  # it sags by 8 ticks
        rig.arm.deactivate(StopCategory.HOLD)
        rig.arm.configure()
        assert rig.arm.activate().positions[1] == pytest.approx(-8 * 2 * np.pi / 4096)


class TestTurns:
    @pytest.mark.parametrize("turns", [-2, -1, 0, 1])
    def test_extended_mode_counts_whole_turns_and_the_arm_does_not_care(self, turns: int) -> None:
        rig = Rig()
        rig[1].set("mode", 4)
        rig[1].set("offset", 2000 + 4096 * turns)
        rig[1]._measure_position()
        rig.bus.advance = None
        rig.configured()
        assert rig[1].get("mode") == 4
        ticks = rig[1].get("present_position")
        assert ticks == 4048 + 4096 * turns
        state = rig.arm.read()
        assert abs(state.positions[0]) <= np.pi
        assert state.positions[0] == pytest.approx((4048 - HOME) * 2 * np.pi / 4096 - 2 * np.pi * round(2000 / 4096))

    def test_goals_follow_the_turns(self) -> None:
        rig = Rig()
        rig[1].set("mode", 4)
        rig[1].set("offset", -8192)
        rig[1]._measure_position()
        rig.active()
        rig.run(np.array([0.01, 0, 0, 0, 0, 48 / 1000]))
        assert rig[1].get("goal_position") == round(HOME - 8192 + 0.01 * 4096 / (2 * np.pi))

    def test_a_large_offset_asks_for_extended_mode(self) -> None:
        rig = Rig()
        rig[1].set("offset", 1500)
        rig[1]._measure_position()
        rig.configured()
        assert [rig[1].get("mode"), rig[2].get("mode")] == [4, 3]


class TestDeactivate:
    @pytest.mark.parametrize("dead", ALL)
    @pytest.mark.parametrize("fault", ["off", "alert", "silent"])
    def test_every_other_servo_goes_off(self, dead: int, fault: str) -> None:
        rig = Rig().active()
        rig.bus.set_fault(str(dead + 1), fault)
        if fault == "alert":
            rig.arm.deactivate(StopCategory.OFF)
        else:
            with pytest.raises(BusError, match=rf"servo {dead + 1} "):
                rig.arm.deactivate(StopCategory.OFF)
        others = [servo.get("torque_enable") for servo in rig.servos if servo.id != dead + 1]
        assert others == [0] * (COUNT - 1)

    def test_hold_keeps_torque_and_ends_the_watch(self) -> None:
        rig = Rig().active()
        rig.arm.deactivate(StopCategory.HOLD)
        assert rig.torque() == [1] * COUNT
        assert [servo.get("bus_watchdog") for servo in rig.servos] == [0] * COUNT

    def test_stop_then_off_waits_for_rest(self) -> None:
        rig = Rig().active()
        rig[1].set("goal_position", HOME + 600)
        for _ in range(4):
            rig.run()
        assert rig[1].get("present_velocity") > 0
        rig.arm.deactivate(StopCategory.STOP_THEN_OFF)
        assert rig.torque() == [0] * COUNT
        assert abs(rig[1].get("present_position") - HOME - 600) < 40

    def test_before_open_and_after_close(self) -> None:
        rig = Rig()
        assert rig.arm.fd == -1
        with pytest.raises(BusError, match=r"call open\(\) first"):
            rig.arm.read()
        rig.arm.open()
        rig.arm.close()
        rig.arm.close()
        assert rig.arm.fd == -1


class TestShadow:
    def test_follows_by_its_secondary_id(self) -> None:
        rig = Rig(joints=joints(shadow_id=11)).active()
        assert rig[11].get("secondary_id") == 1 and rig.torque() == [1] * (COUNT + 1)
        pose = np.array([0.0] * 5 + [48 / 1000])
        for _ in range(20):
            pose[0] += 0.01
            assert rig.run(pose) == BusCode.BUS_OK
        assert rig[11].get("goal_position") == rig[1].get("goal_position") > HOME + 100
        rig.arm.deactivate(StopCategory.OFF)
        assert rig.torque() == [0] * (COUNT + 1)

    def test_must_stand_where_its_servo_does(self) -> None:
        rig = Rig(joints=joints(shadow_id=11)).configured()
        rig.bus.advance = None
        rig[11].set_present(HOME + 60, 0.0, 0.0, 11.0, 30.0)
        with pytest.raises(SafetyError, match=r"servo 11 \(j0, shadow\) is 60 ticks from servo 1"):
            rig.arm.activate()
        assert rig.torque() == [0] * (COUNT + 1)


def test_the_plan_fits_the_wire() -> None:
    rig = Rig().configured()
    assert rig.arm.plan().wire_ns == 2_220_000  # 222 bytes: facts of the protocol, fast, 21 bytes
    assert Rig(line={"fast": False}).configured().arm.plan().wire_ns == 2_560_000
    quick = Rig()
    quick.arm._arm = rig_file.table(rate_hz=400)
    short = quick.configured().arm.plan()
    assert short.data_length == 8 and short.wire_ns < 2_000_000
