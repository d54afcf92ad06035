"""The shape of the code base: who may import whom, and what no file may do."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 400
LONGER = {"dzedge.kernels.chunk": 900, "dzedge.kernels.limiter": 650, "dzedge.kernels.image": 500}
"""Lines of a file that has a reason: a kernel is one unit of compilation, calls across two are never inlined."""
FOLDERS = {"dzedge": "dzedge", "kernels": "dzedge.kernels", "hardware": "dzedge.hardware", "export": "dzedge.export"}
EXPORT = 99
LEVELS = {
    0: ("", "errors", "clock", "types", "section", "robots", "bundles"),
    1: ("kernels", "strict", "minisign", "canvas", "manifest", "proportion", "machine", "graph_cache",
        "container", "onnx_check", "tensors", "arm_config", "camera_config", "time_code", "half_blocks"),
    2: ("config", "bundle", "latency", "precision", "session", "prompts"),
    3: ("hardware", "engine", "mailboxes", "realtime", "robot", "conditions", "packing"),
    4: ("policies", "observation", "trajectory", "safety", "history", "stage", "arm_session", "arm_view", "prompt",
        "demonstration", "dream", "suite", "footprint", "check", "viewfinder"),
    5: ("capture_loop", "inference_loop", "control_loop", "sim_loop", "picture", "golden", "glass",
        "doctor_serial", "doctor_cameras"),
    6: ("supervisor", "lockstep", "evaluate", "doctor", "report", "simulator", "console",
        "foresight", "filmstrip", "comparison"),
    7: ("arm_guide", "arm_calibrate"),
    8: ("arm_commands", "camera_commands", "bundle_commands", "sim_commands"),
    9: ("cli",),
    EXPORT: ("export",),
}
TOGETHER = ("hardware", "policies", "export")
"""Folders whose files may import each other."""
READS_TIME = {
    "time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "clock_gettime",
    "clock_gettime_ns", "process_time", "process_time_ns",
}  # fmt: skip


def sources() -> Iterator[tuple[str, Path]]:
    """(module, file) of every Python file of the package."""
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join([package, *(part for part in parts if part != "__init__")]), path


SOURCES = dict(sources())


def top(module: str) -> str:
    """`dzedge.hardware.sim.world` -> `hardware`."""
    return module.split(".")[1] if "." in module else ""


def level(module: str) -> int:
    return next(number for number, names in LEVELS.items() if top(module) in names)


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports, wherever it does; `from package import module` counts as the module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = str(node.module)
            found = [f"{base}.{alias.name}" for alias in node.names]
            yield from (name if name in SOURCES else base for name in found)


def each(check):
    return pytest.mark.parametrize("module", SOURCES)(check)


@each
def test_every_file_has_a_level(module):
    assert any(top(module) in names for names in LEVELS.values()), f"{module}: name its level in LEVELS"


@each
def test_imports_only_from_lower_levels(module):
    for wanted in imports(SOURCES[module]):
        if wanted.split(".")[0] != "dzedge":
            continue
        same = top(wanted) == top(module) and top(module) in TOGETHER
        assert same or level(wanted) < level(module), f"{module} (level {level(module)}) imports {wanted}"


@each
def test_nobody_imports_export(module):
    if top(module) != "export":
        assert not any(top(wanted) == "export" for wanted in imports(SOURCES[module]) if "dzedge" in wanted)


@each
def test_kernels_import_nothing_of_ours(module):
    if top(module) == "kernels":
        assert not [wanted for wanted in imports(SOURCES[module]) if wanted.split(".")[0] == "dzedge"]


@each
def test_files_are_short(module):
    lines = len(SOURCES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= LONGER.get(module, LONGEST), f"{module} has {lines} lines"


@each
def test_no_pickle_and_torch_only_in_export(module):
    roots = {wanted.split(".")[0] for wanted in imports(SOURCES[module])}
    assert not roots & {"pickle", "cPickle", "dill", "shelve", "marshal"}
    if top(module) != "export":
        assert not roots & {"torch", "onnx", "onnxscript", "scipy", "matplotlib", "pandas"}


@each
def test_only_the_clock_reads_time(module):
    if module == "dzedge.clock" or top(module) == "export":
        return
    for node in ast.walk(ast.parse(SOURCES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            named = (node.value.id, node.attr)
            assert not (named[0] == "time" and named[1] in READS_TIME), f"{module}:{node.lineno} reads time"
            assert named not in {("datetime", "now"), ("date", "today")}, f"{module}:{node.lineno} reads time"
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            assert not READS_TIME & {alias.name for alias in node.names}, f"{module}:{node.lineno} reads time"


def test_running_a_robot_loads_no_torch():
    loops = "capture_loop inference_loop control_loop sim_loop supervisor lockstep report console cli doctor"
    code = (
        "import importlib, sys\n"
        f"for name in {loops.split()!r}: importlib.import_module('dzedge.' + name)\n"
        "assert 'torch' not in sys.modules and 'onnx' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True, timeout=60)


def test_help_loads_nothing_heavy():
    heavy = {"numpy", "onnxruntime", "mujoco", "PIL", "pyrealsense2", "msgspec", "cryptography"}
    code = f"import sys, dzedge.cli; found = {heavy!r} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-I", "-c", code], check=True, timeout=60)
