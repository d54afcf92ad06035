"""The control tables: whole, without overlap, as the vendors' manuals have them."""

import pytest

from dzedge.errors import BusError, ConfigError
from dzedge.hardware import control_table
from dzedge.hardware.control_table import STS3215, by_number, explain_dynamixel_error, models, table

DYNAMIXELS = {
    "xl430-w250": 1060, "xl330-m077": 1190, "xl330-m288": 1200, "xm430-w350": 1020, "xm540-w270": 1120,
    "xc430-w150": 1070, "xc330-t181": 1210, "xc330-t288": 1220, "xh540-w150": 1110,
}  # fmt: skip
FEETECHS = {"sts3215": 777, "sts3250": 2825}


def test_models() -> None:
    assert set(models()) == set(DYNAMIXELS) | set(FEETECHS)
    for name, number in (DYNAMIXELS | FEETECHS).items():
        found = table(name)
        assert found.number == number
        assert by_number(found.protocol, number) is found
    assert by_number("feetech", 1060) is None
    with pytest.raises(ConfigError, match=r"'ax-12'.*xl430-w250"):
        table("ax-12")


@pytest.mark.parametrize("name", [*DYNAMIXELS, *FEETECHS])
def test_registers_are_in_order_and_do_not_overlap(name: str) -> None:
    found = table(name)
    end = 0
    for register in found.registers.values():
        assert register.address >= end, register
        end = register.address + register.size
        assert register.scale > 0
        for value in (register.low, register.high, register.initial):
            if value is not None:
                assert register.decode(register.encode(value)) == value
        if register.low is not None and register.high is not None:
            assert register.low < register.high
            if register.initial is not None and register.name != "secondary_id":
                assert register.low <= register.initial <= register.high, register
        boundary = 40 if found.protocol == "feetech" else 64
        assert register.eeprom == (register.address < boundary)


@pytest.mark.parametrize(
    ("model", "name", "address", "size", "unit", "scale"),
    [
        ("xl430-w250", "offset", 20, 4, "ticks", 1.0),
        ("xl430-w250", "present_load", 126, 2, "1", 0.001),
        ("xl330-m288", "present_current", 126, 2, "A", 0.001),
        ("xm430-w350", "present_current", 126, 2, "A", 0.00269),
        ("xm540-w270", "profile_acceleration", 108, 4, "rev/min^2", 214.577),
        ("xh540-w150", "present_velocity", 128, 4, "rev/min", 0.229),
        ("xc430-w150", "bus_watchdog", 98, 1, "ms", 20.0),
        ("xc330-t288", "present_voltage", 144, 2, "V", 0.1),
        ("xl330-m077", "return_delay", 9, 1, "us", 2.0),
        ("sts3215", "present_current", 69, 2, "A", 0.0065),
    ],
)
def test_places_and_units(model: str, name: str, address: int, size: int, unit: str, scale: float) -> None:
    register = table(model)[name]
    assert (register.address, register.size, register.unit, register.scale) == (address, size, unit, scale)


def test_what_models_lack() -> None:
    for model in ("xl430-w250", "xc430-w150"):
        assert "goal_current" not in table(model) and not {0, 5} & set(table(model).modes)
        with pytest.raises(BusError, match=f"{model} has no register 'goal_current'"):
            table(model)["goal_current"]
    assert 5 in table("xl330-m288").modes and "goal_current" in table("xl330-m288")
    assert 4_500_000 not in table("xl330-m288").baud_rates and 4_500_000 in table("xm430-w350").baud_rates
    assert table("sts3250").registers == STS3215


@pytest.mark.parametrize(
    ("model", "name", "value", "data"),
    [
        ("sts3215", "offset", -5, b"\x05\x08"),
        ("sts3215", "present_load", -1, b"\x01\x04"),
        ("xl330-m288", "goal_current", -5, b"\xfb\xff"),
        ("xl330-m288", "goal_position", -4096, b"\x00\xf0\xff\xff"),
        ("xl330-m288", "bus_watchdog", -1, b"\xff"),
    ],
)
def test_signs(model: str, name: str, value: int, data: bytes) -> None:
    register = table(model)[name]
    assert register.encode(value) == data and register.decode(data) == value


@pytest.mark.parametrize(
    ("model", "name", "value"),
    [("sts3215", "offset", 2048), ("sts3215", "id", 256), ("xl330-m288", "goal_current", 40000),
     ("xl330-m288", "id", -1)],
)  # fmt: skip
def test_what_does_not_fit(model: str, name: str, value: int) -> None:
    with pytest.raises(BusError, match=rf"{name} = {value} does not fit"):
        table(model)[name].encode(value)


def test_errors_in_words() -> None:
    assert explain_dynamixel_error(0) == ""
    assert "EEPROM while torque is on" in explain_dynamixel_error(7)
    assert explain_dynamixel_error(0x80) == "alert: read hardware_error"
    assert explain_dynamixel_error(0x80, 0x24).startswith("overheated, overloaded (")
    assert "reboot" in explain_dynamixel_error(0x80, 1)
    assert "0x40" in explain_dynamixel_error(0x80, 0x40)
    assert explain_dynamixel_error(9) == "unknown error number 9"
    assert control_table.explain_error(33) == "voltage outside the servo's limits, overloaded"
