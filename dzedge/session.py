"""Sessions of ONNX Runtime: made with the required provider or not at all, and asked what really ran where.

Made once for the same bytes and machine: a session has no state, and making it costs a hundred runs.
"""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dzedge import machine as machines
from dzedge.errors import BundleError, PolicyError
from dzedge.graph_cache import LARGEST, GraphCache
from dzedge.machine import PROVIDERS, Machine

KEPT = 16
"""Sessions kept for another policy of the same bundle in this process: two bundles' worth."""
LISTED = 8
"""Operators that a refusal names."""
DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
RECORD, NO_FALLBACK = "session.record_ep_graph_assignment_info", "session.disable_cpu_ep_fallback"
IN_FLOAT = "session.disable_quant_qdq"


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of a graph as ONNX Runtime was going to run it."""

    name: str
    kind: str
    provider: str

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}) on {self.provider}"


@dataclass(frozen=True, slots=True)
class Session:
    """A loaded graph. onnx: ONNX Runtime's session; cached: whether it came optimized from this machine's cache;
    operators: where each runs, as far as this ONNX Runtime tells without a run (see `placement`)."""

    onnx: Any
    cached: bool
    operators: tuple[Operator, ...] | None


def session(name: str, model: bytes, machine: Machine) -> Session:
    """A session for `model`, or the one made before. name: of the graph, for errors.

    Raises PolicyError for a provider that is not there or does not run every operator, and for a cache folder that
    TensorRT needs and others may write to; BundleError for bytes that are no graph for it.
    """
    return _made(name, model, machine)


def fresh(name: str, model: bytes, machine: Machine) -> Session:
    """The same, made anew."""
    ort, provider = machines.runtime(), PROVIDERS[machine.ep]
    if provider not in ort.get_available_providers():
        raise PolicyError(
            f"provider {provider} is not in this ONNX Runtime ({ort.__version__}: "
            f"{', '.join(ort.get_available_providers())}); install the build that has it"
        )
    cache = _cache(machine)
    if cache is None:
        return _create(name, model, machine)
    key = _key(model, machine, ort.__version__)
    if machine.ep == "tensorrt":
        with cache.engines(key) as folder:
            return _create(name, model, machine, engines=folder)
    return _optimized(name, model, machine, cache, key)


_made = lru_cache(maxsize=KEPT)(fresh)


def forget() -> None:
    """Let the sessions go that no graph holds any more."""
    _made.cache_clear()


def placement(name: str, model: bytes, machine: Machine) -> tuple[Operator, ...]:
    """Where each operator of a graph runs. An ONNX Runtime that does not tell (before 1.24) is asked by a run with its
    profiler on. Raises as `session`."""
    loaded = session(name, model, machine)
    return _profiled(name, model, machine) if loaded.operators is None else loaded.operators


# ------------------------------------------------------------------------ cache


def _cache(machine: Machine) -> GraphCache | None:
    """The cache, where it is wanted. Without it a start takes a moment longer, with TensorRT minutes: that one must
    say why."""
    try:
        return GraphCache.of_this_machine() if machine.cache else None
    except PolicyError:
        if machine.ep == "tensorrt":
            raise
        return None


def _key(model: bytes, machine: Machine, version: str) -> str:
    """Equal keys, equal optimized graphs: threads do not matter to them."""
    parts = [version, machine.ep, str(machine.cuda_graph), str(machine.in_float), machines.device(machine.ep)]
    parts.append(hashlib.sha256(model).hexdigest())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _optimized(name: str, model: bytes, machine: Machine, cache: GraphCache, key: str) -> Session:
    """From the cache, or made and put there. What was kept is bit for bit the graph that would be made again."""
    kept = cache.read(key)
    if kept is not None:
        try:
            return _create(name, kept, machine, optimized=True)
        except BundleError:
            cache.drop(key)
    if len(model) > LARGEST:
        return _create(name, model, machine)
    with cache.scratch() as file:
        try:
            made = _create(name, model, machine, optimized_to=file)
            cache.write(key, file.read_bytes())
        except (BundleError, OSError):  # a graph that cannot be written, or a full disk: it may run all the same
            return _create(name, model, machine)
    return made


# --------------------------------------------------------------------- creation


def _create(
    name: str,
    model: bytes,
    machine: Machine,
    *,
    optimized: bool = False,
    optimized_to: Path | None = None,
    engines: Path | None = None,
) -> Session:
    """A session in which nothing runs anywhere but where it should. optimized: `model` is so already; optimized_to:
    where to write it when it is; engines: TensorRT's folder."""
    ort, provider = machines.runtime(), PROVIDERS[machine.ep]
    options = _options(machine)
    if optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized_to is not None:
        options.optimized_model_filepath = str(optimized_to)
    if machine.ep != "cpu":
        options.add_session_config_entry(NO_FALLBACK, "1")
    try:
        made = ort.InferenceSession(model, options, providers=providers(machine, engines), enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        if machine.ep != "cpu":
            _refuse(name, _elsewhere(_fallen(name, model, machine), machine), machine)
        raise BundleError(
            f"graph {name}: ONNX Runtime {ort.__version__} on {provider} cannot load it: "
            f"{str(error).strip()[:300]}; export it again for this runtime"
        ) from error
    _check_provider(name, made, machine)
    operators = _recorded(made)
    if operators is not None:
        _refuse(name, _elsewhere(operators, machine), machine)
    return Session(made, optimized, operators)


def providers(machine: Machine, engines: Path | None = None) -> list[tuple[str, dict[str, str]]]:
    """Execution providers with their options. engines: where TensorRT keeps engines and timings.

    fp16 and int8 are in the graph's own types: TensorRT 11 has no flags for them any more, and without flags the
    provider builds strongly typed networks. What TensorRT does not know runs on CUDA, and is reported.
    """
    cuda = {"enable_cuda_graph": "1"} if machine.cuda_graph and machine.ep == "cuda" else {}
    if machine.ep == "cpu":
        return [(PROVIDERS["cpu"], {})]
    if machine.ep == "cuda":
        return [(PROVIDERS["cuda"], cuda)]
    options = {"trt_cuda_graph_enable": "1"} if machine.cuda_graph else {}
    if engines is not None:
        options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(engines)}
        options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": str(engines)}
    return [(PROVIDERS["tensorrt"], options), (PROVIDERS["cuda"], cuda)]


