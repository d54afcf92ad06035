"""Which file runs: the precision asked for where it is right, "auto" by provider, and never another in silence."""

import pytest

from dzedge.bundle import Graph, Variant
from dzedge.errors import BundleError
from dzedge.machine import Machine
from dzedge.precision import choose, choose_all

CPU = Machine("cpu", "avx2", 1)
FP32 = Variant(file="g.fp32.onnx", precision="fp32", ep="any", isa="any")
FP16 = Variant(file="g.fp16.onnx", precision="fp16", ep="cuda|tensorrt", isa="any")
U8S8 = Variant(file="g.u8s8.onnx", precision="int8", ep="cpu", isa="avx2")
S8S8 = Variant(file="g.s8s8.onnx", precision="int8", ep="any", isa="vnni|neon|gpu")
ANY8 = Variant(file="g.int8.onnx", precision="int8", ep="any", isa="any")
W4 = Variant(file="g.w4.onnx", precision="w4", ep="cpu|cuda", isa="any")
FP8 = Variant(file="g.fp8.onnx", precision="fp8", ep="tensorrt", isa="gpu")
ALL = (FP32, FP16, U8S8, S8S8, W4, FP8)


class TestChoice:
    @pytest.mark.parametrize(
        ("precision", "isa", "ep", "chosen"),
        [
            ("auto", "avx2", "cpu", U8S8),
            ("auto", "vnni", "cpu", S8S8),
            ("auto", "neon", "cpu", S8S8),
            ("auto", "plain", "cpu", FP32),
            ("auto", "avx2", "cuda", FP16),
            ("auto", "neon", "tensorrt", S8S8),
            ("fp32", "avx2", "cpu", FP32),
            ("int8", "avx2", "cpu", U8S8),
            ("int8", "avx2", "cuda", S8S8),
            ("fp32", "neon", "tensorrt", FP32),
            ("fp16", "neon", "tensorrt", FP16),
            ("w4", "avx2", "cpu", W4),
            ("w4", "neon", "cuda", W4),
            ("fp8", "neon", "tensorrt", FP8),
        ],
    )
    def test_of_all(self, precision: str, isa: str, ep: str, chosen: Variant) -> None:
        assert choose("g", ALL, precision, Machine(ep, isa, 1)) == chosen

    @pytest.mark.parametrize(
        ("variants", "ep", "chosen"),
        [
            ((FP32, S8S8), "cuda", FP32),
            ((FP32, FP16), "tensorrt", FP16),
            ((FP32,), "tensorrt", FP32),
            ((FP32, W4, FP8), "tensorrt", FP32),
        ],
    )
    def test_auto_takes_the_next_best_that_is_offered(
        self, variants: tuple[Variant, ...], ep: str, chosen: Variant
    ) -> None:
        assert choose("g", variants, "auto", Machine(ep, "neon", 1)) == chosen

    @pytest.mark.parametrize("isa", ["avx2", "plain"])
    def test_s8s8_never_runs_on_x86_without_vnni(self, isa: str) -> None:
        for variant in (S8S8, ANY8):
            assert choose("g", (variant, FP32), "auto", Machine("cpu", isa, 1)) == FP32
            with pytest.raises(BundleError, match=rf"no variant with precision 'int8'.*{isa}.*{variant.file}"):
                choose("g", (variant, FP32), "int8", Machine("cpu", isa, 1))

    @pytest.mark.parametrize("precision", ["int8", "w4", "fp8"])
    def test_insists_only_where_there_is_any(self, precision: str) -> None:
        assert choose("text", (FP32,), precision, CPU) == FP32

    @pytest.mark.parametrize("way", ["fp8 cpu", "fp8 cuda", "w4 tensorrt", "fp16 cpu"])
    def test_of_another_provider(self, way: str) -> None:
        precision, ep = way.split()
        with pytest.raises(BundleError, match=rf"no variant with precision '{precision}' for provider {ep}"):
            choose("g", ALL, precision, Machine(ep, "vnni", 1))

    def test_fp32_that_is_not_there(self) -> None:
        with pytest.raises(BundleError, match="no variant with precision 'fp32'"):
            choose("g", (U8S8,), "fp32", CPU)


GRAPHS = {"text": Graph(variants=(FP32,)), "step": Graph(variants=(FP32, U8S8, W4))}


class TestBundle:
    def test_every_graph(self) -> None:
        assert choose_all(GRAPHS, "w4", CPU, "b.dzp") == {"text": FP32, "step": W4}
        assert choose_all(GRAPHS, "auto", CPU, "b.dzp") == {"text": FP32, "step": U8S8}

    def test_a_precision_that_no_graph_has_is_not_swapped_for_another(self) -> None:
        with pytest.raises(BundleError, match=r"b.dzp: no graph has precision 'fp8'; it has fp32, int8, w4"):
            choose_all(GRAPHS, "fp8", CPU, "b.dzp")
