"""ONNX Runtime on verified bytes: the right file for this machine, the required provider, bound buffers.

A graph's inputs and outputs are NumPy arrays allocated once. On a CPU they are the very memory that ONNX
Runtime reads and writes, so a run copies nothing; never write to an input while a run is under way.
"""

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dzedge.bundle import Bundle, Variant
from dzedge.errors import BundleError, PolicyError

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
Array = NDArray[Any]
KEPT = 16
"""Sessions kept for another policy of the same bundle in this process: two bundles' worth."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What graphs may be run by. ep: execution provider; isa: of the CPU; threads: for one run."""

    ep: str
    isa: str
    threads: int

    @classmethod
    def detect(cls, threads: int = 0, ep: str = "cpu") -> "Machine":
        """This machine. threads 0: one less than the cores that this process may use, at least one."""
        cores = len(os.sched_getaffinity(0))
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        return cls(ep, cpu_isa(text, platform.machine()), threads or max(1, cores - 1))


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


def choose(graph: str, variants: tuple[Variant, ...], precision: str, machine: Machine) -> Variant:
    """The variant to run. precision "auto": int8 where one is right on this machine, else the first float.

    "int8" insists where the graph has int8 variants at all. Raises BundleError when nothing fits.
    """
    fitting = [variant for variant in variants if _fits(variant, machine)]
    small = [variant for variant in fitting if variant.precision == "int8"]
    plain = [variant for variant in fitting if variant.precision != "int8"]
    quantized = any(variant.precision == "int8" for variant in variants)
    if precision in ("auto", "int8") and small:
        return small[0]
    if plain and not (precision == "int8" and quantized):
        return plain[0]
    listed = ", ".join(f"{v.file} ({v.precision}, {v.ep}, {v.isa})" for v in variants)
    raise BundleError(
        f"graph {graph}: no variant with precision {precision!r} for provider {machine.ep}, "
        f"instruction set {machine.isa}; it has: {listed}; set policy.precision, or export for this machine"
    )


def _fits(variant: Variant, machine: Machine) -> bool:
    kinds = variant.isa.split("|")
    if variant.ep != "any" and machine.ep not in variant.ep.split("|"):
        return False
    if machine.ep != "cpu":
        return "any" in kinds or "gpu" in kinds
    # int8 that claims to be right anywhere is not: on plain AVX2 its products saturate.
    if variant.precision == "int8" and "any" in kinds:
        return machine.isa in ("vnni", "neon")
    return "any" in kinds or machine.isa in kinds


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


class Graph:
    """One graph, loaded and bound.

    inputs: name -> array to write before a run; outputs: name -> array that a run fills; the arrays stay the
    same ones. name, model: for errors, and the verified bytes. share: arrays to use instead of own ones, so
    that one graph's output is another's input (never of the same run).

    Raises BundleError for bytes that are no graph or when the required provider cannot run it.
    """

    def __init__(self, name: str, model: bytes, machine: Machine, share: Mapping[str, Array] | None = None) -> None:
        self.name = name
        self.session = _session(name, model, machine)
        self._ort = runtime()
        shared = share or {}
        self.inputs = {node.name: self._buffer(node, shared) for node in self.session.get_inputs()}
        self.outputs = {node.name: self._buffer(node, shared) for node in self.session.get_outputs()}
        values = {**self.inputs, **self.outputs}
        self._values = {key: self._ort.OrtValue.ortvalue_from_numpy(array) for key, array in values.items()}
        self._all = self.bind(*self.outputs)

    def run(self) -> None:
        """Fill all outputs from the inputs."""
        self._all.run()

    def bind(self, *outputs: str) -> "Pass":
        """A run that computes only these outputs."""
        binding = self.session.io_binding()
        for key in self.inputs:
            binding.bind_ortvalue_input(key, self._values[key])
        for key in outputs:
            binding.bind_ortvalue_output(key, self._values[key])
        return Pass(self.session, binding)

    def expect(self, inputs: Mapping[str, tuple[int, ...]], outputs: Mapping[str, tuple[int, ...]]) -> None:
        """Check names and shapes against what the manifest promises. Raises BundleError."""
        for kind, wanted, found in (("input", inputs, self.inputs), ("output", outputs, self.outputs)):
            if set(wanted) != set(found):
                raise BundleError(
                    f"graph {self.name}: {kind}s are {sorted(found)}, wanted {sorted(wanted)}; export again"
                )
            for key, shape in wanted.items():
                if found[key].shape != shape:
                    raise BundleError(
                        f"graph {self.name}: {kind} {key!r} has shape {found[key].shape}, the manifest says "
                        f"{shape}; export it again"
                    )

    def _buffer(self, node: Any, shared: Mapping[str, Array]) -> Array:
        dtype, shape = DTYPES.get(node.type), node.shape
        if dtype is None or not all(isinstance(n, int) and n > 0 for n in shape):
            raise BundleError(
                f"graph {self.name}: {node.name!r} is {node.type} {shape}; "
                "only static float32 and int64 tensors cross a graph's boundary; export it again"
            )
        if node.name not in shared:
            return np.zeros(shape, dtype)
        array = shared[node.name]
        if array.shape != tuple(shape) or array.dtype != dtype or not array.flags.c_contiguous:
            raise BundleError(
                f"graph {self.name}: {node.name!r} is {np.dtype(dtype)} {tuple(shape)}, its other graph has "
                f"{array.dtype} {array.shape}; export both again"
            )
        return array


