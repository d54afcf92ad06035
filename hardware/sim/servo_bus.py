"""A servo bus in memory: bytes and time in, bytes and the time they have crossed the wire out.

`ServoBus` speaks Feetech's protocol, `dynamixel_line.DynamixelLine` Dynamixel 2.0; what a wire does is the same. The
same object answers in lockstep (`feed`, called with the fake clock) and behind a `pty_server.PtyServer`.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random

import numpy as np

from dzedge.clock import NS
from dzedge.hardware.sim.emulated_servo import BOOT_NS, EmulatedServo
from dzedge.hardware.sim.faults import DEAF, LATE_NS, LINE_VERBS, PORT_VERBS, RATES, SERVO_VERBS, collide, spoil
from dzedge.kernels import codec

LINE = "line"
"""Name of the whole line in `set_fault`."""
LONGEST = 259
BITS_PER_BYTE = 10
IDLE_S = 0.1
Replies = list[tuple[int, bytes]]
"""(ready_ns, bytes): the last of these bytes has crossed the wire at ready_ns."""
Said = tuple[EmulatedServo, int, int, bytes]
"""What a servo says: itself, the id that it says it with, ERR byte, data."""


class ServoBus:
    """Servos on one half-duplex line, Feetech's protocol.

    advance: called with now_ns before anything is answered: the physics steps to that time, reads each
    servo's torque and goal and calls its `set_present`. echo: the adapter returns what the host sends.
    chained: in a sync read each servo waits for the reply of the one before it, so that all behind a missing one are
    silent, too (which of the two real servos do is not documented). Faults of the line follow `seed`. Time only ever
    comes from `feed`. baud: of the host; servos set to another hear nothing.
    """

    protocol = "feetech"

    def __init__(
        self,
        servos: Sequence[EmulatedServo],
        *,
        baud: int = 1_000_000,
        advance: Callable[[int], None] | None = None,
        echo: bool = False,
        chained: bool = False,
        seed: int = 0,
    ) -> None:
        self.servos = list(servos)
        self.baud = baud
        self.advance = advance
        self.echo = echo
        self.chained = chained
        self.line_fault = "ok"
        self.line_rate = 1.0
        self.frames = 0
        self._adapter_echoes = echo
        self._random = Random(seed)
        self._pending = bytearray()
        self._found = np.zeros(5, np.int32)
        self._now_ns = 0
        self._free_ns = 0
        self._last_ns: dict[int, int] = {}
        self._script: list[tuple[int, int, str, str, float | None]] = []
        self._scripted = 0

    @property
    def byte_ns(self) -> int:
        """Time of one byte on the wire, start and stop bit included."""
        return BITS_PER_BYTE * NS // self.baud

    @property
    def idle_s(self) -> float:
        """How often time should be told to pass while nobody speaks [s]: for physics, and for watchdogs."""
        return IDLE_S

    # ---- faults

    def set_fault(self, component: str, verb: str, rate: float | None = None) -> None:
        """component: "line", or a servo's id, e.g. "3"; verb: of faults.LINE_VERBS or SERVO_VERBS; rate: share of the
        replies that it spoils, where not all. ValueError for what there is not."""
        self.check_fault(component, verb)
        if component != LINE:
            servo = self.servo(component)
            servo.set_fault(verb, rate)
            self._boot([servo] if verb == "brownout" else [])
        elif verb == "brownout":
            for servo in self.servos:
                servo.set_fault(verb)
            self._boot(self.servos)
        elif verb == "echo":
            self.echo = True
        else:
            self.line_fault = verb
            self.line_rate = RATES.get(verb, 1.0) if rate is None else rate
            if verb == "ok":
                self.echo = self._adapter_echoes

    def check_fault(self, component: str, verb: str) -> None:
        """ValueError for a component or a verb that there is not."""
        known = [word for word in LINE_VERBS if word not in PORT_VERBS] if component == LINE else list(SERVO_VERBS)
        if component != LINE:
            self.servo(component)
        if verb not in known:
            raise ValueError(f"fault {verb!r} of {component}: one of {', '.join(known)}")

    def servo(self, component: str) -> EmulatedServo:
        """The servo of this id; ValueError where there is none."""
        for servo in self.servos:
            if str(servo.id) == component:
                return servo
        known = ", ".join([LINE, *(str(servo.id) for servo in self.servos)])
        raise ValueError(f"no component {component!r} on this bus: one of {known}")

    def inject(
        self, component: str, verb: str, at_ns: int, *, for_ns: int | None = None, rate: float | None = None
    ) -> None:
        """`set_fault` once time has come to at_ns, and "ok" after for_ns. Power that is lost for a time comes back
        with a brown-out. ValueError, now, for what there is not."""
        self.check_fault(component, verb)
        if verb == "brownout" and for_ns is not None:
            dark = [str(servo.id) for servo in self.servos] if component == LINE else [component]
            events = [(0, one, "off") for one in dark]
            events += [(for_ns, one, word) for one in dark for word in ("ok", "brownout")]
        else:
            events = [(0, component, verb), *([] if for_ns is None else [(for_ns, component, "ok")])]
        for after_ns, one, word in events:
            self._scripted += 1
            heapq.heappush(self._script, (at_ns + after_ns, self._scripted, one, word, rate))

    def _play_script(self, now_ns: int) -> None:
        while self._script and self._script[0][0] <= now_ns:
            _, _, component, verb, rate = heapq.heappop(self._script)
            self.set_fault(component, verb, rate)

    def _boot(self, servos: Iterable[EmulatedServo], now_ns: int | None = None) -> None:
        """Power is back: silent for a while."""
        for servo in servos:
            servo.silent_until_ns = (self._now_ns if now_ns is None else now_ns) + BOOT_NS

    # ---- the wire

    def feed(self, data: bytes, now_ns: int) -> Replies:
        """Bytes that the host began to send at now_ns. Returns (ready_ns, bytes) of the replies by time: the
        last of these bytes has crossed the wire at ready_ns, counted from when the request itself had."""
        self._now_ns = now_ns
        if self._script:
            self._play_script(now_ns)
        if self.advance is not None:
            self.advance(now_ns)
        start_ns = max(now_ns, self._free_ns)
        self._free_ns = start_ns + len(data) * self.byte_ns
        replies: Replies = []
        if self.echo and data:
            replies.append((self._free_ns, data))
        if self.line_fault in DEAF:
            return replies
        offset = -len(self._pending)
        self._pending += data
        for servo_id, body, done in self._requests():
            self.frames += 1
            end_ns = start_ns + max(offset + done, 0) * self.byte_ns
            end_ns = self._answer(servo_id, body[0], body[1:], end_ns, replies)
            self._free_ns = max(self._free_ns, end_ns)
        replies.sort(key=_ready)
        return replies

    def _listeners(self, now_ns: int) -> dict[int, list[EmulatedServo]]:
        """Living servos that hear the host, by id: two of one id both answer, nobody does at another baud rate."""
        found: dict[int, list[EmulatedServo]] = {}
        for servo in self.servos:
            if servo.hears(self.baud, now_ns):
                found.setdefault(servo.id, []).append(servo)
        return found

    def _say(self, said: list[Said], end_ns: int, replies: Replies) -> int:
        """Queue what servos say at one time on a line that is free from end_ns; returns when it is free again.

        Several at once collide.
        """
        if not said:
            return end_ns
        servo, servo_id, error, data = said[0]
        frame = self._frame(servo_id, error, data)
        if len(said) > 1:
            frame = collide([self._frame(*words[1:]) for words in said], self._random)
        ready_ns = end_ns + servo.return_delay_ns + len(frame) * self.byte_ns
        if servo.fault == "ok" == self.line_fault and not self._last_ns:
            replies.append((ready_ns, frame))
            return ready_ns
        return self._say_badly(servo, frame, end_ns, ready_ns, replies)

    def _say_badly(self, servo: EmulatedServo, frame: bytes, end_ns: int, ready_ns: int, replies: Replies) -> int:
        """`_say` of one frame under the faults of servo and line."""
        pieces, late = [frame], False
        for verb, rate, random in (
            (servo.fault, servo.rate, servo.random), (self.line_fault, self.line_rate, self._random)
        ):  # fmt: skip
            if verb == "ok" or not pieces or (rate < 1.0 and random.random() >= rate):
                continue
            ready_ns += LATE_NS.get(verb, 0)
            late = late or verb == "delayed"
            if verb == "foreign":
                pieces = [self._readdressed(frame, servo.id)]
            elif verb == "master":
                pieces = [self._frame(random.choice(self.servos).id, 0, random.randbytes(2)), *pieces]
            elif verb == "wrong" and random is not self._random:
                continue  # the servo itself gives wrong values
            else:
                pieces = spoil("flip" if verb == "wrong" else verb, pieces[0], random)
        if not pieces:
            return end_ns
        ready_ns += (sum(map(len, pieces)) - len(frame)) * self.byte_ns
        # a servo answers its requests in order, however late it is
        ready_ns = max(ready_ns, self._last_ns.get(servo.id, 0) + len(frame) * self.byte_ns)
        self._last_ns[servo.id] = ready_ns
        replies.append((ready_ns, b"".join(pieces)))
        return end_ns if late else ready_ns

    # ---- the protocol

    def _requests(self) -> Iterator[tuple[int, bytes, int]]:
        """Whole, undamaged requests: id, instruction and parameters, index behind it. They leave `_pending` when all
        are done with."""
        done = 0
        while codec.scan(self._pending, done, len(self._pending), LONGEST, False, self._found):
            at, length, done = (int(v) for v in self._found[:3])
            yield self._pending[at + 2], bytes(self._pending[at + 4 : at + length - 1]), done
        del self._pending[: int(self._found[2])]

    def _frame(self, servo_id: int, error: int, data: bytes) -> bytes:
        """A reply as it crosses the wire."""
        frame = bytearray(len(data) + codec.OVERHEAD)
        codec.status(frame, servo_id, error, data)
        return bytes(frame)

    def _readdressed(self, frame: bytes, servo_id: int) -> bytes:
        """A reply as if another servo had given it."""
        return self._frame(servo_id + 100 & 0x7F, frame[4], frame[5:-1])

    def _answer(self, servo_id: int, instruction: int, parameters: bytes, end_ns: int, replies: Replies) -> int:
        """Obey one request whose last byte came at end_ns; returns when the line is free again."""
        listeners = self._listeners(end_ns)
        if instruction == codec.SYNC_WRITE and len(parameters) >= 2:
            for wanted, address, data in sync_rows(parameters):
                for servo in listeners.get(wanted, ()):
                    servo.write(address, data)
        elif instruction == codec.SYNC_READ and len(parameters) >= 2:
            for wanted in parameters[2:]:
                asked = listeners.get(wanted, [])
                if not asked and self.chained:
                    break
                end_ns = self._say(self._executed(asked, codec.READ, parameters[:2]), end_ns, replies)
        elif servo_id == codec.BROADCAST:
            for servo in [servo for several in listeners.values() for servo in several]:
                said = self._executed([servo], instruction, parameters)
                if instruction == codec.PING:  # one after another, or nobody could scan a bus
                    end_ns = self._say(said, end_ns, replies)
        else:
            end_ns = self._say(self._executed(listeners.get(servo_id, []), instruction, parameters), end_ns, replies)
        return end_ns

    def _executed(self, servos: Iterable[EmulatedServo], instruction: int, parameters: bytes) -> list[Said]:
        """What each of these servos answers to an instruction: with the id that it was asked by, whatever it is told
        to be called from now on."""
        said = []
        for servo in servos:
            servo_id = servo.id
            answer = servo.execute(instruction, parameters)
            if answer is not None:
                said.append((servo, servo_id, *answer))
        return said


def sync_rows(parameters: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(id, address, data) of each servo of a Feetech sync write."""
    address, width = parameters[:2]
    for at in range(2, len(parameters) - width, width + 1):
        yield parameters[at], address, parameters[at + 1 : at + 1 + width]


def _ready(reply: tuple[int, bytes]) -> int:
    return reply[0]


class FirstOrder:
    """Servos that follow their goal with a time constant, for buses without a physics engine.

    Use as `ServoBus(servos, advance=FirstOrder(servos))`. speed: [ticks/s], at most; tau: [s].
    """

    def __init__(self, servos: Sequence[EmulatedServo], *, speed: float = 3000.0, tau: float = 0.05) -> None:
        self.servos = list(servos)
        self.speed = speed
        self.tau = tau
        self.positions = [float(servo.encoder) for servo in self.servos]
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
