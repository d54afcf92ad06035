"""What a graph file may hold, read from its bytes alone, before ONNX Runtime gets them.

A signature says who made a graph, not that it is sound. This walks the protobuf wire format and refuses what no graph
of ours has: files beside it (external data, at any path), compiled engines (EPContext), operators of unlisted domains,
functions, sparse or text tensors, shapes that no robot can hold, tensors whose bytes are not what their shape says.
It is stricter than protobuf: an unknown field, a wrong wire type, a singular field given twice (last wins there), a
number spelled longer than need be are refused, so that no two readers see two graphs in the same bytes.

What it cannot see is a shape that is computed while the graph runs: the memory limit of the process is for those.
Field numbers: onnx/onnx.proto of onnx 1.23 (IR version 14); wire format: protobuf.dev/programming-guides/encoding.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from dzedge.errors import BundleError

MAX_DEPTH, MAX_RANK = 4, 16
MAX_BYTES = 1 << 32
"""Of one tensor. Weights are smaller anyway: they are in the file."""
REFUSED = frozenset({"EPContext", "PythonOp", "PythonOpGrad", "PyOp", "ATen", "ExternalOp"})
"""Operators that are code, or load some, wherever they come from."""
SHAPED = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1, "Tile": 1}
"""Operators that make a tensor as large as one of their inputs says, and which."""
BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16, 17: 8, 18: 8, 19: 8,
    20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
"""Of one element, by TensorProto.DataType; text and complex numbers are not among them."""
INT64 = 7
HOLDERS = {1: "float_data", 7: "int64_data", 11: "double_data", 12: "uint64_data", 13: "uint64_data"}
"""Where a tensor keeps numbers that are not raw bytes; all other types: in int32_data."""

Message = Mapping[int, tuple[str, str, bool]]
"""What may stand in a message: tag (field number * 8 + wire type) -> name, kind, whether it may be given again."""
Parsed = dict[str, Any]
WIRES = {"int": 0, "double": 1, "bytes": 2, "float": 5}
WIDTHS = {"double": 8, "float": 4}


class _Unsound(ValueError):
    """Why a graph is refused."""


def _message(fields: str) -> Message:
    """From "number name kind" of each field, * behind a kind that may be given again."""
    tags = {}
    for field in fields.split(","):
        number, name, kind = field.split()
        many, kind = kind.endswith("*"), kind.rstrip("*")
        tags[int(number) * 8 + WIRES[kind]] = (name, kind, many)
        if many and kind != "bytes":  # numbers may come one by one, or packed
            tags[int(number) * 8 + 2] = (name, f"packed {kind}", many)
    return tags


MODEL = _message(
    "1 ir_version int, 2 producer_name bytes, 3 producer_version bytes, 4 domain bytes, 5 model_version int,"
    "6 doc_string bytes, 7 graph bytes, 8 opset_import bytes*, 14 metadata_props bytes*"
)
OPSET = _message("1 domain bytes, 2 version int")
GRAPH = _message(
    "1 node bytes*, 2 name bytes, 5 initializer bytes*, 10 doc_string bytes, 11 input bytes*, 12 output bytes*,"
    "13 value_info bytes*, 14 quantization_annotation bytes*, 16 metadata_props bytes*"
)
NODE = _message(
    "1 input bytes*, 2 output bytes*, 3 name bytes, 4 op_type bytes, 5 attribute bytes*, 6 doc_string bytes,"
    "7 domain bytes, 9 metadata_props bytes*"
)
ATTRIBUTE = _message(
    "1 name bytes, 2 f float, 3 i int, 4 s bytes, 5 t bytes, 6 g bytes, 7 floats float*, 8 ints int*,"
    "9 strings bytes*, 10 tensors bytes*, 11 graphs bytes*, 13 doc_string bytes, 20 type int"
)
TENSOR = _message(
    "1 dims int*, 2 data_type int, 4 float_data float*, 5 int32_data int*, 7 int64_data int*, 8 name bytes,"
    "9 raw_data bytes, 10 double_data double*, 11 uint64_data int*, 12 doc_string bytes, 13 external_data bytes*,"
    "14 data_location int, 16 metadata_props bytes*"
)
VALUE = _message("1 name bytes, 2 type bytes, 3 doc_string bytes, 4 metadata_props bytes*")
TYPE = _message("1 tensor_type bytes, 6 denotation bytes")
TENSOR_TYPE = _message("1 elem_type int, 2 shape bytes")
SHAPE = _message("1 dim bytes*")
DIM = _message("1 dim_value int, 2 dim_param bytes, 3 denotation bytes")


def read_model(data: bytes, source: str) -> dict[str, int]:
    """The operator sets that a sound graph imports: domain ("ai.onnx" for the standard one) -> version.

    Raises BundleError naming `source` and what is not sound.
    """
    try:
        model = _parse(memoryview(data), MODEL, "the model")
        domains: dict[str, int] = {}
        for view in model.get("opset_import", []):
            entry = _parse(view, OPSET, "an operator set")
            domain = _text(entry, "domain") or "ai.onnx"
            if domain in domains or not 1 <= entry.get("version", 0) < 1 << 31:
                raise _Unsound(f"operator set {domain!r} is given twice, or in version {entry.get('version', 0)}")
            domains[domain] = entry["version"]
        if "graph" not in model or not domains:
            raise _Unsound("it has no graph, or imports no operators")
        _graph(model["graph"], domains, 0)
    except _Unsound as error:
        raise BundleError(f"{source}: not a graph that is run here: {error}; export it again") from error
    return domains


def _graph(view: memoryview, domains: Mapping[str, int], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _Unsound(f"graphs lie more than {MAX_DEPTH} deep in each other")
    graph = _parse(view, GRAPH, "the graph")
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor in graph.get("initializer", []):
        name, whole = _tensor(tensor)
        shapes[name] = whole
    for role in ("input", "output", "value_info"):
        for value in graph.get(role, []):
            _value(value, role)
    for node in graph.get("node", []):
        _node(node, domains, depth, shapes)


def _node(view: memoryview, domains: Mapping[str, int], depth: int, shapes: dict[str, tuple[int, ...]]) -> None:
    """shapes: integer constants so far, by name; what a Constant holds is added."""
    node = _parse(view, NODE, "a node")
    operator, domain = _text(node, "op_type"), _text(node, "domain") or "ai.onnx"
    if domain not in domains:
        raise _Unsound(f"operator {operator!r} is of domain {domain!r}, which it does not import")
    if operator in REFUSED:
        raise _Unsound(f"operator {operator!r} is code, not arithmetic")
    for attribute in node.get("attribute", []):
        held = _attribute(attribute, domains, depth)
        if operator == "Constant" and held and "output" in node:
            shapes[bytes(node["output"][0]).decode("latin-1")] = held
    place = SHAPED.get(operator)
    if place is not None and len(node.get("input", [])) > place:
        shape = shapes.get(bytes(node["input"][place]).decode("latin-1"), ())
        _bounded([abs(size) for size in shape if size not in (0, -1)], 8, f"what {operator} makes")


def _attribute(view: memoryview, domains: Mapping[str, int], depth: int) -> tuple[int, ...]:
    """The integers that it holds, if it does."""
    attribute = _parse(view, ATTRIBUTE, "an attribute")
    for graph in [*_one(attribute, "g"), *attribute.get("graphs", [])]:
        _graph(graph, domains, depth + 1)
    held = tuple(map(_signed, attribute.get("ints", ())))
    for tensor in [*_one(attribute, "t"), *attribute.get("tensors", [])]:
        _, held = _tensor(tensor)
    return held


def _tensor(view: memoryview) -> tuple[str, tuple[int, ...]]:
    """Name, and the values of a short list of integers (else none)."""
    tensor = _parse(view, TENSOR, "a tensor")
    name, kind = _text(tensor, "name"), tensor.get("data_type", 0)
    what = f"tensor {name[:60]!r}"
    if "external_data" in tensor or tensor.get("data_location", 0):
        raise _Unsound(f"{what} lies in another file")
    if kind not in BITS:
        raise _Unsound(f"{what} has data type {kind}; only numbers are run here")
    dims = tensor.get("dims", [])
    count = _bounded(dims, BITS[kind], what)
    holder = HOLDERS.get(kind, "int32_data")
    held = {key for key in ("raw_data", "int32_data", *HOLDERS.values()) if key in tensor and len(tensor[key])}
    if not held <= {"raw_data", holder} or len(held) > 1:
        raise _Unsound(f"{what} keeps its numbers in {', '.join(sorted(held))}")
    whole = (count * BITS[kind] + 7) // 8
    found, wanted = len(tensor.get("raw_data", b"")), whole
    if "raw_data" not in held:
        found, wanted = len(tensor.get(holder, ())), min(count, whole)
    if found != wanted:
        raise _Unsound(f"{what} of shape {dims} has {found} bytes or numbers, {wanted} belong there")
    if kind != INT64 or count > MAX_RANK:
        return name, ()
    if "raw_data" in held:
        return name, tuple(tensor["raw_data"].cast("q"))
    return name, tuple(map(_signed, tensor.get(holder, ())))


def _value(view: memoryview, role: str) -> None:
    value = _parse(view, VALUE, f"{role.replace('_', ' ')}")
    what = f"{role} {_text(value, 'name')[:60]!r}"
    if "type" not in value:
        return
    kind = _parse(value["type"], TYPE, what)
    if "tensor_type" not in kind:
        raise _Unsound(f"{what} is no tensor")
    tensor = _parse(kind["tensor_type"], TENSOR_TYPE, what)
    dims = [_parse(dim, DIM, what) for dim in _parse(tensor.get("shape", b""), SHAPE, what).get("dim", [])]
    known = [dim["dim_value"] for dim in dims if "dim_value" in dim]  # the others have names, or nothing
    _bounded(known, BITS.get(tensor.get("elem_type", 0), 8), what)


def _bounded(dims: list[int], bits: int, what: str) -> int:
    """How many numbers a tensor of this shape has."""
    if len(dims) > MAX_RANK or any(not 0 <= size <= MAX_BYTES for size in dims):
        raise _Unsound(f"{what} has shape {[*map(_signed, dims[:MAX_RANK])]}")
    count = math.prod(dims)
    if count * bits > MAX_BYTES * 8:
        raise _Unsound(f"{what} of shape {dims} has more than {MAX_BYTES >> 30} GiB")
    return count


def _signed(number: int) -> int:
    """As protobuf's int64 is meant: it has no unsigned ones."""
    return number - (1 << 64) if number >> 63 else number


