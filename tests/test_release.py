"""From a checkpoint to a bundle, all the way; and every gate that keeps a bad one from taking the old one's place.

The model knows nothing and belongs to a robot of its own, so that it is calibrated on its recordings. That torch and
the runtime agree for every family: test_torch_policy.py.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from dzedge import golden
from dzedge.bundle import open_bundle
from dzedge.engine import Machine
from dzedge.errors import PolicyError, UsageError
from dzedge.export import bounds, card, checkpoint, families, making, release
from dzedge.export.dataset import Writer
from dzedge.export.fit_tokenizer import Tokenizer
from dzedge.export.making import Wanted
from dzedge.export.model.moments import Moments
from dzedge.export.model.sizes import Sizes
from dzedge.export.onnx import export_all
from dzedge.export.parity import ParityError
from dzedge.export.source import Source
from dzedge.export.torch_policy import Trained
from dzedge.export.train import TOKENIZER
from dzedge.hardware.sim.scene import JOINTS
from dzedge.minisign import SecretKey
from dzedge.policies import FlowVla

TOY = Sizes(width=64, layers=1, heads=2, encoder_width=4, decoder_width=4)
CAMERA = "observation.images.front"
TASKS = ("reach the red cube", "press the blue cube")
SECRET = SecretKey.decode((Path(__file__).parents[1] / "export" / "test.key").read_text(), "test.key")
LOOSE = "[fp32]\ngraph = 1e-5\nworst_rad = 1e-3\n[int8]\naction_share = 0.9\nstep_bytes = 0.9\n"


class Given(NamedTuple):
    checkpoint: Path
    data: Path
    wanted: Wanted


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("given")
    torch.manual_seed(3)
    moments, source = Moments.neutral(TOY), Source(robot="toy", joints=JOINTS, camera=CAMERA)
    model, tokenizer = families.LEARNERS["flow_vla"]().build(TOY, moments), Tokenizer(TOY)
    for name, part in model.named_modules():  # a fresh trunk's heads are zero; zeros prove nothing
        if isinstance(part, nn.Linear) and name.rsplit(".", 1)[-1] in ("shared", "leave"):
            nn.init.normal_(part.weight, std=0.1)
    recipe = {"family": "flow_vla", "max_prefix": 3}
    checkpoint.save(folder / "toy.safetensors", recipe=recipe, sizes=TOY.to_json(), moments=moments.to_json(),
                    average=model.state_dict(), source=source.to_json())  # fmt: skip
    checkpoint.save(folder / TOKENIZER, sizes=TOY.to_json(), average=tokenizer.state_dict())
    limits = folder / "loose.toml"
    limits.write_text(LOOSE)
    wanted = Wanted(SECRET, 3, "2026-01-01T00:00:00Z", limits=limits, pairs=4)
    return Given(folder / "toy.safetensors", record(folder / "data"), wanted)


def record(root: Path) -> Path:
    row = {"dtype": "float32", "shape": [6], "names": list(JOINTS)}
    rng, length = np.random.default_rng(0), 12
    with Writer(root, {"observation.state": row, "action": row, CAMERA: {"dtype": "video"}}, 10, "toy", (48, 64)) as to:
        for task in TASKS:
            joints = np.cumsum(rng.normal(0.0, 0.05, (length + 1, 6)), axis=0).astype(np.float32)
            frames = rng.integers(0, 255, (length, 48, 64, 3), dtype=np.uint8)
            to.add({"observation.state": joints[:-1], "action": joints[1:]}, {CAMERA: frames}, task)
    return root


@pytest.fixture(scope="module")
def exported(given: Given, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    trained = Trained.load(given.checkpoint)
    return export_all(families.cut(trained.model, trained.tokenizer), tmp_path_factory.mktemp("onnx"))


@pytest.fixture
def copied(exported: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Exports once for all tests: it is what takes the time. A test may put damaged files in their place."""
    files = dict(exported)

    def copies(cut: object, folder: Path, opset: int) -> dict[str, Path]:
        return {name: Path(shutil.copyfile(path, folder / f"{name}.fp32.onnx")) for name, path in files.items()}

    monkeypatch.setattr(making, "export_all", copies)
    return files


