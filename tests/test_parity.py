"""Graph by graph: what counts as the same, at which inputs, and that a damaged file does not pass."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from dzedge.export import parity
from dzedge.export.model.graphs import Graph
from dzedge.export.onnx import export_all


class Late(nn.Module):
    """Right everywhere but at the end of time."""

    def __init__(self, fault: float = 0.0) -> None:
        super().__init__()
        self.fault = fault
        self.scale = nn.Parameter(torch.tensor([[2.0, -3.0]]))

    def forward(self, video: Tensor, t_video: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        late = (t_video > 0.9).float() * self.fault
        return video * self.scale * (1.0 + late), video.sum(1) * valid.sum()


def graph(module: nn.Module) -> Graph:
    rng = torch.Generator().manual_seed(1)
    inputs = {"video": torch.randn(1, 2, generator=rng), "t_video": torch.tensor([0.25]), "valid": torch.ones(1, 2)}
    return Graph("late", module, inputs, ("rows", "total"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return export_all([graph(Late())], tmp_path_factory.mktemp("onnx"))


class TestCheck:
    def test_the_same(self, files: dict[str, Path]) -> None:
        found = parity.check([graph(Late())], files)
        assert [(p.graph, p.output) for p in found] == [("late", "rows"), ("late", "total")]
        assert all(p.relative < 1e-6 for p in found)
        assert found[0].scale > 0.1

    def test_a_fault_at_the_end_of_time_alone(self, files: dict[str, Path]) -> None:
        faulty = graph(Late(0.01))
        with torch.no_grad():
            usual = faulty.module(*faulty.inputs.values())[0] - Late()(*faulty.inputs.values())[0]
        assert usual.abs().max() == 0.0, "the example inputs do not show it"
        with pytest.raises(parity.ParityError, match=r"late.rows differs by .*, 0.0099 of its"):
            parity.check([faulty], files)
        parity.check([faulty], files, tolerance=0.02)

    def test_a_corrupted_weight(self, files: dict[str, Path], tmp_path: Path) -> None:
        model = onnx.load(str(files["late"]))
        [weight] = [tensor for tensor in model.graph.initializer if list(tensor.dims) == [1, 2]]
        values = numpy_helper.to_array(weight) * np.float32(1.0001)
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        onnx.save(model, str(tmp_path / "bad.onnx"))
        with pytest.raises(parity.ParityError, match=r"late.rows differs .* allowed 0..1e-05: do not ship"):
            parity.check([graph(Late())], {"late": tmp_path / "bad.onnx"})

    def test_another_shape(self, files: dict[str, Path]) -> None:
        class Wide(Late):
            def forward(self, video: Tensor, t_video: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
                rows, total = super().forward(video, t_video, valid)
                return rows, total.unsqueeze(0)

        with pytest.raises(parity.ParityError, match=r"late.total has shape"):
            parity.check([graph(Wide())], files)

    def test_recorded_inputs_instead(self, files: dict[str, Path]) -> None:
        feed = {"video": np.ones((1, 2), np.float32), "t_video": np.full(1, 0.95, np.float32),
                "valid": np.ones((1, 2), np.float32)}  # fmt: skip
        early = {**feed, "t_video": np.full(1, 0.1, np.float32)}
        faulty = graph(Late(0.01))
        assert parity.compare(faulty, files["late"], [early])[0].difference == 0.0
        assert parity.compare(faulty, files["late"], [early, feed])[0].relative == pytest.approx(0.01 / 1.01, rel=1e-3)


class TestFinding:
    def test_relative(self) -> None:
        assert parity.Parity("g", "o", 0.2, 4.0).relative == pytest.approx(0.05)
        assert parity.Parity("g", "o", 0.0, 0.0).relative == 0.0
        assert parity.Parity("g", "o", 1e-9, 0.0).relative == np.inf

    def test_a_nan_is_the_worst_and_does_not_pass(self) -> None:
        rows = [parity.Parity("g", "o", d, 1.0) for d in (1e-7, float("nan"), 1e-6)]
        [found] = parity.worst(rows)
        assert np.isnan(found.difference)
        with pytest.raises(parity.ParityError, match=r"g.o differs by nan"):
            parity.require([found], 1e-5)


def test_extremes_are_tried_one_at_a_time() -> None:
    tried = parity.variations(graph(Late()))
    times = [float(inputs["t_video"]) for inputs in tried]
    assert times == [0.25, 0.0, 1.0, 0.25]
    assert [float(inputs["valid"].sum()) for inputs in tried] == [2.0, 2.0, 2.0, 0.0]


def test_a_mask_hides_all_but_language() -> None:
    hidden = Graph("g", nn.Identity(), {"mask": torch.zeros(1, 4)}, ("out",))
    [_, only] = parity.variations(hidden)
    assert only["mask"].tolist() == [[-1e4, -1e4, -1e4, 0.0]]