class Pass:
    """A bound run of a graph: `run()` and nothing else to do."""

    __slots__ = ("_binding", "_run")

    def __init__(self, session: Any, binding: Any) -> None:
        self._binding = binding
        self._run = session.run_with_iobinding

    def run(self) -> None:
        self._run(self._binding)


def load_graph(
    bundle: Bundle, name: str, precision: str, machine: Machine, share: Mapping[str, Array] | None = None
) -> Graph:
    """The graph `name` of a bundle in the variant for this machine. Raises BundleError."""
    graphs = bundle.manifest.dzedge.graphs
    if name not in graphs:
        raise BundleError(f"{bundle.name}: no graph {name!r}; it has: {', '.join(graphs)}")
    variant = choose(name, graphs[name].variants, precision, machine)
    return Graph(name, bundle.read(variant.file), machine, share)


class Noise:
    """Philox noise, one stream for each chunk: the same on every machine, and for every chunk another.

    The generator is re-keyed in place: making one costs fifteen times as much (15 us here, and more in the middle
    of a chunk, when its code is in no cache).
    """

    def __init__(self, seed: int) -> None:
        self._philox = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64))
        self._generator = np.random.Generator(self._philox)
        self._state = self._philox.state

    def of(self, chunk_id: int) -> np.random.Generator:
        """The generator of one chunk, at its beginning: Philox(key=[seed, chunk_id]). Valid until the next call."""
        self._state["state"]["key"][1] = chunk_id
        self._philox.state = self._state
        return self._generator


@lru_cache(maxsize=KEPT)
def _session(name: str, model: bytes, machine: Machine) -> Any:
    """A session, or the one made before of the same bytes: it has no state, and making it costs a hundred runs."""
    ort = runtime()
    provider = PROVIDERS[machine.ep]
    options = ort.SessionOptions()
    options.intra_op_num_threads = machine.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    # A spinning pool starves the control loop on a full machine (twice slower there, and nothing gained).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if machine.ep != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if provider not in ort.get_available_providers():
        raise PolicyError(
            f"provider {provider} is not in this ONNX Runtime ({ort.__version__}: "
            f"{', '.join(ort.get_available_providers())}); install the build that has it"
        )
    try:
        session = ort.InferenceSession(model, options, providers=[provider])
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        raise BundleError(
            f"graph {name}: ONNX Runtime {ort.__version__} on {provider} cannot load it: "
            f"{str(error).strip()[:300]}; export it again for this runtime"
        ) from error
    if session.get_providers()[0] != provider:
        raise PolicyError(
            f"graph {name}: runs on {session.get_providers()[0]} instead of the required {provider}; "
            "repair the driver, or choose another provider"
        )
    return session
