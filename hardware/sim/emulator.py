"""An emulated servo bus that any program can use and any test can break: a pty, and a control socket beside it.

The control socket (Unix, stream) takes JSON, one document a line, and answers each with one line, `{"ok": true, ...}`
or `{"ok": false, "error": "..."}`:

    {"fault": "silent", "servo": 3, "for_s": 2}     a verb of faults.SERVO_VERBS, from now on, for two seconds
    {"fault": "flip", "rate": 0.01}                 without "servo" of the whole line (faults.LINE_VERBS)
    {"fault": "unplug", "at_s": 5, "for_s": 1}      in five seconds; at_s and for_s go with every fault
    {"get": "goal_position", "servo": 3}            a register by its name in the control table -> "value"
    {"set": "offset", "servo": 3, "value": 12}      as the servo itself sets it: no lock applies
    {"push": 1500, "servo": 3}                      as a hand moves a joint without torque: to this present position
    {"state": true}                                 every servo: model, fault, torque, goal, present, error
    {"transcript": 100}                             the last records: t_ns, "request" or "reply", bytes in hex
"""

import os
import shutil
import socketserver
import tempfile
import threading
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from dzedge.hardware.control_table import table
from dzedge.hardware.sim.dynamixel_line import DynamixelLine
from dzedge.hardware.sim.dynamixel_servo import DynamixelServo
from dzedge.hardware.sim.emulated_servo import EmulatedServo
from dzedge.hardware.sim.pty_server import PtyServer
from dzedge.hardware.sim.servo import Servo
from dzedge.hardware.sim.servo_bus import LINE, ServoBus

PROTOCOLS = ("feetech", "dynamixel")
MODELS = {"feetech": "sts3215", "dynamixel": "xl330-m288"}
"""What an arm is made of where nothing is said."""
KEEP = 100_000
"""Records of the transcript."""


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the control socket."""

    fault: str | None = None
    get: str | None = None
    set: str | None = None
    push: int | None = None
    state: bool = False
    transcript: int | None = None
    servo: int | None = None
    value: int | None = None
    at_s: float = 0.0
    for_s: float | None = None
    rate: float | None = None


def make_servos(
    protocol: str,
    ids: Sequence[int],
    ticks: Sequence[int],
    seed: int = 0,
    models: Sequence[str] = (),
    baud: int = 1_000_000,
) -> list[EmulatedServo]:
    """Servos that listen at `baud`. models: of control tables, one an id; a model of the other protocol is replaced by
    this one's own. ValueError for a protocol or a rate that there is not."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}: one of {', '.join(PROTOCOLS)}")
    servos: list[EmulatedServo] = []
    for i, (servo_id, at) in enumerate(zip(ids, ticks, strict=True)):
        model = models[i] if i < len(models) else MODELS[protocol]
        if not table(model).protocol.startswith(protocol):
            model = MODELS[protocol]
        if baud not in table(model).baud_rates:
            raise ValueError(f"a {model} knows no {baud} baud: one of {', '.join(map(str, table(model).baud_rates))}")
        if protocol == "dynamixel":
            servos.append(DynamixelServo(servo_id, at, seed, model, baud))
        else:
            servo = Servo(servo_id, at, seed, model)
            servo.set("baud_rate", table(model).baud_rates.index(baud))
            servos.append(servo)
    return servos


def make_bus(protocol: str, servos: Sequence[EmulatedServo], **more: Any) -> ServoBus:
    """The line for these servos; more: arguments of ServoBus or DynamixelLine."""
    return DynamixelLine(servos, **more) if protocol == "dynamixel" else ServoBus(servos, **more)


