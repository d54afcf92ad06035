"""Run by the Python of an environment that has nvidia-modelopt (requirements-modelopt.txt), never imported:

    python -I export/modelopt_script.py JOB.json

One graph, quantized the way NVIDIA's own tool does it. JOB.json: {source, target, precision, feeds (npz, an array an
input, recordings along the first axis), nodes (names of matrices and convolutions), rest ("fp32" or "fp16": what stays
unquantized)}. int8 and fp8 are calibrated on the feeds by the CPU provider; nvfp4 has no ONNX calibration in modelopt:
weights alone go to 4 bits (blocks of 16 with fp8 scales), activations stay as they are.

Imports nothing of dzedge; `-I` keeps this folder's own modules out of the way of those of the same name.
"""

import importlib
import json
import re
import sys
from typing import Any

BLOCK = 16


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    {"int8": calibrated, "fp8": calibrated, "nvfp4": four_bits}[job["precision"]](job)


def calibrated(job: dict[str, Any]) -> None:
    """Explicit Q/DQ pairs around the chosen nodes; weights are stored quantized."""
    numpy, tool = importlib.import_module("numpy"), importlib.import_module("modelopt.onnx.quantization")
    with numpy.load(job["feeds"], allow_pickle=False) as feeds:
        data = {name: feeds[name] for name in feeds.files}
    tool.quantize(
        job["source"],
        quantize_mode=job["precision"],
        # Recordings lie along a new first axis; modelopt cuts the arrays along it into pieces of the input's shape.
        calibration_data={name: array.reshape(-1, *array.shape[2:]) for name, array in data.items()},
        calibration_method="max",
        calibration_eps=["cpu"],
        nodes_to_quantize=[f"^{re.escape(name)}$" for name in job["nodes"]],
        output_path=job["target"],
        high_precision_dtype=job["rest"],
        disable_mha_qdq=True,
        dq_only=True,
        log_level="ERROR",
    )


def four_bits(job: dict[str, Any]) -> None:
    """Weights as FLOAT4E2M1 in blocks along their inputs, behind two DequantizeLinear; products in float16."""
    onnx = importlib.import_module("onnx")
    exporter = importlib.import_module("modelopt.onnx.export.nvfp4_exporter").NVFP4QuantExporter
    model = onnx.load(job["source"])
    graph, wanted, nodes = model.graph, set(job["nodes"]), []
    make, floats = onnx.helper.make_node, onnx.TensorProto.FLOAT
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        nodes.append(node)
        if node.name not in wanted or node.op_type != "MatMul" or weights[node.input[1]].dims[0] % BLOCK:
            continue
        matrix = onnx.numpy_helper.to_array(weights[node.input[1]]).T.copy()
        stored, whole, turned, product = (f"{node.name}_{part}" for part in ("stored", "whole", "turned", "product"))
        graph.initializer.append(onnx.numpy_helper.from_array(matrix, stored))
        graph.value_info.append(onnx.helper.make_tensor_value_info(whole, floats, matrix.shape))
        nodes[-1:] = [
            make("TRT_FP4QDQ", [stored], [whole], f"{node.name}_pair", domain="trt", block_size=BLOCK),
            make("Transpose", [whole], [turned], f"{node.name}_turn", perm=[1, 0]),
            node,
            make("Cast", [product], [node.output[0]], f"{node.name}_cast", to=floats),  # modelopt multiplies in float16
        ]
        node.input[1], node.output[0] = turned, product
    replaced = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(replaced)
    inputs = [value.name for value in graph.input]
    made = exporter.process_model(model)
    kept = [value for value in made.graph.input if value.name in inputs]  # modelopt lists weights among them
    del made.graph.input[:]
    made.graph.input.extend(kept)
    onnx.save(made, job["target"])


if __name__ == "__main__":
    main()