def _one(message: Parsed, name: str) -> list[memoryview]:
    return [message[name]] if name in message else []


def _text(message: Parsed, name: str) -> str:
    try:
        return bytes(message.get(name, b"")).decode()
    except UnicodeDecodeError as error:
        raise _Unsound(f"{name} is not UTF-8") from error


def _parse(view: memoryview | bytes, message: Message, what: str) -> Parsed:
    """The fields of a message by name: integers, slices of bytes, lists of either where one may be given again;
    of floating point numbers as many zeros as there are. Raises _Unsound."""
    found: Parsed = {}
    position, end = 0, len(view)
    while position < end:
        tag = view[position]  # nearly all tags and most lengths are one byte, and they are what takes the time here
        position += 1
        if tag > 127:
            tag, position = _varint(view, position - 1, what)
        if tag not in message:
            raise _Unsound(f"{what} has field {tag >> 3} of wire type {tag & 7}, which is not known here")
        name, kind, many = message[tag]
        value: Any
        if kind == "int":
            value, position = _varint(view, position, what)
        else:
            length, position = (WIDTHS[kind], position) if kind in WIDTHS else _varint(view, position, what)
            if length > end - position:
                raise _Unsound(f"{what} ends before its {name}")
            value, position = view[position : position + length], position + length
        if many and kind == "bytes":
            found.setdefault(name, []).append(value)
        elif many:
            found.setdefault(name, []).extend(_numbers(value, kind, what))
        elif name in found:
            raise _Unsound(f"{what} has its {name} twice")
        else:
            found[name] = value
    return found


def _numbers(value: Any, kind: str, what: str) -> Iterator[int] | list[int]:
    """The numbers of one field that may be given again."""
    if kind == "int":
        return [value]
    if kind == "packed int":
        return _varints(value, what)
    count, rest = divmod(len(value), WIDTHS[kind.removeprefix("packed ")])
    if rest:
        raise _Unsound(f"{what} has half a number")
    return [0] * count


def _varints(view: memoryview, what: str) -> Iterator[int]:
    position = 0
    while position < len(view):
        value, position = _varint(view, position, what)
        yield value


def _varint(view: memoryview | bytes, position: int, what: str) -> tuple[int, int]:
    """A number and where it ends. Raises _Unsound for one that is cut off or not spelled as short as can be."""
    if position < len(view) and view[position] < 128:
        return view[position], position + 1
    value = shift = 0
    for place in range(position, min(position + 10, len(view))):
        byte = view[place]
        value |= (byte & 127) << shift
        if byte < 128:
            if (shift and not byte) or value >> 64:
                break
            return value, place + 1
        shift += 7
    raise _Unsound(f"{what} has a number that is cut off or misspelled")
