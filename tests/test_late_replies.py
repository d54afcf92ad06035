"""Late replies and damaged streams in small numbers; the full ones: late_replies.py, fuzz_codec.py beside this file."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dzedge.hardware.dynamixel_bus import DynamixelBus
from dzedge.hardware.transactions import ALLOWANCE_NS, Transactions
from dzedge.kernels import codec_dynamixel


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


late, fuzz = script("late_replies"), script("fuzz_codec")


@pytest.mark.parametrize("protocol", late.PROTOCOLS)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_cycle_believes_none(protocol: str, seed: int) -> None:
    seen = late.in_memory(protocol, 8000, seed)
    assert seen.late >= 8000 and seen.believed == 0 and seen.fresh > 1000


class Forgetful:
    """A cycle that drains its input and remembers nothing of the cycles before."""

    def __init__(self, protocol: str) -> None:
        self._protocol, self._made = protocol, CYCLE(protocol)

    def request(self, now_ns: int) -> bytes:
        self._made = CYCLE(self._protocol)
        return self._made.request(now_ns)

    def cycle(self, fd: int, deadline_ns: int) -> int:
        self._made = CYCLE(self._protocol)
        return self._made.cycle(fd, deadline_ns)

    def __getattr__(self, name: str) -> object:
        return getattr(self._made, name)


CYCLE = late.cycle


@pytest.mark.parametrize("protocol", late.PROTOCOLS)
def test_a_cycle_that_remembers_nothing_would(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial itself can fail."""
    forgetful = Forgetful(protocol)
    monkeypatch.setattr(late, "cycle", lambda protocol: forgetful)
    assert late.in_memory(protocol, 2000, 1).believed > 100


@pytest.mark.parametrize("protocol", late.PROTOCOLS)
def test_single_reads_believe_none(protocol: str) -> None:
    seen = late.tools(protocol, 1500, 3)
    assert seen.late >= 1500 and seen.believed == 0 and seen.fresh > 500


@pytest.mark.parametrize("protocol", late.PROTOCOLS)
def test_single_reads_that_settle_nothing_would(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial itself can fail."""
    monkeypatch.setattr(Transactions, "settle", lambda self, servo: True)
    assert late.tools(protocol, 500, 3).believed > 20


class Refusing(late.MemoryPort):
    """A Dynamixel that refuses to be written to: so much later than it answers reads."""

    def __init__(self, delay_ns: int) -> None:
        super().__init__("dynamixel", late.Link(0, late.PERIOD_NS), late.Count())
        self.delay_ns = delay_ns

    def write(self, data: bytes) -> None:
        out, read = bytearray(64), data[7] == codec_dynamixel.READ
        self.number += 1
        ready_ns = self.time_ns + (late.PROMPT_NS if read else self.delay_ns)
        if self._queue:
            ready_ns = max(ready_ns, self._queue[-1][0] + 1000)
        refusal = bytes(out[: codec_dynamixel.status(out, 1, 4, b"")])
        self._queue.append((ready_ns, self.number, self._reply(data) if read else refusal))


@pytest.mark.parametrize("late_ns", [0, 1_000_000, 2_000_000])
def test_a_late_refusal_answers_nothing_that_was_asked_since(late_ns: int) -> None:
    port = Refusing(ALLOWANCE_NS + late_ns)
    bus = DynamixelBus(port, clock=port)
    bus.ask(bus.frames.write(1, 116, bytes(4)), {1: 0})
    assert bus.read(1, 146, 1).data == b"\x92"


@pytest.mark.parametrize("protocol", late.PROTOCOLS)
def test_on_a_pty(protocol: str) -> None:
    seen = late.on_pty(protocol, 200, 4)
    assert seen.late >= 200 and seen.believed == 0


def test_on_a_pty_the_forgetful_cycle_believes_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial itself can fail."""
    monkeypatch.setattr(late, "cycle", Forgetful)
    assert late.on_pty("dynamixel", 600, 5).believed > 10


@pytest.mark.parametrize("protocol", fuzz.CODECS)
def test_damage_costs_at_most_one_good_frame(protocol: str) -> None:
    fuzzer = fuzz.Fuzzer(protocol, 1)
    fuzzer.run(60_000)
    assert fuzzer.streams == 60_000 and fuzzer.worst <= 1
    assert fuzzer.spared > 100_000
    assert fuzzer.lost < (200 if protocol == "feetech" else 1)
