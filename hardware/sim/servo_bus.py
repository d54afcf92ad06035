"""A Feetech STS bus in memory: bytes and time in, bytes and the time they have crossed the wire out.

The same object answers in lockstep (`feed`, called with the fake clock) and behind a `pty_server.PtyServer`.
"""

from collections.abc import Callable, Sequence
from random import Random

import numpy as np

from dzedge.clock import NS
from dzedge.hardware.control_table import BAUD_RATES
from dzedge.hardware.sim.servo import DELAYED_NS, FAULTS, SLOW_NS, Servo
from dzedge.kernels import codec

LINE = "line"
"""Name of the whole line in `set_fault`."""
LONGEST = 259
BITS_PER_BYTE = 10


class ServoBus:
    """Servos on one half-duplex line.

    advance: called with now_ns before anything is answered: the physics steps to that time, reads each
    servo's torque and goal and calls its `set_present`. echo: the adapter returns what the host sends.
    Faults of the line follow `seed`. Time only ever comes from `feed`.
    """

    def __init__(
        self,
        servos: Sequence[Servo],
        *,
        baud: int = 1_000_000,
        advance: Callable[[int], None] | None = None,
        echo: bool = False,
        seed: int = 0,
    ) -> None:
        self.servos = list(servos)
        self.baud = baud
        self.advance = advance
        self.echo = echo
        self.line_fault = "ok"
        self.frames = 0
        self._random = Random(seed)
        self._pending = bytearray()
        self._found = np.zeros(5, np.int32)
        self._free_ns = 0
        self._last_ns: dict[int, int] = {}

    @property
    def byte_ns(self) -> int:
        """Time of one byte on the wire, start and stop bit included."""
        return BITS_PER_BYTE * NS // self.baud

    def set_fault(self, component: str, verb: str) -> None:
        """component: "line", or a servo's id, e.g. "3"; verb: one of FAULTS ("stuck" on the line: silent)."""
        if verb not in FAULTS:
            raise ValueError(f"bus fault {verb!r}: one of {', '.join(FAULTS)}")
        if component == LINE:
            self.line_fault = verb
            return
        for servo in self.servos:
            if str(servo.id) == component:
                servo.set_fault(verb)
                return
        known = ", ".join([LINE, *(str(servo.id) for servo in self.servos)])
        raise ValueError(f"no component {component!r} on this bus: one of {known}")

    def feed(self, data: bytes, now_ns: int) -> list[tuple[int, bytes]]:
        """Bytes that the host began to send at now_ns. Returns (ready_ns, bytes) of the replies by time: the
        last of these bytes has crossed the wire at ready_ns, counted from when the request itself had."""
        if self.advance is not None:
            self.advance(now_ns)
        start_ns = max(now_ns, self._free_ns)
        self._free_ns = start_ns + len(data) * self.byte_ns
        replies: list[tuple[int, bytes]] = []
        if self.echo:
            replies.append((self._free_ns, data))
        if self.line_fault in ("off", "stuck"):
            return replies
        offset = -len(self._pending)
        self._pending += data
        done = 0
        while codec.scan(self._pending, done, len(self._pending), LONGEST, False, self._found):
            at, length, done = (int(v) for v in self._found[:3])
            frame = bytes(self._pending[at : at + length])
            end_ns = start_ns + max(offset + done, 0) * self.byte_ns
            self._answer(frame, end_ns, replies)
        del self._pending[: int(self._found[2])]
        replies.sort(key=lambda reply: reply[0])
        return replies

    def _answer(self, frame: bytes, end_ns: int, replies: list[tuple[int, bytes]]) -> None:
        """Obey one request whose last byte came at end_ns."""
        self.frames += 1
        servo_id, instruction, parameters = frame[2], frame[4], frame[5:-1]
        if instruction == codec.SYNC_WRITE and len(parameters) >= 2:
            self._sync_write(parameters)
        elif instruction == codec.SYNC_READ and len(parameters) >= 2:
            for wanted in parameters[2:]:
                for servo in self._listening(wanted):
                    end_ns = self._reply(servo, servo.read(*parameters[:2]), end_ns, replies)
        else:
            for servo in self._listening(servo_id):
                answer = servo.execute(instruction, parameters)
                if answer is not None and (servo_id != codec.BROADCAST or instruction == codec.PING):
                    end_ns = self._reply(servo, answer, end_ns, replies)
        self._free_ns = max(self._free_ns, end_ns)

    def _sync_write(self, parameters: bytes) -> None:
        address, width = parameters[:2]
        for at in range(2, len(parameters) - width, width + 1):
            for servo in self._listening(parameters[at]):
                servo.write(address, parameters[at + 1 : at + 1 + width])

    def _listening(self, servo_id: int) -> list[Servo]:
        """Living servos that hear this id: two of one id both answer, nobody does at another baud."""
        return [
            servo
            for servo in self.servos
            if servo_id in (servo.id, codec.BROADCAST)
            and servo.fault != "off"
            and BAUD_RATES[servo.get("baud_rate") % len(BAUD_RATES)] == self.baud
        ]

    def _reply(self, servo: Servo, data: bytes, end_ns: int, replies: list[tuple[int, bytes]]) -> int:
        """Queue one reply on a line that is free from end_ns; returns when it is free again."""
        frame = bytearray(len(data) + codec.OVERHEAD)
        codec.status(frame, servo.id, servo.error, data)
        begin_ns = end_ns + servo.return_delay_ns
        ready_ns = begin_ns + len(frame) * self.byte_ns
        for verb, random in ((servo.fault, servo.random), (self.line_fault, self._random)):
            if verb == "intermittent" and random.random() < 1 / 3:
                return end_ns
            if verb == "garbage":
                frame = bytearray(random.randbytes(len(frame)))
            elif verb == "slow":
                ready_ns += SLOW_NS
            elif verb == "delayed":
                ready_ns += DELAYED_NS
        if self.line_fault == "wrong":
            frame[self._random.randrange(len(frame))] ^= 1 << self._random.randrange(8)
        # a servo answers its requests in order, however late it is
        ready_ns = max(ready_ns, self._last_ns.get(servo.id, 0) + len(frame) * self.byte_ns)
        self._last_ns[servo.id] = ready_ns
        replies.append((ready_ns, bytes(frame)))
        late = "delayed" in (servo.fault, self.line_fault)
        return end_ns if late else ready_ns


class FirstOrder:
    """Servos that follow their goal with a time constant, for buses without a physics engine.

    Use as `ServoBus(servos, advance=FirstOrder(servos))`. speed: [ticks/s], at most; tau: [s].
    """

    def __init__(self, servos: Sequence[Servo], *, speed: float = 3000.0, tau: float = 0.05) -> None:
        self.servos = list(servos)
        self.speed = speed
        self.tau = tau
        self.positions = [float(servo.get("present_position") + servo.get("offset")) for servo in self.servos]
        self._now_ns = 0

    def __call__(self, now_ns: int) -> None:
        elapsed = (now_ns - self._now_ns) / NS if self._now_ns else 0.0
        self._now_ns = now_ns
        if elapsed <= 0.0:
            return
        for i, servo in enumerate(self.servos):
            change = 0.0
            if servo.torque_enabled:
                limit = min(servo.goal_speed or self.speed, self.speed) * elapsed
                wanted = (servo.goal_ticks - self.positions[i]) * (1.0 - self.tau / (self.tau + elapsed))
                change = min(max(wanted, -limit), limit)
            self.positions[i] += change
            voltage, temperature = servo.get("present_voltage") * 0.1, servo.get("present_temperature")
            servo.set_present(self.positions[i], change / elapsed, 0.0, voltage, temperature)
