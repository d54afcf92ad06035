"""ONNX Runtime on verified bytes: the right file for this machine, the required provider, bound buffers.

A graph's inputs and outputs are NumPy arrays allocated once. On a CPU they are the very memory that ONNX
Runtime reads and writes, so a run copies nothing; never write to an input while a run is under way. On a GPU
each has a twin there: a run copies inputs there and outputs back, and of what one graph hands to another nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from dzedge.bundle import Bundle, Variant
from dzedge.errors import BundleError
from dzedge.machine import Machine, cpu_isa, runtime
from dzedge.precision import check_offered, choose, choose_all
from dzedge.session import DTYPES, fresh, session

__all__ = [
    "Graph", "Machine", "Noise", "Pass", "choose", "cpu_isa", "load_graph", "runtime", "variants",
]  # fmt: skip

DEVICES = {"cuda": "cuda", "tensorrt": "cuda"}
"""Where buffers live for a provider that has memory of its own."""
Array = NDArray[Any]


class Graph:
    """One graph, loaded and bound.

    inputs: name -> array to write before a run; outputs: name -> array that a run fills; the arrays stay the
    same ones. name, model: for errors, and the verified bytes. share: arrays to use instead of own ones, so
    that one graph's output is another's input (never of the same run).

    On a GPU what is shared stays there: the array of an input that another graph fills can no longer be written, and
    an output that was given another graph's input does not come back to the host.

    Raises BundleError for bytes that are no graph, PolicyError when the required provider cannot run all of it.
    """

    def __init__(self, name: str, model: bytes, machine: Machine, share: Mapping[str, Array] | None = None) -> None:
        self.name = name
        self._device = DEVICES.get(machine.ep)
        # TensorRT captures one run of a session: another graph's buffers would be replayed into this one's.
        self._alone = machine.cuda_graph and machine.ep == "tensorrt"
        self._capture = machine.cuda_graph
        self.session = (fresh if self._alone else session)(name, model, machine).onnx
        shared = share or {}
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        self.inputs = {node.name: self._buffer(node, shared) for node in inputs}
        self.outputs = {node.name: self._buffer(node, shared) for node in outputs}
        self._own = {node.name for node in (*inputs, *outputs)} - set(shared)
        values = {**self.inputs, **self.outputs}
        self._values = {key: _value(array, self._device) for key, array in values.items()}
        for key in self.outputs:
            self._values[key].filled = True
        for key in shared:
            if key in self._values:
                self._values[key].guard()
        self._all = self.bind(*self.outputs)

    @property
    def nbytes(self) -> int:
        """Of the buffers that this graph brought along [bytes]."""
        values = self.inputs | self.outputs
        return sum(values[key].nbytes for key in self._own)

    def run(self) -> None:
        """Fill all outputs from the inputs."""
        self._all.run()

    def bind(self, *outputs: str) -> "Pass":
        """A run that computes only these outputs (all of them where TensorRT replays a captured run)."""
        wanted = tuple(self.outputs) if self._alone else outputs
        binding = self.session.io_binding()
        for key in self.inputs:
            binding.bind_ortvalue_input(key, self._values[key].ort)
        for key in wanted:
            binding.bind_ortvalue_output(key, self._values[key].ort)
        if self._device is None:
            return Pass(self.session, binding)
        options = runtime().RunOptions()
        if self._capture:
            options.add_run_config_entry("gpu_graph_id", str(next(CAPTURES)))
        there = [self._values[key] for key in self.inputs]
        back = [self._values[key] for key in wanted if key in self._own]
        return DevicePass(self.session, binding, options, there, back)

    def get(self, name: str) -> Array:
        """What an input or an output holds, also one that stays on a device; a copy."""
        kept = self._values[name]
        if kept.twin and kept.filled:
            kept.download()
        return kept.memory.copy()

    def put(self, name: str, value: Array) -> None:
        """Set an input or an output, also one that graphs share, instead of the graph that would fill it."""
        kept = self._values[name]
        kept.memory[...] = value
        kept.send()

    def keep(self, *inputs: str) -> None:
        """Large inputs that seldom change: on a device they are copied there by `send`, not before every run."""
        for key in inputs:
            self._values[key].kept = True

    def send(self, *inputs: str) -> None:
        """Copy what the host wrote into inputs that are kept to the device. Nothing to do on a CPU."""
        for key in inputs:
            self._values[key].send()

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


@dataclass(eq=False)
class Value:
    """An array and what ONNX Runtime knows it as: the same memory, or a twin on a device.

    memory: a view that may always be written; filled: some graph's output; kept: sent by the host when it likes.
    """

    array: Array
    memory: Array
    ort: Any
    twin: bool
    filled: bool = False
    kept: bool = False

    def guard(self) -> None:
        """Two graphs share it: what the host wrote there would never reach the device."""
        if self.twin and self.filled:
            self.array.flags.writeable = False

    def upload(self) -> None:
        if not self.filled and not self.kept:
            self.ort.update_inplace(self.memory)

    def send(self) -> None:
        if self.twin:
            self.ort.update_inplace(self.memory)

    def download(self) -> None:
        np.copyto(self.memory, self.ort.numpy())


CAPTURES = count(1)
"""Ids of captured runs: ONNX Runtime would replay one with another's buffers if two had the same."""
_TWINS: WeakValueDictionary[int, Value] = WeakValueDictionary()
"""By the id of the array, which the twin keeps alive: a graph that shares it finds the same twin."""


def _value(array: Array, device: str | None) -> Value:
    ort = runtime()
    if device is None:
        return Value(array, array, ort.OrtValue.ortvalue_from_numpy(array), twin=False)
    known = _TWINS.get(id(array))
    if known is None:
        there = ort.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype, device, 0)
        known = _TWINS[id(array)] = Value(array, array.view(), there, twin=True)
        known.ort.update_inplace(array)
    return known


class Pass:
    """A bound run of a graph: `run()` and nothing else to do."""

    __slots__ = ("_binding", "_run")

    def __init__(self, session: Any, binding: Any) -> None:
        self._binding = binding
        self._run = session.run_with_iobinding

    def run(self) -> None:
        self._run(self._binding)


class DevicePass(Pass):
    """The same on a device. there: to be copied to it before, unless a graph fills them; back: copied from it after."""

    __slots__ = ("_back", "_options", "_there")

    def __init__(self, session: Any, binding: Any, options: Any, there: list[Value], back: list[Value]) -> None:
        super().__init__(session, binding)
        self._options, self._there, self._back = options, there, back

    def run(self) -> None:
        for value in self._there:
            value.upload()
        self._run(self._binding, self._options)
        for value in self._back:
            value.download()


def variants(bundle: Bundle, precision: str, machine: Machine) -> dict[str, Variant]:
    """Which file of each graph runs here. Raises BundleError."""
    return choose_all(bundle.manifest.dzedge.graphs, precision, machine, bundle.name)


def load_graph(
    bundle: Bundle, name: str, precision: str, machine: Machine, share: Mapping[str, Array] | None = None
) -> Graph:
    """The graph `name` of a bundle in the variant for this machine. Raises BundleError."""
    graphs = bundle.manifest.dzedge.graphs
    if name not in graphs:
        raise BundleError(f"{bundle.name}: no graph {name!r}; it has: {', '.join(graphs)}")
    check_offered(graphs, precision, bundle.name)
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
