"""Weights of few bits: on their grid, right where ONNX Runtime multiplies them, better than rounding to nearest."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from dzedge.export import gptq, layers

INPUTS, OUTPUTS, ROWS = 96, 64, 5
Floats = NDArray[np.float64]


def activations(count: int = 400) -> Floats:
    """Rows whose entries go together, as those of a network do. Shape (count, INPUTS)."""
    rng = np.random.default_rng(0)
    found: Floats = rng.standard_normal((count, 12)) @ rng.standard_normal((12, INPUTS))
    return found + 0.1 * rng.standard_normal((count, INPUTS))


def weights() -> Floats:
    found: Floats = np.random.default_rng(1).standard_normal((INPUTS, OUTPUTS))
    return found


def back(levels: NDArray[np.int8], scales: Floats, block: int) -> Floats:
    return levels * np.repeat(scales, block, axis=0)


@pytest.mark.parametrize(("bits", "block"), [(4, 32), (4, 16), (8, 32)])
class TestRounded:
    def test_levels_and_blocks(self, bits: int, block: int) -> None:
        levels, scales = gptq.rounded(weights(), np.zeros((INPUTS, INPUTS)), bits, block)
        assert scales.shape == (INPUTS // block, OUTPUTS)
        assert levels.min() >= -(2 ** (bits - 1))
        assert levels.max() <= 2 ** (bits - 1) - 1
        assert np.abs(back(levels, scales, block) - weights()).max() <= 1.8 * scales.max()

    def test_recorded_activations_help(self, bits: int, block: int) -> None:
        seen, exact = activations(), weights()
        wanted = seen @ exact
        lost = [
            float(np.square(seen @ back(*gptq.rounded(exact, h, bits, block), block) - wanted).mean())
            for h in (seen.T @ seen, np.zeros((INPUTS, INPUTS)))
        ]
        assert lost[0] < 0.6 * lost[1]


@pytest.mark.parametrize("bits", [4, 8])
def test_runtime_unpacks_what_was_packed(bits: int) -> None:
    text = f"""<ir_version: 10, opset_import: ["": 20]>
        g (float[{ROWS},{INPUTS}] x) => (float[{ROWS},{OUTPUTS}] y) {{ y = MatMul(x, w) }}"""
    model, seen = onnx.parser.parse_model(text), activations(ROWS).astype(np.float32)
    model.graph.node[0].name = "product"
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights().astype(np.float32), "w"))
    feeds = [{"x": row} for row in activations(100).astype(np.float32).reshape(-1, ROWS, INPUTS)]
    taken = activations(100).astype(np.float32).astype(np.float64)
    levels, scales = gptq.rounded(weights().astype(np.float32).astype(np.float64), taken.T @ taken, bits, 32)
    gptq.apply(model, layers.layers(model), bits, 32, feeds)
    assert [node.op_type for node in model.graph.node] == ["MatMulNBits"]
    assert [tensor.name for tensor in model.graph.initializer] == ["product_levels", "product_scales"]
    for attribute in model.graph.node[0].attribute:
        if attribute.name == "accuracy_level":
            attribute.i = 1  # float32 sums, so that what is compared is the packing
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": seen})
    wanted = seen @ back(levels, scales, 32)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-4 * np.abs(wanted).max())
