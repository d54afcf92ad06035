"""NVIDIA's quantizer in its own environment: what it is asked, what its failures become, and, where that environment
is (`make modelopt`), what it really makes."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from dzedge.errors import UsageError
from dzedge.export import parity, quantize_modelopt

REAL = Path(__file__).parents[1] / quantize_modelopt.PYTHON
COPIES = """#!{python}
import json, pathlib, shutil, sys
flag, script, path = sys.argv[1:]
job = json.loads(pathlib.Path(path).read_text())
pathlib.Path({told!r}).write_text(json.dumps(job | {{"flag": flag, "script": script}}))
shutil.copy(job["source"], job["target"])
"""
FAILS = """#!{python}
import sys
sys.exit("no kernel of that kind: {told}")
"""


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A wide matrix, a narrow one."""
    text = """<ir_version: 10, opset_import: ["": 20]>
        g (float[3,64] x) => (float[3,8] y) { wide = MatMul(x, w_wide)  y = MatMul(wide, w_narrow) }"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("w_wide", (64, 64)), ("w_narrow", (64, 8))):
        weights = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    model.graph.node[0].name, model.graph.node[1].name = "first", "second"
    path = tmp_path / "video_step.fp32.onnx"
    onnx.save(model, str(path))
    return path


def feeds(count: int) -> dict[str, list[dict[str, np.ndarray]]]:
    rng = np.random.default_rng(1)
    return {"video_step": [{"x": rng.standard_normal((3, 64)).astype(np.float32)} for _ in range(count)]}


def interpreter(folder: Path, body: str) -> Path:
    path = folder / "python"
    path.write_text(body.format(python=sys.executable, told=str(folder / "told.json")))
    path.chmod(0o755)
    return path


def test_asks_for_the_trunk_alone_and_apart(graph: Path, tmp_path: Path) -> None:
    python = interpreter(tmp_path, COPIES)
    found = quantize_modelopt.build({"video_step": graph, "text": graph}, feeds(2), ("fp8",), python)
    (variant,) = found.pop("video_step")
    assert not found
    assert (variant.precision, variant.ep, variant.isa) == ("fp8", "tensorrt", "gpu")
    assert graph.with_name(variant.file).exists()
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["nodes"] == ["first"]
    assert (told["flag"], told["precision"], told["rest"]) == ("-I", "fp8", "fp16")


def test_failures_are_passed_on(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(quantize_modelopt.ModelOptError, match=r"video_step\.fp32\.onnx.*no kernel of that kind"):
        quantize_modelopt.build({"video_step": graph}, feeds(2), ("nvfp4",), interpreter(tmp_path, FAILS))
    with pytest.raises(UsageError, match="make modelopt"):
        quantize_modelopt.build({"video_step": graph}, feeds(2), ("int8",), tmp_path / "nowhere")


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="`make modelopt` builds its environment")
@pytest.mark.parametrize("precision", ["int8", "fp8", "nvfp4"])
def test_real_tool(precision: quantize_modelopt.Precision, graph: Path) -> None:
    rows = feeds(8)
    found = quantize_modelopt.build({"video_step": graph}, rows, (precision,), REAL)
    made = onnx.load(str(graph.with_name(found["video_step"][0].file)))
    assert [value.name for value in made.graph.input] == ["x"]
    assert any(node.op_type == "DequantizeLinear" for node in made.graph.node)
    if precision == "nvfp4":
        return  # no provider here runs it
    feed = rows["video_step"][0]
    ours, exact = (parity.session(path, True).run(None, feed)[0] for path in
                   (graph.with_name(found["video_step"][0].file), graph))  # fmt: skip
    assert 0.0 < np.abs(ours - exact).max() / np.abs(exact).max() < 0.1
