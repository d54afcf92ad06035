"""The GPU check, with a CPU in the GPU's place: what it measures, what it writes, and that it says when it cannot."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from dzedge.bundle import Bundle, Graph, Variant
from dzedge.errors import PolicyError
from dzedge.export import families, gpu_check, stub
from dzedge.export.gpu_check import Row
from dzedge.export.model.moments import Moments
from dzedge.types import ActionChunk

ROOT = Path(__file__).resolve().parents[1]
GOOD = Row("toy", 10**6, "cuda", "fp16", True, 0.003, 1.25, 2.5)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, int]:
    """A stub, and the same a little off in fp16's place: exporting takes a minute and is not what is tested."""
    folder = stub.write(tmp_path_factory.mktemp("gpu") / "toy.dzp")
    graphs = {}
    for name in stub.GRAPHS:
        (folder / f"{name}.fp16.onnx").write_bytes(stub.model(name, bias=1e-3))
        files = (Variant(file=f"{name}.{kind}.onnx", precision=kind, ep="any", isa="any") for kind in ("fp32", "fp16"))
        graphs[name] = Graph(variants=tuple(files))
    return gpu_check.sealed(folder, msgspec.structs.replace(stub.section(), graphs=graphs)), 1000


def chunk(positions: object, imagined: object = ()) -> ActionChunk:
    return ActionChunk(np.array(positions, float), np.array(imagined, np.float32), 0, 10**8, 0, 0)


class TestMeasure:
    def test_every_float_precision_against_fp32_on_the_cpu(self, toy: tuple[Bundle, int]) -> None:
        exact, half = gpu_check.check("toy", *toy, "cpu", rounds=3)
        assert (exact.precision, half.precision) == ("fp32", "fp16")
        assert exact.error == 0.0 and exact.good
        assert half.error is not None and 0.0 < half.error < gpu_check.BAR
        assert exact.p50_ms is not None and exact.p99_ms is not None and 0.0 < exact.p50_ms <= exact.p99_ms

    def test_a_refusal_is_a_row(self, toy: tuple[Bundle, int], monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*how: object) -> None:
            raise PolicyError("graph video_step: 2 operators do not run on CUDAExecutionProvider")

        monkeypatch.setattr(gpu_check.footprint, "measure", refuse)
        for row in gpu_check.check("toy", *toy, "cpu", rounds=1):
            assert not row.good and "video_step" in row.failure and row.p50_ms is None

    def test_difference(self) -> None:
        wanted = chunk([[0.0, 0.0], [2.0, 1.0]], [1.0, 3.0])
        assert gpu_check.difference(wanted, wanted) == 0.0
        assert gpu_check.difference(chunk([[0.1, 0.0], [2.0, 1.0]], [1.0, 3.0]), wanted) == pytest.approx(0.05)
        assert gpu_check.difference(chunk([[0.0, 0.0], [2.0, 1.0]], [1.0, 3.5]), wanted) == pytest.approx(0.25)
        assert gpu_check.difference(chunk([[0.0, np.nan], [2.0, 1.0]], [1.0, 3.0]), wanted) == np.inf

    @pytest.mark.parametrize(
        "bad",
        [{"error": 0.011}, {"error": np.inf}, {"error": None}, {"elsewhere": ("n (Add) on CPU",)}, {"failure": "no"}],
    )
    def test_what_is_good(self, bad: dict[str, object]) -> None:
        assert GOOD.good
        assert not replace(GOOD, **bad).good  # type: ignore[arg-type]


class TestPage:
    def test_figures(self, tmp_path: Path) -> None:
        bad = replace(GOOD, model="big", error=0.5, elsewhere=("prefill: n (Gather) on CPU",))
        assert gpu_check.write(tmp_path, [GOOD, bad], "A card.")
        text = (tmp_path / "gpu.md").read_text()
        assert "| toy | 1 | cuda | fp16 | yes | 0.003 | 1.25 | 2.5 | ok |" in text
        assert "| big |" in text and "**failed**" in text and "elsewhere: prefill: n (Gather) on CPU" in text
        assert [row["ok"] for row in json.loads((tmp_path / "gpu.json").read_text())["rows"]] == [True, False]

    def test_says_when_nothing_is_shown(self, tmp_path: Path) -> None:
        gpu_check.write(tmp_path, [], "", "no driver")
        text = (tmp_path / "gpu.md").read_text()
        assert "**Not shown.**" in text and "no driver" in text and not (tmp_path / "gpu.json").exists()

    def test_figures_from_elsewhere_stay(self, tmp_path: Path) -> None:
        gpu_check.write(tmp_path, [GOOD], "A card.")
        before = (tmp_path / "gpu.md").read_text()
        assert not gpu_check.write(tmp_path, [], "", "no driver")
        assert (tmp_path / "gpu.md").read_text() == before


class TestCommand:
    def test_without_a_gpu(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(gpu_check, "obstacle", lambda ep="cuda": "provider CUDAExecutionProvider is not there")
        assert gpu_check.main(tmp_path) == 0
        assert "not shown: provider CUDAExecutionProvider is not there" in capsys.readouterr().err
        assert "**Not shown.**" in (tmp_path / "gpu.md").read_text()

    @pytest.mark.parametrize(("error", "code"), [(0.003, 0), (0.3, 1)])
    def test_with_one(
        self, error: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: tuple[Bundle, int]
    ) -> None:
        asked = []

        def check(name: str, opened: Bundle, parameters: int, ep: str) -> list[Row]:
            asked.append((name, ep))
            return [replace(GOOD, model=name, provider=ep, error=error)]

        obstacles: Callable[..., str] = lambda ep="cuda": "" if ep == "cuda" else "no TensorRT"  # noqa: E731
        monkeypatch.setattr(gpu_check, "obstacle", obstacles)
        monkeypatch.setattr(gpu_check, "build", lambda name, folder: toy)
        monkeypatch.setattr(gpu_check, "check", check)
        assert gpu_check.main(tmp_path) == code
        assert asked == [(name, "cuda") for name in gpu_check.MODELS]

    def test_the_committed_page_is_what_the_check_writes(self) -> None:
        folder = ROOT / "docs" / "results"
        text = (folder / "gpu.md").read_text()
        if not (folder / "gpu.json").exists():
            assert text.startswith(gpu_check.page([], "", "x").partition("The check's own words")[0])

    def test_models_are_of_the_sizes_they_are_called_by(self) -> None:
        for name, (family, sizes) in gpu_check.MODELS.items():
            if not name.endswith(" B"):
                continue
            with torch.device("meta"):
                model = families.LEARNERS[family]().build(sizes, Moments.neutral(sizes))
            count = sum(parameter.numel() for parameter in model.parameters())
            assert count == pytest.approx(float(name.split()[1]) * 1e9, rel=0.15), name
