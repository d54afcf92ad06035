"""What graphs may be run by: a provider of ONNX Runtime, the processor's int8 arithmetic, threads."""

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from dzedge.errors import PolicyError

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""ONNX Runtime's names of what a robot file calls `policy.provider`."""
SAME_CPU = ("vendor_id", "model name", "flags", "CPU implementer", "CPU part", "Features")
"""Keys of /proc/cpuinfo that decide which kernels ONNX Runtime chooses."""
SAME_GPU = ("/proc/device-tree/model", "/proc/driver/nvidia/version", "/etc/nv_tegra_release")
GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True, slots=True)
class Machine:
    """What graphs may be run by. ep: execution provider; isa: of the CPU; threads: for one run.

    cuda_graph: replay each run as one captured CUDA graph; cache: keep optimized graphs and engines between starts;
    in_float: compute 8-bit arithmetic in float, rounded as the graph says: what a board's int8 gives, on any processor.
    """

    ep: str
    isa: str
    threads: int
    cuda_graph: bool = False
    cache: bool = False
    in_float: bool = False

    @classmethod
    def detect(cls, threads: int = 0, ep: str = "cpu", cuda_graph: bool = False, cache: bool = False) -> "Machine":
        """This machine. threads 0: one less than the cores that this process may use, at least one."""
        cores = len(os.sched_getaffinity(0))
        return cls(ep, cpu_isa(_cpuinfo(), platform.machine()), threads or max(1, cores - 1), cuda_graph, cache)


def cpu_isa(cpuinfo: str, architecture: str) -> str:
    """Which int8 arithmetic is right here: "vnni", "avx2", "neon" or "plain".

    Without VNNI an x86 multiplies u8 by s8 into 16 bits that saturate (17 % error against 2 %; ONNX Runtime's
    quantization page), so only weights of reduced range are right on "avx2".
    """
    flags: set[str] = set()
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags.update(value.split())
    if architecture in ("x86_64", "AMD64"):
        if flags & {"avx512_vnni", "avx_vnni"}:
            return "vnni"
        return "avx2" if "avx2" in flags else "plain"
    return "neon" if "asimddp" in flags else "plain"


def device(ep: str) -> str:
    """The hardware and drivers that a provider's own files are made for, as text: equal texts, equal devices."""
    seen: dict[str, None] = {}
    for line in _cpuinfo().splitlines():
        if line.partition(":")[0].strip() in SAME_CPU:
            seen.setdefault(" ".join(line.split()))
    if ep != "cpu":
        files = [*map(Path, SAME_GPU), *sorted(GPUS.glob("*/information"))]
        seen |= dict.fromkeys(f"{file}: {_text(file)}" for file in files)
    return "\n".join([platform.machine(), *seen])


def runtime() -> ModuleType:
    """The onnxruntime module. Raises PolicyError where it is missing or broken, with what to install."""
    try:
        import onnxruntime
    except ImportError as error:
        raise PolicyError(
            "ONNX Runtime is not installed: pip install 'dzedge[cpu]', or [cuda] on x86-64 with an NVIDIA "
            "GPU; on a Jetson the board's own build"
        ) from error
    if not hasattr(onnxruntime, "__version__"):
        raise PolicyError(
            "ONNX Runtime is broken: onnxruntime and onnxruntime-gpu own the same module and one was removed "
            "over the other; uninstall both, then install one"
        )
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
    if len(both) > 1:
        raise PolicyError(
            f"{' and '.join(both)} own the same module and are both here; uninstall both, then install one"
        )
    module: ModuleType = onnxruntime
    return module


def _installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _cpuinfo() -> str:
    return _text(Path("/proc/cpuinfo"))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip("\0\n")
    except OSError:
        return ""
