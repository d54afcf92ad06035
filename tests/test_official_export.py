"""An official folder -> parts: graphs that run, weights, and a record that says what the numbers mean."""

import json
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch

from dzedge.errors import UsageError
from dzedge.export import measure_layered, official_export, official_stub
from dzedge.export.model.wan_config import Config

pytest.importorskip("yaml", reason="conf.yaml needs PyYAML (extra [export])")

TOY = Config(
    width=48, layers=1, heads=2, feed=96, latent_height=4, latent_width=6, text_tokens=5, text_width=16,
    image_tokens=257, hidden=32, time_width=16, window=7, state_sees_all=True,
)  # fmt: skip
"""The structure of the published 5B, narrow and shallow: no condition beside the latents."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return official_stub.write(tmp_path_factory.mktemp("official") / "c", TOY, 2, torch.bfloat16, rank=2)


@pytest.fixture
def without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs take seconds to trace; what stands around them does not need any."""

    def nothing(make: object, weights: object, folder: Path, dtype: torch.dtype) -> dict[str, Path]:
        folder.mkdir(parents=True)
        return {}

    monkeypatch.setattr(official_export, "export_layered", nothing)
    monkeypatch.setattr(official_export, "check", lambda graphs, paths: [])


class TestParts:
    @pytest.mark.slow
    def test_whole(self, checkpoint: Path, tmp_path: Path) -> None:
        out = tmp_path / "made" / "parts"
        official_export.main([str(checkpoint), "--out", str(out), "--embodiment", "oxe_droid"])
        names = {"context", "prefill_first", "prefill", "joint_step"}
        assert {path.name for path in out.iterdir()} == {f"{name}.onnx" for name in names} | {
            "weights.safetensors", official_export.RECORD,
        }  # fmt: skip
        assert [path.name for path in out.parent.iterdir()] == ["parts"]
        record = json.loads((out / official_export.RECORD).read_text())
        assert {name.partition(".")[0] for name in record["parity"]} == names
        assert 0.0 < max(record["parity"].values()) < 1e-5

    @pytest.mark.usefixtures("without_graphs")
    def test_record(self, checkpoint: Path, tmp_path: Path) -> None:
        record = official_export.export(checkpoint, tmp_path / "parts")
        assert json.loads((tmp_path / "parts" / official_export.RECORD).read_text()) == record | {
            "embodiment": record["embodiment"] | {"view": [32, 48]}
        }
        assert Config.from_json(record["sizes"]) == TOY
        assert record["prompt"].startswith("A multi-view video shows that a robot {task} The video")
        action = record["embodiment"]["action"]
        assert action["channels"][0] == {"name": "joint_position", "width": 7, "relative": True}
        assert (action["width"], len(action["q01"]), action["q99"][7]) == (32, 8, 0.5)
        assert any("no code for it here" in note for note in record["notes"])

    @pytest.mark.usefixtures("without_graphs")
    def test_what_was_not_measured_is_said(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:  # fmt: skip
        assert official_export.export(checkpoint, tmp_path / "a")["parity"] == {}
        assert "not measured" in official_export.export(checkpoint, tmp_path / "b", precision="fp16")["parity"]
        monkeypatch.setattr(official_export, "CHECKED", 10)
        assert "over 10 parameters" in official_export.export(checkpoint, tmp_path / "c")["parity"]


class TestErrors:
    def test_no_bundle_is_promised(self, checkpoint: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="parts, not a bundle that runs"):
            official_export.export(checkpoint, tmp_path / "x.dzp")

    def test_precision(self, checkpoint: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="'int8', allowed: fp32, fp16"):
            official_export.export(checkpoint, tmp_path / "x", precision="int8")

    def test_nothing_is_left_half_done(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:  # fmt: skip
        """An export that fails leaves what was there before."""
        (tmp_path / "parts").mkdir()
        (tmp_path / "parts" / "old").write_text("old")

        def fail(*_: Any, **__: Any) -> None:
            raise UsageError("on purpose")

        monkeypatch.setattr(official_export, "export_layered", fail)
        with pytest.raises(UsageError, match="on purpose"):
            official_export.export(checkpoint, tmp_path / "parts")
        assert [path.name for path in tmp_path.iterdir()] == ["parts"]
        assert (tmp_path / "parts" / "old").read_text() == "old"


class TestMeasure:
    def test_peak_is_seen_though_it_passes(self) -> None:
        size = 64 << 20

        def work() -> None:
            held = bytearray(size)
            held[::4096] = b"x" * (size // 4096)
            sleep(10 * measure_layered.EVERY_S)

        before, peak = measure_layered.peak_of(work)
        assert peak - before > 0.9 * size
        before, peak = measure_layered.peak_of(lambda: None)
        assert peak - before < 0.5 * size

    @pytest.mark.usefixtures("without_graphs")
    def test_report(self, checkpoint: Path, tmp_path: Path) -> None:
        found = measure_layered.measure(checkpoint, tmp_path / "parts", "fp32")
        assert found["largest_shard"] == max(found["shards"].values()) and len(found["shards"]) == 2
        assert found["ratio"] == found["anonymous_peak"] / found["largest_shard"]
        assert found["ok"] is (found["ratio"] <= 1.5)
