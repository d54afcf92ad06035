"""The computers that a plan is made for: memory, bandwidth, peaks.

Peaks are dense: vendors quote sparse figures, halved here. Memory is what is left to a process beside the system. Each
figure is of the vendor's data sheet (facts/dreamzero 7.2), in the "Super" power mode where a board has one; none was
measured here.
"""

from dataclasses import dataclass

from dzedge.errors import UsageError

GB = 10**9
TERA = 10**12


@dataclass(frozen=True, slots=True)
class Precision:
    """How a graph's numbers are held. bits: of a weight, its scales included; rows: bytes of a kept key or value;
    arithmetic: whose peak counts (weights alone are quantized: they are unpacked, and float16 multiplies)."""

    bits: float
    rows: int
    arithmetic: str


PRECISIONS = {
    "fp32": Precision(32, 4, "fp32"), "fp16": Precision(16, 2, "fp16"), "int8": Precision(8, 2, "int8"),
    "w8": Precision(8, 2, "fp16"), "w4": Precision(4.5, 2, "fp16"), "fp8": Precision(8, 2, "fp8"),
    "nvfp4": Precision(4.5, 2, "fp4"),
}  # fmt: skip
"""By the manifest's names. 4.5 bits: 4 and, for each block of 16 (nvfp4) or 32 (w4), a scale of 8 or 16."""


@dataclass(frozen=True, slots=True)
class Board:
    """memory: usable [B]; bandwidth: [B/s]; peaks: [FLOP/s] or [OP/s] by arithmetic; what is missing has no units
    for it. source: of the figures."""

    name: str
    title: str
    memory: float
    bandwidth: float
    peaks: dict[str, float]
    source: str

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those whose arithmetic it has."""
        return tuple(name for name, precision in PRECISIONS.items() if precision.arithmetic in self.peaks)


def _board(name: str, title: str, memory: float, bandwidth: float, peaks: dict[str, float], source: str) -> Board:
    return Board(name, title, memory * GB, bandwidth * GB, {key: peak * TERA for key, peak in peaks.items()}, source)


BOARDS = {
    board.name: board
    for board in (
        _board(
            "orin-nano-8", "Jetson Orin Nano 8 GB (Super)", 6.5, 102.0, {"fp16": 16.7, "int8": 33.5},
            "67 sparse INT8 TOPS, 102 GB/s: NVIDIA Jetson Orin Nano Super data sheet",
        ),
        _board(
            "orin-nx-16", "Jetson Orin NX 16 GB (Super)", 14.0, 102.0, {"fp16": 19.0, "int8": 38.0},
            "GPU share of 157 sparse INT8 TOPS, 102.4 GB/s, DLA left out: NVIDIA Jetson Orin NX Super data sheet",
        ),
        _board(
            "agx-orin-64", "Jetson AGX Orin 64 GB", 60.0, 204.8, {"fp16": 42.5, "int8": 85.0},
            "GPU share (170) of 275 sparse INT8 TOPS, 204.8 GB/s, DLA left out: NVIDIA Jetson AGX Orin data sheet",
        ),
        _board(
            "thor-128", "Jetson AGX Thor 128 GB", 122.0, 273.0, {"fp16": 258.0, "int8": 517.0, "fp8": 517.0,
            "fp4": 1035.0}, "2070 sparse FP4 TFLOPS, 273 GB/s: NVIDIA Jetson AGX Thor data sheet",
        ),
    )
}  # fmt: skip


def board(name: str) -> Board:
    """A board by its name. Raises UsageError for one that is not known."""
    if name not in BOARDS:
        raise UsageError(f"board {name!r} is unknown; known: {', '.join(BOARDS)}")
    return BOARDS[name]