class Emulator:
    """A bus on a pty with a control socket, served by threads of this process until it is left.

    link: a stable name for the port; socket: where to listen, None: in a folder of its own, private to the user.
    ValueError where something else bears those names already, or they cannot be made.
    """

    def __init__(
        self, bus: ServoBus, *, link: Path | None = None, socket: Path | None = None, keep: int = KEEP
    ) -> None:
        if link is not None and os.path.lexists(link) and not link.is_symlink():
            raise ValueError(f"link {link}: exists and is no symbolic link; name another, or remove it")
        if socket is not None and os.path.lexists(socket) and not socket.is_socket():
            raise ValueError(f"socket {socket}: exists and is no socket; name another, or remove it")
        self.bus = bus
        try:
            self.pty = PtyServer(bus, link=link, keep=keep)
        except OSError as error:
            raise ValueError(f"link {link}: cannot be made: {error.strerror}; name another") from error
        self._folder = Path(tempfile.mkdtemp(prefix="dzedge-sim-")) if socket is None else None
        self.socket = socket if socket is not None else Path(str(self._folder)) / "control.sock"
        self._server: _Server | None = None

    @property
    def port(self) -> str:
        """What to open as the serial port: the link where there is one, for it survives `unplug`."""
        return str(self.pty.link or self.pty.path)

    def __enter__(self) -> "Emulator":
        self.socket.unlink(missing_ok=True)
        try:
            self._server = _Server(self)
        except OSError as error:
            self.pty.stop()
            raise ValueError(f"socket {self.socket}: cannot be made: {error}; name another") from error
        os.chmod(self.socket, 0o600)
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="sim-control", daemon=True).start()
        self.pty.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        self.pty.stop()
        self.socket.unlink(missing_ok=True)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    # ---- requests

    def answer(self, line: bytes) -> bytes:
        """One request of the control socket; its answer without a line's end."""
        try:
            found = self.execute(msgspec.json.decode(line, type=Request))
        except (ValueError, KeyError, msgspec.DecodeError) as error:
            return msgspec.json.encode({"ok": False, "error": str(error)})
        return msgspec.json.encode({"ok": True, **found})

    def execute(self, request: Request) -> dict[str, Any]:
        """Do what is asked. ValueError where that is not exactly one thing, or of what there is not."""
        told = [name for name in ("fault", "get", "set", "push", "transcript") if getattr(request, name) is not None]
        if len(told) + request.state != 1:
            raise ValueError("ask for one of fault, get, set, push, state, transcript")
        component = LINE if request.servo is None else str(request.servo)
        if request.fault is not None:
            self.pty.inject(component, request.fault, at_s=request.at_s, for_s=request.for_s, rate=request.rate)
            return {}
        if request.transcript is not None:
            return {"transcript": self._transcript(request.transcript)}
        if request.state:
            return self.pty.look(_state)
        if request.push is not None:
            place = request.push
            return self.pty.look(lambda bus: _push(bus.servo(component), place))
        return self.pty.look(lambda bus: _register(bus.servo(component), request))

    def _transcript(self, count: int) -> list[dict[str, Any]]:
        records = self.pty.look(lambda _: list(islice(reversed(self.pty.transcript), max(count, 0))))
        return [{"t_ns": at, "is": direction, "hex": data.hex(" ")} for at, direction, data in reversed(records)]


def _register(servo: EmulatedServo, request: Request) -> dict[str, Any]:
    name = request.get or request.set
    assert name is not None
    if name not in servo.places:
        raise ValueError(f"no register {name!r}: one of {', '.join(servo.places)}")
    if request.set is not None:
        if request.value is None:
            raise ValueError(f"set {name}: to which value?")
        servo.set(name, request.value)
    return {"value": servo.get(name)}


def _push(servo: EmulatedServo, place: int) -> dict[str, Any]:
    servo.push(place)
    return {"value": servo.get("present_position")}


def _state(bus: ServoBus) -> dict[str, Any]:
    servos = [
        {
            "id": servo.id,
            "model": servo.model,
            "fault": servo.fault,
            "torque": servo.torque_enabled,
            "goal": servo.get("goal_position"),
            "present": servo.get("present_position"),
            "error": servo.error,
        }
        for servo in bus.servos
    ]
    return {
        "protocol": bus.protocol, "baud": bus.baud, "frames": bus.frames, "line": bus.line_fault, "echo": bus.echo,
        "servos": servos,
    }  # fmt: skip


class _Server(socketserver.ThreadingUnixStreamServer):
    """Listens at the control socket; each connection has a thread."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        super().__init__(str(emulator.socket), _Connection)


class _Connection(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, _Server)
        for line in self.rfile:
            if line.strip():
                self.wfile.write(server.emulator.answer(line) + b"\n")