@pytest.mark.slow
@pytest.mark.usefixtures("copied")
class TestRelease:
    def test_makes_a_bundle_that_says_what_it_costs(self, given: Given, tmp_path: Path) -> None:
        out, stages = tmp_path / "toy.dzp", list[str]()
        report = release.release(given.checkpoint, [given.data], out, given.wanted, stages.append)
        assert tuple(stages) == release.STAGES
        opened = open_bundle(out, allow_test_key=True)
        section = opened.manifest.dzedge
        assert {v.precision for graph in section.graphs.values() for v in graph.variants} == {"fp32", "int8"}
        costs = report["precisions"]
        assert costs["fp32"]["worst_rad"] < 1e-5
        assert costs["fp32"]["step_bytes"] == 1.0
        others = [cost for name, cost in costs.items() if name.startswith("int8")]
        assert len(others) == 3, "for AVX2, for dot products, for boards"
        assert all(1e-5 < cost["action_share"] < 0.9 and cost["step_bytes"] < 0.9 for cost in others)
        assert set(section.sampler_errors) == set(section.samplers)
        assert report["prompts"] == len(TASKS)
        assert golden.Golden(opened).check(Machine("cpu", Machine.detect().isa, 1), "fp32").ok
        said = opened.read("README.md").decode()
        assert "| fp32 |" in said
        assert json.loads(said.split("```json\n")[1].split("\n```")[0]) == json.loads(json.dumps(report))
        assert [path.name for path in tmp_path.iterdir()] == ["toy.dzp"]

    def test_without_the_text_graph_only_known_instructions(self, given: Given, tmp_path: Path) -> None:
        wanted = replace(given.wanted, precisions=("fp32",), text=False)
        release.release(given.checkpoint, [given.data], tmp_path / "small.dzp", wanted, lambda stage: None)
        opened = open_bundle(tmp_path / "small.dzp", allow_test_key=True)
        assert "text" not in opened.manifest.dzedge.graphs
        policy = FlowVla(opened, Machine("cpu", "plain", 1), camera=(48, 64))
        policy.reset("Reach the red cube!")
        with pytest.raises(PolicyError, match="press the blue cube"):
            policy.reset("press the red cube")

    def test_a_bound_that_nothing_can_keep(self, given: Given, tmp_path: Path) -> None:
        out, limits = tmp_path / "toy.dzp", tmp_path / "hard.toml"
        limits.write_text("[fp32]\naction_share = 1e-12\nworst_rad = 1e-12\n")
        out.mkdir()
        (out / "old").write_text("as it was")
        wanted = replace(given.wanted, precisions=("fp32",), limits=limits)
        with pytest.raises(bounds.BoundError) as refused:
            release.release(given.checkpoint, [given.data], out, wanted, lambda stage: None)
        share, worst = str(refused.value).splitlines()
        assert share.startswith("fp32: action_share ")
        assert "allowed 0..1e-12 ([fp32] in hard.toml); calibrate" in share
        assert "worst_rad" in worst
        assert {path.name for path in tmp_path.iterdir()} == {"toy.dzp", "hard.toml"}
        assert (out / "old").read_text() == "as it was"

    def test_a_corrupted_graph(self, given: Given, tmp_path: Path, copied: dict[str, Path]) -> None:
        model = onnx.load(str(copied["action_step"]))
        weight = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.001), weight.name))
        copied["action_step"] = tmp_path / "damaged.onnx"
        onnx.save(model, str(copied["action_step"]))
        with pytest.raises(ParityError, match=r"action_step.v_action differs by .* do not ship"):
            release.release(given.checkpoint, [given.data], tmp_path / "toy.dzp", given.wanted, lambda stage: None)
        assert [path.name for path in tmp_path.iterdir()] == ["damaged.onnx"]


class TestCommand:
    def test_precisions(self) -> None:
        assert release.precisions_of("int8, fp16") == ("fp32", "int8", "fp16")
        assert release.precisions_of("fp32") == ("fp32",)
        with pytest.raises(UsageError, match="--precisions int9: must be some of fp32,fp16,int8"):
            release.precisions_of("fp32,int9")

    def test_what_is_not_ours_goes_elsewhere(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        folder = str(tmp_path)
        assert release.other_command(["--plan", "--board", "orin-nano-8", "--json"]) == (
            "plan", ["orin-nano-8", "--json"],
        )  # fmt: skip
        assert release.other_command([folder, "--out", "x"]) == ("official_export", [folder, "--out", "x"])
        assert release.other_command(["wam-0.safetensors", "--out", folder]) is None


@pytest.mark.parametrize("family", card.KINDS)
def test_a_card_says_what_it_is_and_how_it_learned(family: str) -> None:
    said = card.card(family, {"family": family, "recipe": {"seed": 12}}, "A note of ours.")
    assert said.startswith("# A small ")
    assert "Sim-supervised frame tokenizer" in said
    assert "A note of ours." in said
    assert '"seed": 12' in said
    others = [f"# A small {card.KINDS[name][0]} for" for name in card.KINDS if name != family]
    assert said.startswith(f"# A small {card.KINDS[family][0]} for")
    assert not any(said.startswith(kind) for kind in others)
