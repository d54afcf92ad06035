"""What `dzedge arm` shows: tables of servos, joints and ranges, as rows for a document and as tables for a person."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from dzedge.errors import DeviceError, PortError
from dzedge.hardware.calibration import JointCalibration
from dzedge.hardware.calibrator import Calibrator, Span, nearest_turn
from dzedge.hardware.servo_tool import Found, ServoTool
from dzedge.types import JointState


def scan_table(found: Mapping[str, Sequence[Found]], troubles: Mapping[str, str]) -> Table:
    """Servos by port. troubles: ports that could not be looked at, and why."""
    table = Table("port", "protocol", "baud", "id", "model", "firmware", "alerts", box=None, header_style="bold")
    for port, servos in found.items():
        for one in servos:
            model = one.model or f"unknown ({one.number})"
            table.add_row(port, one.driver, f"{one.baud}", f"{one.id}", model, one.firmware, Text(one.alerts, "red"))
    for port, words in troubles.items():
        table.add_row(port, *[""] * 5, Text(words, "red"))
    return table


def scan_document(found: Mapping[str, Sequence[Found]], troubles: Mapping[str, str]) -> dict[str, Any]:
    """The same as a document."""
    ports = [
        {"port": port, "servos": [asdict(one) for one in servos], "error": troubles.get(port, "")}
        for port, servos in found.items()
    ]
    return {"ports": ports}


def servo_rows(servos: Calibrator, joints: Sequence[JointCalibration]) -> list[dict[str, Any]]:
    """What each servo says, its ticks as positions too; a silent one's row says so in `alerts`."""
    rows = []
    for (name, servo), joint in zip(servos.servos.items(), joints, strict=True):
        try:
            rows.append(_row(name, servo, joint))
        except PortError:
            raise
        except DeviceError as error:
            rows.append({"joint": name, "id": servo.id, "alerts": str(error)})
    return rows


def _row(name: str, servo: ServoTool, joint: JointCalibration) -> dict[str, Any]:
    state = servo.state()
    ticks = state.position if servo.feetech else nearest_turn(state.position, (joint.lower + joint.upper) / 2)
    return {
        "joint": name,
        "id": servo.id,
        "position": round(joint.position(ticks), 5),
        "velocity": round(state.speed / joint.scale, 5),
        "ticks": state.position,
        "goal_ticks": state.goal,
        "inside": joint.lower <= ticks <= joint.upper,
        "torque": state.torque,
        "load": state.load,
        "current_a": state.current,
        "voltage_v": round(state.voltage, 2),
        "temperature_c": state.temperature,
        "alerts": state.alerts,
    }


def state_rows(names: Sequence[str], state: JointState) -> list[dict[str, Any]]:
    """Of an arm that tells positions and velocities alone."""
    values = zip(names, state.positions.tolist(), state.velocities.tolist(), strict=True)
    return [{"joint": n, "position": round(p, 5), "velocity": round(v, 5), "alerts": ""} for n, p, v in values]


def reading(rows: Sequence[Mapping[str, Any]], gripper: str | None, port: str, note: str = "") -> list[Any]:
    """A table of `joint_table`, then what is wrong, a line for each joint; one line where no servo answers at all."""
    if not any("position" in row for row in rows):
        words = f"no servo answers on {port}: check power and cable; `dzedge arm scan {port}` looks at all rates"
        return [words, *([note] if note else [])]
    troubles = [(row["joint"], _trouble(row).removeprefix(f"{port}: ")) for row in rows if _trouble(row)]
    return [joint_table(rows, gripper), *(f"{name}: {words}" for name, words in troubles), *([note] if note else [])]


def wrong(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a servo is silent, has an alert, or stands outside its limits."""
    return any(_trouble(row) for row in rows)


def _trouble(row: Mapping[str, Any]) -> str:
    outside = "" if row.get("inside", True) else "outside its limits"
    return ", ".join(part for part in (row["alerts"], outside) if part)


def joint_table(rows: Sequence[Mapping[str, Any]], gripper: str | None) -> Table:
    """Rows of `servo_rows` or `state_rows`, without alerts: they need more room than a terminal of 80 columns has left.
    gripper: the joint whose position is 0 closed to 1 open, no angle."""
    columns = "joint", "id", "pos", "[deg]", "ticks", "goal", "torque", "load", "[V]", "[°C]"
    table = Table(*columns, box=None, header_style="bold")
    for column in table.columns:
        column.no_wrap, column.overflow = True, "fold"
        column.justify = "right" if column.header != "joint" else "left"
    for row in rows:
        style = "red" if _trouble(row) else ""
        if "position" not in row:
            table.add_row(row["joint"], f"{row['id']}", *["-"] * 8, style=style)
            continue
        load = row.get("load")
        degrees = "" if row["joint"] == gripper else f"{math.degrees(row['position']):+.1f}"
        cells = (
            f"{row['position']:+.3f}", degrees, _cell(row, "ticks"),
            _cell(row, "goal_ticks"), {True: "on", False: "off", None: ""}[row.get("torque")],
            "" if load is None else f"{load:+.0%}", _cell(row, "voltage_v"), _cell(row, "temperature_c"),
        )  # fmt: skip
        table.add_row(row["joint"], _cell(row, "id"), *cells, style=style)
    return table


def _cell(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    return "" if value is None else f"{value:g}"


def range_table(now: Mapping[str, int], spans: Mapping[str, Span]) -> Table:
    """Ticks while joints are moved by hand."""
    table = Table("joint", "lowest", "now", "highest", box=None, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, ticks in now.items():
        span = spans.get(name, Span(ticks, ticks))
        table.add_row(name, f"{span.low}", f"{ticks}", f"{span.high}")
    return table
