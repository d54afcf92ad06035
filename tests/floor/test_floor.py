"""The JetPack 6 floor, opt-in (`make floor`): bundles under onnxruntime 1.23.2 and numpy 2.2.6, in their own place.

The very wheel that ships is installed there, and nothing of torch or onnx. What it computes is held against this
environment's, on this machine and in this run.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dzedge.bundle import open_bundle

ROOT = Path(__file__).resolve().parents[2]
FLOOR = Path(os.environ.get("DZEDGE_FLOOR", ROOT / ".venv-floor")) / "bin" / "python"
pytestmark = pytest.mark.skipif(not FLOOR.exists(), reason="no .venv-floor: make floor")
PINS = ("1.23.2", "2.2.6")
SAME = 1e-5
"""Largest fp32 difference [rad], relative to a chunk's largest move: other kernels, other orders of sums."""
CLOSE = 0.02
"""Largest int8 difference, likewise: a sum that rounds the other way moves a whole step of a scale."""
BUNDLES = ("wam-nano", "flow-vla")


def python(*arguments: str | Path, cwd: Path, at: Path = FLOOR) -> str:
    """Standard output of a run, away from the checkout, whose folders would shadow what is installed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [str(at), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def bundle(name: str) -> Path:
    return ROOT / "bundles" / f"{name}.dzp"


def chunks(at: Path, name: str, precision: str, folder: Path) -> dict[str, Any]:
    out = folder / f"{at.parents[1].name}-{precision}.npz"
    python(Path(__file__).with_name("chunks.py"), bundle(name), precision, out, cwd=folder, at=at)
    with np.load(out) as loaded:
        return dict(loaded)


def test_is_the_floor(tmp_path: Path) -> None:
    code = (
        "import dzedge, importlib.util as u, numpy, onnxruntime as o, json;"
        "print(json.dumps([o.__version__, numpy.__version__, dzedge.__file__,"
        " [n for n in ('torch', 'onnx', 'onnxscript') if u.find_spec(n)]]))"
    )
    *versions, where, foreign = json.loads(python("-c", code, cwd=tmp_path))
    assert tuple(versions) == PINS
    assert Path(where).is_relative_to(FLOOR.parents[1]), "not the installed wheel"
    assert foreign == []


@pytest.mark.parametrize("name", BUNDLES)
def test_verifies(name: str, tmp_path: Path) -> None:
    told = json.loads(python("-m", "dzedge.cli", "bundle", "verify", bundle(name), "--json", cwd=tmp_path))
    assert told["manifest_sha256"] == open_bundle(bundle(name), allow_test_key=True).digest


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", BUNDLES)
def test_decides_the_same(name: str, precision: str, tmp_path: Path) -> None:
    graphs = open_bundle(bundle(name), allow_test_key=True).manifest.dzedge.graphs.values()
    if not any(variant.precision == precision for graph in graphs for variant in graph.variants):
        pytest.skip(f"{name} has no {precision}")
    here = chunks(Path(sys.executable), name, precision, tmp_path)
    there = chunks(FLOOR, name, precision, tmp_path)
    assert tuple(there["versions"]) == PINS != tuple(here["versions"])
    bound = SAME if precision == "fp32" else CLOSE
    for key in ("positions", "imagined"):
        if here[key].size:
            assert np.abs(there[key] - here[key]).max() <= bound * np.ptp(here[key]), key
    assert np.abs(here["positions"][0] - here["positions"][1]).max() > 0.01, "both chunks are the same"


@pytest.mark.parametrize("name", BUNDLES)
def test_drives_the_simulated_robot(name: str, tmp_path: Path) -> None:
    run = ("run", "--lockstep", "--policy", bundle(name), "--duration", "2", "--json", "--out", tmp_path / "run")
    told = json.loads(python("-m", "dzedge.cli", *run, cwd=tmp_path))
    assert told["chunks"] >= 3 and set(told["refused"]) <= {"chunk_epoch"}, "beside those of a task that is over"
    assert told["graphs"]["frame_encoder"]["provider"] == "cpu"


def test_where_operators_run_is_known_without_the_record(tmp_path: Path) -> None:
    """onnxruntime before 1.24 does not say; a profile does."""
    code = (
        "import json, sys, onnxruntime\n"
        "from dzedge import footprint; from dzedge.bundle import open_bundle; from dzedge.engine import Machine\n"
        "assert not hasattr(onnxruntime.InferenceSession, 'get_provider_graph_assignment_info')\n"
        "found = footprint.measure(open_bundle(sys.argv[1], allow_test_key=True), 'fp32', Machine.detect(1))\n"
        "print(json.dumps([one.operators for one in found]))"
    )
    found = json.loads(python("-c", code, bundle("flow-vla"), cwd=tmp_path))
    assert all(set(operators) == {"CPUExecutionProvider"} for operators in found) and len(found) >= 4
