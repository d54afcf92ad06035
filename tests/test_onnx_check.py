"""What a graph file may hold: the shipped graphs pass, what no graph of ours has is refused, and whatever passes
protobuf reads just so."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from dzedge.errors import BundleError
from dzedge.onnx_check import BITS, GRAPH, MAX_BYTES, MODEL, NODE, TENSOR, VALUE, read_model

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "bundles").glob("*/*.onnx"))
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def graph(nodes, initializers=(), inputs=None, values=()) -> onnx.GraphProto:
    inputs = inputs if inputs is not None else [helper.make_tensor_value_info("x", FLOAT, [1, 4])]
    outputs = [helper.make_tensor_value_info("y", FLOAT, [1, 4])]
    return helper.make_graph(nodes, "g", inputs, outputs, list(initializers), value_info=list(values))


def model(*args, domains=(("", 20),), **kwargs) -> onnx.ModelProto:
    opsets = [helper.make_opsetid(*pair) for pair in domains]
    return helper.make_model(graph(*args, **kwargs), opset_imports=opsets, ir_version=10)


def small(weights=None) -> onnx.ModelProto:
    weights = np.ones(4, np.float32) if weights is None else weights
    return model([helper.make_node("Add", ["x", "w"], ["y"])], [numpy_helper.from_array(weights, "w")])


def shaped(operator: str, shape: list[int], inline: bool = False) -> onnx.ModelProto:
    """A graph that makes a tensor of `shape`, which is an initializer or (inline) a Constant's."""
    held = numpy_helper.from_array(np.array(shape, np.int64), "s")
    first = {"ConstantOfShape": ["s"]}.get(operator, ["x", "s"])
    nodes = [helper.make_node(operator, first, ["y"])]
    if inline:
        return model([helper.make_node("Constant", [], ["s"], value_ints=shape), *nodes])
    return model(nodes, [held])


def check(made: onnx.ModelProto | bytes) -> dict[str, int]:
    return read_model(made if isinstance(made, bytes) else made.SerializeToString(), "a.onnx")


def refused(made: onnx.ModelProto | bytes, words: str) -> None:
    with pytest.raises(BundleError, match=rf"a\.onnx: not a graph that is run here: .*{words}.*export it again"):
        check(made)


class TestSound:
    @pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.stem}-{path.stem}")
    def test_shipped_graphs_pass(self, path: Path) -> None:
        wanted = {entry.domain or "ai.onnx": entry.version for entry in onnx.load(path).opset_import}
        assert check(path.read_bytes()) == wanted

    def test_domains_and_versions_are_told(self) -> None:
        made = model([helper.make_node("Neg", ["x"], ["y"])], domains=[("", 21), ("com.microsoft", 1)])
        assert check(made) == {"ai.onnx": 21, "com.microsoft": 1}

    @pytest.mark.parametrize("kind", sorted(BITS))
    @pytest.mark.parametrize("raw", [True, False])
    def test_every_kind_of_number_in_either_place(self, kind: int, raw: bool) -> None:
        tensor = helper.make_tensor("w", kind, [3], np.ones(3, np.float32), raw=False)
        if raw:
            tensor = numpy_helper.from_array(numpy_helper.to_array(tensor), "w")
        made = model([helper.make_node("Neg", ["x"], ["y"])], [tensor])
        check(made)
        spoiled = onnx.ModelProto.FromString(made.SerializeToString())
        spoiled.graph.initializer[0].dims[0] = 7
        refused(spoiled, "belong there")

    def test_symbolic_and_absent_shapes_of_values(self) -> None:
        values = [helper.make_tensor_value_info("a", FLOAT, ["n", 3]), helper.make_tensor_value_info("b", FLOAT, None)]
        check(model([helper.make_node("Neg", ["x"], ["y"])], values=[*values, onnx.ValueInfoProto(name="c")]))

    def test_empty_tensors(self) -> None:
        check(small(np.zeros((0, 3), np.float32)))

    def test_branches_of_an_if(self) -> None:
        then = helper.make_graph(
            [helper.make_node("Neg", ["x"], ["t"])], "then", [], [helper.make_tensor_value_info("t", FLOAT, [1, 4])]
        )
        condition = numpy_helper.from_array(np.array(True), "c")
        made = model([helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=then)], [condition])
        check(made)
        made.graph.node[0].attribute[0].g.node[0].op_type = "EPContext"
        refused(made, "EPContext")

    @pytest.mark.parametrize("operator", ["ConstantOfShape", "Expand", "Reshape", "Tile"])
    @pytest.mark.parametrize("inline", [False, True])
    def test_shapes_made_at_run_time(self, operator: str, inline: bool) -> None:
        check(shaped(operator, [1, -1, 4], inline))
        for bad in ([10**12], [10**6, 10**6], [-5, 2**62], [1 << 40, 1 << 40]):
            refused(shaped(operator, bad, inline), operator)