def _options(machine: Machine) -> Any:
    ort = machines.runtime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = machine.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    # A spinning pool starves the control loop on a full machine (twice slower there, and nothing gained).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry(RECORD, "1")
    if machine.in_float:
        options.add_session_config_entry(IN_FLOAT, "1")
    return options


# -------------------------------------------------------------------- placement


def elsewhere(operators: tuple[Operator, ...], machine: Machine) -> tuple[Operator, ...]:
    """Operators that do not run on the provider that was asked for."""
    return tuple(one for one in operators if one.provider != PROVIDERS[machine.ep])


def counts(operators: tuple[Operator, ...]) -> dict[str, int]:
    """How many operators each provider runs."""
    return dict(Counter(one.provider for one in operators))


def _elsewhere(operators: tuple[Operator, ...], machine: Machine) -> tuple[Operator, ...]:
    """Those whose place is refused: with TensorRT, CUDA may help as long as TensorRT runs something."""
    away = elsewhere(operators, machine)
    if machine.ep == "tensorrt" and len(away) < len(operators):
        return tuple(one for one in away if one.provider != PROVIDERS["cuda"])
    return away


def _refuse(name: str, away: tuple[Operator, ...], machine: Machine) -> None:
    if away:
        more = f" and {len(away) - LISTED} more" if len(away) > LISTED else ""
        raise PolicyError(
            f"graph {name}: {len(away)} operators do not run on {PROVIDERS[machine.ep]}: "
            f"{', '.join(map(str, away[:LISTED]))}{more}; export it for this provider, or choose another one"
        )


def _check_provider(name: str, made: Any, machine: Machine) -> None:
    """A build that lists a provider and cannot load it runs on another without a word."""
    if made.get_providers()[0] != PROVIDERS[machine.ep]:
        raise PolicyError(
            f"graph {name}: runs on {made.get_providers()[0]} instead of the required {PROVIDERS[machine.ep]}; "
            "repair the driver, or choose another provider"
        )


def _recorded(made: Any) -> tuple[Operator, ...] | None:
    """What ONNX Runtime noted when it laid the graph out; None where it does not (before 1.24)."""
    if not hasattr(made, "get_provider_graph_assignment_info"):
        return None
    parts = made.get_provider_graph_assignment_info()
    return tuple(Operator(n.name, n.op_type, part.ep_name) for part in parts for n in part.get_nodes())


def _fallen(name: str, model: bytes, machine: Machine) -> tuple[Operator, ...]:
    """Where the operators of a graph would run that was refused; () where it cannot be loaded at all."""
    try:
        made = machines.runtime().InferenceSession(
            model, _options(machine), providers=providers(machine), enable_fallback=0
        )
    except Exception:  # then the first error tells more
        return ()
    _check_provider(name, made, machine)
    operators = _recorded(made)
    return _profiled(name, model, machine) if operators is None else operators


def _profiled(name: str, model: bytes, machine: Machine) -> tuple[Operator, ...]:
    """Where operators ran, from the profile of one run on zeros. Raises BundleError."""
    with tempfile.TemporaryDirectory() as folder:
        options = _options(machine)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            made = machines.runtime().InferenceSession(
                model, options, providers=providers(machine), enable_fallback=0
            )
            made.run(None, {node.name: np.zeros(node.shape, DTYPES[node.type]) for node in made.get_inputs()})
            events = json.loads(Path(made.end_profiling()).read_bytes())
        except Exception as error:
            what = str(error).strip()[:300]
            raise BundleError(f"graph {name}: cannot be profiled: {what}; export it again") from error
    return tuple(_operators(events))


def _operators(events: list[dict[str, Any]]) -> Iterator[Operator]:
    suffix = "_kernel_time"
    for event in events:
        if event.get("cat") == "Node" and str(event["name"]).endswith(suffix):
            yield Operator(event["name"].removesuffix(suffix), event["args"]["op_name"], event["args"]["provider"])