class TestRefused:
    def external(self, **change) -> onnx.ModelProto:
        made = small()
        tensor = made.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (change or {"location": "weights.bin"}).items():
            tensor.external_data.add(key=key, value=value)
        return made

    @pytest.mark.parametrize(
        "location", ["/etc/passwd", "../w.bin", "link.bin", "folder/w.bin", "hard.bin", "./w.bin", "weights.bin", ""]
    )
    def test_external_data_wherever_it_lies(self, location: str) -> None:
        refused(self.external(location=location), "tensor 'w' lies in another file")

    def test_external_data_that_is_half_told(self) -> None:
        made = small()
        made.graph.initializer[0].external_data.add(key="location", value="w.bin")  # and data_location says here
        refused(made, "lies in another file")
        made = small()
        made.graph.initializer[0].data_location = TensorProto.EXTERNAL  # and there is no location
        refused(made, "lies in another file")

    def test_external_data_of_a_constant(self) -> None:
        tensor = self.external().graph.initializer[0]
        refused(model([helper.make_node("Constant", [], ["y"], value=tensor)]), "lies in another file")

    def test_engines_and_code(self) -> None:
        for operator in ("EPContext", "PythonOp", "ATen"):
            node = helper.make_node(operator, ["x"], ["y"], domain="com.microsoft")
            refused(model([node], domains=[("", 20), ("com.microsoft", 1)]), f"{operator}' is code")
        refused(model([helper.make_node("EPContext", ["x"], ["y"])]), "is code")

    def test_an_operator_of_a_domain_that_is_not_imported(self) -> None:
        made = model([helper.make_node("Neg", ["x"], ["y"], domain="evil")])
        refused(made, "domain 'evil', which it does not import")

    def test_a_domain_imported_twice(self) -> None:
        refused(model([helper.make_node("Neg", ["x"], ["y"])], domains=[("", 20), ("ai.onnx", 19)]), "given twice")

    def test_no_operators_or_no_graph(self) -> None:
        refused(model([helper.make_node("Neg", ["x"], ["y"])], domains=[]), "imports no operators")
        made = small()
        made.ClearField("graph")
        refused(made, "no graph")
        refused(b"", "no graph")

    def test_functions_and_training(self) -> None:
        made = small()
        made.functions.add(name="f")
        refused(made, "field 25")
        made = small()
        made.training_info.add()
        refused(made, "field 20")

    @pytest.mark.parametrize("dims", [[10**12], [10**6, 10**6], [1 << 31, 4], [1] * 17, [-1], [2**63 - 1] * 4])
    def test_giant_and_senseless_shapes(self, dims: list[int]) -> None:
        made = small()
        made.graph.initializer[0].dims[:] = dims
        refused(made, "tensor 'w'")
        for role in ("input", "output", "value_info"):
            made = small()
            value = helper.make_tensor_value_info("v", FLOAT, dims)
            getattr(made.graph, role).append(value)
            refused(made, f"{role} 'v'")

    def test_the_largest_value_that_passes(self) -> None:
        value = partial(helper.make_tensor_value_info, "v", FLOAT)
        check(model([helper.make_node("Neg", ["x"], ["y"])], values=[value([MAX_BYTES // 8, 2])]))
        refused(model([helper.make_node("Neg", ["x"], ["y"])], values=[value([MAX_BYTES // 8, 2, 2])]), "4 GiB")

    def test_numbers_that_are_not_as_many_as_the_shape_says(self) -> None:
        for count in (3, 5, 4000):
            made = small()
            made.graph.initializer[0].raw_data = bytes(4 * count)
            refused(made, rf"has {4 * count} bytes or numbers, 16 belong")
        made = small()
        made.graph.initializer[0].ClearField("raw_data")
        refused(made, "has 0 bytes or numbers, 4 belong")
        made = small()
        made.graph.initializer[0].float_data.append(1.0)
        refused(made, "keeps its numbers in float_data, raw_data")
        made = small()
        made.graph.initializer[0].ClearField("raw_data")
        made.graph.initializer[0].int64_data[:] = [1, 2, 3, 4]
        refused(made, "keeps its numbers in int64_data")

    @pytest.mark.parametrize("kind", [0, TensorProto.STRING, TensorProto.COMPLEX64, 99])
    def test_what_is_no_number(self, kind: int) -> None:
        made = small()
        made.graph.initializer[0].data_type = kind
        refused(made, f"data type {kind}")

    def test_sparse_tensors_sequences_and_segments(self) -> None:
        made = small()
        made.graph.sparse_initializer.add()
        refused(made, "field 15")
        made = small()
        made.graph.initializer[0].segment.begin = 0
        refused(made, "field 3")
        value = helper.make_tensor_sequence_value_info("s", FLOAT, [1])
        refused(model([helper.make_node("Neg", ["x"], ["y"])], inputs=[value]), "field 4")

    def test_graphs_in_graphs(self) -> None:
        inner = graph([helper.make_node("Neg", ["x"], ["y"])])
        for _ in range(6):
            inner = graph([helper.make_node("If", ["x"], ["y"], then_branch=inner)])
        refused(helper.make_model(inner, opset_imports=[helper.make_opsetid("", 20)]), "deep")


class TestWire:
    """Spellings that protobuf reads and no writer writes."""

    DATA = small().SerializeToString()

    def test_the_second_of_two_graphs_would_win(self) -> None:
        evil = model([helper.make_node("EPContext", ["x"], ["y"])])
        twice = self.DATA + evil.SerializeToString()[2:]
        assert onnx.ModelProto.FromString(twice)
        refused(twice, "the model has its graph twice")

    def test_the_second_of_two_operators_would_win(self) -> None:
        made = small()
        made.graph.node[0].doc_string = "12345678901"  # field 6, to be spelled as field 4, op_type
        twice = made.SerializeToString().replace(b"\x32\x0b12345678901", b"\x22\x0b12345678901")
        assert onnx.ModelProto.FromString(twice).graph.node[0].op_type == "12345678901"
        refused(twice, "a node has its op_type twice")

    def test_a_field_longer_than_what_is_there(self) -> None:
        assert check(self.DATA + b"\x12\x02ab")
        refused(self.DATA + b"\x12\x05ab", "the model ends before its producer_name")
        refused(self.DATA + b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01ab", "ends before its producer_name")

    def test_a_number_spelled_longer_than_need_be(self) -> None:
        assert self.DATA[:2] == b"\x08\x0a"
        longer = b"\x08\x8a\x00" + self.DATA[2:]
        assert onnx.ModelProto.FromString(longer).ir_version == 10
        refused(longer, "misspelled")
        refused(b"\x08" + b"\xff" * 9 + b"\x7f" + self.DATA[2:], "misspelled")

    @pytest.mark.parametrize("extra", [b"\x98\x06\x01", b"\x9a\x06\x00", b"\x0b\x0c", b"\x0f", b"\x00", b"\x3a"])
    def test_unknown_fields_groups_and_reserved_wire_types(self, extra: bytes) -> None:
        refused(self.DATA + extra, "")

    def test_a_known_field_of_another_wire_type(self) -> None:
        refused(self.DATA + bytes([5 << 3 | 1]) + bytes(8), "field 5 of wire type 1")

    def test_every_truncation(self) -> None:
        whole = check(self.DATA)
        for length in range(len(self.DATA)):
            try:
                assert check(self.DATA[:length]) == whole  # cut between two fields, after all that counts
            except BundleError:
                continue
            assert onnx.ModelProto.FromString(self.DATA[:length]).graph == small().graph

    def test_names_are_utf8(self) -> None:
        made = small()
        made.graph.node[0].op_type = "AAAA"
        refused(made.SerializeToString().replace(b"AAAA", b"\xff\xfe\xfd\xfc"), "not UTF-8")

    @pytest.mark.parametrize(
        ("known", "proto"),
        [
            (MODEL, onnx.ModelProto), (GRAPH, onnx.GraphProto), (NODE, onnx.NodeProto), (TENSOR, onnx.TensorProto),
            (VALUE, onnx.ValueInfoProto),
        ],
    )  # fmt: skip
    def test_fields_are_named_as_in_onnx(self, known, proto) -> None:
        names = {field.number: field.name for field in proto.DESCRIPTOR.fields}
        assert known and all(names[tag >> 3] == name for tag, (name, _, _) in known.items())


def seen(made: onnx.ModelProto) -> bool:
    """Whether protobuf's own reading holds anything that the check must not let through."""
    tensors = [*made.graph.initializer]
    operators = [*made.graph.node]
    for node in operators:
        tensors += [attribute.t for attribute in node.attribute if attribute.HasField("t")]
    sizes = [math.prod(tensor.dims) for tensor in tensors]
    return bool(
        made.functions
        or made.training_info
        or any(tensor.external_data or tensor.data_location for tensor in tensors)
        or any(size < 0 or size > MAX_BYTES for size in sizes)
        or any(node.op_type == "EPContext" for node in operators)
        or {node.domain or "ai.onnx" for node in operators} - {entry.domain or "ai.onnx" for entry in made.opset_import}
    )


class TestFuzz:
    SEED = SHIPPED[0].with_name("text.fp32.onnx").read_bytes()

    @given(data=st.binary(max_size=400))
    @settings(max_examples=500, deadline=None)
    def test_junk_is_refused_not_crashed_on(self, data: bytes) -> None:
        with pytest.raises(BundleError):
            check(data)

    @given(
        edits=st.lists(st.tuples(st.integers(0, 2**31), st.binary(max_size=6), st.integers(0, 6)), max_size=3),
        tiny=st.booleans(),
    )
    @settings(max_examples=600, deadline=None)
    def test_what_passes_is_read_alike_by_protobuf(self, edits, tiny: bool) -> None:
        """Splices of bytes anywhere: refused, or protobuf reads it and sees nothing that must not pass."""
        data = TestWire.DATA if tiny else self.SEED
        for place, piece, cut in edits:
            place %= len(data)
            data = data[:place] + piece + data[place + cut :]
        try:
            domains = check(data)
        except BundleError:
            return
        try:
            made = onnx.ModelProto.FromString(data)
        except DecodeError:
            return  # it also wants UTF-8 in names that nobody reads here
        assert {entry.domain or "ai.onnx": entry.version for entry in made.opset_import} == domains
        assert not seen(made)
