"""Plans: the published roofline table, what fits, what is advised, and the command line."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dzedge.errors import UsageError
from dzedge.export import checkpoint, official_stub, plan, workload
from dzedge.export.advice import seconds
from dzedge.export.boards import BOARDS, PRECISIONS, board
from dzedge.export.model import wan_graphs
from dzedge.export.model.moments import Moments
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.vae import Vae
from dzedge.export.model.wan_config import Config
from dzedge.export.model.wan_joint import parameters_on_meta
from dzedge.export.model.wan_policy import WanPolicy
from dzedge.export.roofline import Fit, fits, least, resident
from dzedge.export.workload import Workload, named

COLUMNS = (("orin-nano-8", "int8"), ("orin-nx-16", "int8"), ("agx-orin-64", "int8"), ("thor-128", "fp8"),
           ("thor-128", "nvfp4"))  # fmt: skip
NO = None
TOY = Config(
    width=48, layers=2, heads=2, feed=96, channels=16, condition_channels=20, latent_height=4, latent_width=6,
    text_tokens=5, text_width=16, image_tokens=257, hidden=32, time_width=16, state_sees_all=True,
)  # fmt: skip
"""The structure of the published 14B, narrow and shallow."""
TABLE = [
    ("14B", "server", "", (NO, NO, "12.1 s", "1.99 s", "1.02 s")),
    ("14B", 4, "", (NO, NO, "3.35 s", "551 ms", "296 ms")),
    ("14B", 1, "", (NO, NO, "1.48 s", "244 ms", "142 ms")),
    ("5B", "server", "", (NO, "1.10 s", "544 ms", "385 ms", "223 ms")),
    ("5B", 4, "", (NO, "328 ms", "159 ms", "96 ms", "60 ms")),
    ("5B", 1, "", (NO, "184 ms", "87 ms", "42 ms", "28 ms")),
    ("1.3B", 4, "wan-2.2", ("167 ms", "155 ms", "73 ms", "32 ms", "21 ms")),
    ("1.3B", 4, "tiny", ("70 ms", "70 ms", "35 ms", "25 ms", "15 ms")),
    ("0.45B", 4, "tiny", ("23 ms", "23 ms", "11 ms", "8 ms", "5 ms")),
    ("0.1B", 4, "tiny", ("9 ms", "8 ms", "4 ms", "2 ms", "2 ms")),
]
"""facts/dreamzero 7.3: model, evaluations, encoder, least time on each of COLUMNS."""
W4 = [("5B", "server", "2.2 s"), ("5B", 4, "427 ms"), ("5B", 1, "223 ms")]
"""The same of the Orin Nano with weights of four bits."""
CELLS = [
    (model, steps, eye, *column, cell)
    for model, steps, eye, cells in TABLE for column, cell in zip(COLUMNS, cells, strict=True)
] + [(model, steps, "", "orin-nano-8", "w4", cell) for model, steps, cell in W4]  # fmt: skip


def fit(device: str, model: Workload, precision: str) -> Fit:
    return next(found for found in fits(board(device), model) if found.precision == precision)


def interval(cell: str) -> tuple[float, float]:
    """What a printed time may have been before it was rounded [s]."""
    digits, unit = cell.split()
    scale = {"s": 1.0, "ms": 1e-3}[unit]
    half = 0.5 * 10.0 ** -len(digits.partition(".")[2])
    return (float(digits) - half) * scale, (float(digits) + half) * scale


@pytest.mark.parametrize(("name", "steps", "eye", "device", "precision", "cell"), CELLS)
def test_published_roofline(
    name: str, steps: int | str, eye: str, device: str, precision: str, cell: str | None
) -> None:
    """5 % beyond the printed digits, of which some cells have one."""
    found = fit(device, named(name, 4 if isinstance(steps, str) else steps, eye), precision)
    assert found.fits == (cell is not None)
    if cell is not None:
        low, high = interval(cell)
        assert 0.95 * low <= (found.server_s if steps == "server" else found.least_s) <= 1.05 * high


class TestRoofline:
    def test_bandwidth_or_math(self) -> None:
        assert fit("agx-orin-64", named("5B"), "int8").bound == "memory"
        assert fit("agx-orin-64", named("14B"), "int8").bound == "math"

    def test_by_hand(self) -> None:
        """facts/dreamzero 7.3's worked example: five passes that wait for 4.5 GB, and the encoder's 39 ms."""
        device = board("agx-orin-64")
        assert fit("agx-orin-64", named("5B"), "int8").least_s == pytest.approx(5 * 23.4e-3 + 39e-3, rel=0.02)
        eye = {"frame_encoder": named("5B").chunk["frame_encoder"]}
        assert least(device, eye, "int8") == pytest.approx(1.67e12 / 42.5e12)

    def test_more_bandwidth_or_fewer_steps_is_faster(self) -> None:
        times = [fit("orin-nx-16", named("5B", steps), "int8").least_s for steps in (1, 2, 4)]
        assert times == sorted(times) and len(set(times)) == 3
        assert fit("agx-orin-64", named("5B"), "int8").least_s < times[-1]

    def test_prompts_on_disk_leave_their_weights_out(self) -> None:
        model = named("5B")
        gone = resident(model, "int8") - resident(model, "int8", prompt=False)
        assert gone == model.prompt == pytest.approx(1.13e9 + 27e6, rel=0.02)

    def test_precisions_are_those_of_the_board(self) -> None:
        assert BOARDS["orin-nano-8"].precisions == ("fp16", "int8", "w8", "w4")
        assert set(BOARDS["thor-128"].precisions) == set(PRECISIONS) - {"fp32"}


class TestAdvice:
    def said(self, device: str, name: str, steps: int = 4, eye: str = "") -> str:
        return "\n".join(plan.plan(board(device), named(name, steps, eye)).advice)

    def test_what_does_not_fit(self) -> None:
        said = self.said("orin-nano-8", "14B")
        assert "does not fit: 17.0 GB in w4, 6.5 GB are usable" in said
        assert "smaller model: 5B" in said
        assert "larger board: agx-orin-64" in said

    def test_a_precision_that_fits(self) -> None:
        said = self.said("orin-nano-8", "5B")
        assert "precision: w4 is the fastest that fits, 428 ms" in said
        assert "too large for 6.5 GB: fp16 (12.5 GB), int8 (6.9 GB)" in said
        assert "does not fit:" not in said

    def test_the_finest_precision_that_is_in_time(self) -> None:
        assert "precision: fp16 is the finest that is in time" in self.said("agx-orin-64", "0.1B")

    def test_fewer_steps_are_enough(self) -> None:
        """What is advised must be in time, and one step more must not be."""
        device, name = "thor-128", "5B"
        found = re.search(r"fewer steps: (\d+) instead of 9 ", self.said(device, name, 9))
        assert found is not None
        steps = int(found[1])
        times = [min(fit.least_s for fit in fits(board(device), named(name, n))) for n in (steps, steps + 1)]
        assert 3 * times[0] <= 0.2 < 3 * times[1]

    def test_encoder(self) -> None:
        assert "frame encoder: 55% of the least time" in self.said("agx-orin-64", "1.3B", eye="wan-2.2")
        assert "frame encoder" not in self.said("agx-orin-64", "1.3B", eye="tiny")

    def test_language_model(self) -> None:
        assert "prompts.safetensors" in self.said("orin-nano-8", "0.1B")
        assert "prompts.safetensors" not in self.said("agx-orin-64", "0.1B")

    def test_least_times_of_microseconds_are_no_forecast(self) -> None:
        assert "measure" in self.said("agx-orin-64", "wam-nano")


@pytest.mark.parametrize(("value", "text"), [(0.4284, "428 ms"), (16.41, "16.4 s"), (1.39e-5, "0.0139 ms")])
def test_seconds(value: float, text: str) -> None:
    assert seconds(value) == text


class TestCommand:
    def told(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
        plan.main(list(arguments))
        return capsys.readouterr().out

    def test_one_json_document(self, capsys: pytest.CaptureFixture[str]) -> None:
        found = json.loads(self.told(capsys, "orin-nano-8", "--config", "5B", "--json"))
        assert found["board"] == "orin-nano-8" and found["model"] == "5B"
        assert found["parameters"] == 5_606_692_832
        assert found["weights"]["w4"] == pytest.approx(3.15e9, rel=0.01)
        assert found["chunk"] == sum(found["flops"].values())
        assert found["ratio"] == found["chunk"] / found["server"]
        assert [row["precision"] for row in found["precisions"] if row["fits"]] == ["w4"]
        assert "data sheet" in found["source"]

    def test_for_people(self, capsys: pytest.CaptureFixture[str]) -> None:
        told = self.told(capsys, "thor-128", "--config", "14B", "--steps", "1")
        assert "16.484 B" in told and "nvfp4" in told and "142 ms" in told
        assert not re.search("…", told)  # nothing is cut off at 80 columns

    def test_a_checkpoints_header_is_enough(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "mine.safetensors"
        sizes = workload.WAMS["wam-nano"]
        checkpoint.save(path, recipe={"family": "wam"}, sizes=sizes.to_json(), step=1)
        found = json.loads(self.told(capsys, "orin-nano-8", str(path), "--json"))
        expected = json.loads(self.told(capsys, "orin-nano-8", "--config", "wam-nano", "--json"))
        assert found == expected | {"model": "mine"}

    def test_a_coupled_checkpoint(self, tmp_path: Path) -> None:
        """Formulas from the sizes of a training, against the very graphs that it would be exported as."""
        path = tmp_path / "coupled.safetensors"
        sizes = Sizes(tokenizer="vae", cell=12, tokens=48, channels=6, frames=2, window=3, width=40, layers=2, heads=2)
        checkpoint.save(path, recipe={"family": "wan_joint"}, sizes=sizes.to_json(), step=1)
        found, vae = workload.checkpoint(path, 2), Vae(sizes).eval()
        model = WanPolicy(sizes, Moments.neutral(sizes)).eval()
        for graph in wan_graphs.graphs(model, vae.encoder, vae.decoder):
            part = found.chunk[graph.name].part if graph.name in found.chunk else None
            with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                graph.module(*graph.inputs.values())
            if part is not None:
                assert part.flops == counter.get_total_flops(), graph.name
        assert set(found.chunk) == {"frame_encoder", "prefill", "joint_step"}
        assert found.chunk["joint_step"].times == 2
        assert found.parameters == sum(parameter.numel() for parameter in model.parameters())

    def test_an_official_folder(self, tmp_path: Path) -> None:
        """Its sizes stand in config.json and conf.yaml; its weights are not read."""
        pytest.importorskip("yaml", reason="conf.yaml needs PyYAML (extra [export])")
        folder = official_stub.write(tmp_path / "tiny", TOY)
        found = workload.checkpoint(folder)
        assert found.parameters == parameters_on_meta(TOY)
        assert found.name == "tiny" and found.eye == workload.EYES["wan-2.1"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("thor-128",), "one of a checkpoint and --config"),
            (("thor-128", "a.safetensors", "--config", "5B"), "one of a checkpoint and --config"),
            (("thor-128", "--config", "7B"), "'7B': must be one of wam-nano"),
            (("thor-128", "--config", "5B", "--eye", "keen"), "'keen': must be one of wan-2.1"),
            (("thor-128", "--config", "5B", "--steps", "0"), "--steps 0: must be 1 to 99"),
            (("thor-128", "missing.safetensors"), "not a checkpoint of dzedge"),
        ],
    )
    def test_what_is_refused(self, arguments: tuple[str, ...], message: str) -> None:
        with pytest.raises(UsageError, match=re.escape(message)):
            plan.main(list(arguments))

    @pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 16, b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
    def test_no_checkpoint(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "other.safetensors"
        path.write_bytes(content)
        with pytest.raises(UsageError, match="not a checkpoint of dzedge"):
            workload.checkpoint(path)

    def test_other_families(self, tmp_path: Path) -> None:
        path = tmp_path / "vla.safetensors"
        checkpoint.save(path, recipe={"family": "flow_vla"}, sizes={}, step=1)
        with pytest.raises(UsageError, match="flow_vla"):
            workload.checkpoint(path)

    def test_unknown_board(self) -> None:
        with pytest.raises(UsageError, match="'nano' is unknown; known: orin-nano-8"):
            board("nano")
        with pytest.raises(SystemExit):
            plan.main(["nano", "--config", "5B"])


def test_every_named_model_on_every_board() -> None:
    for device in BOARDS.values():
        for name in workload.NAMES:
            found = plan.plan(device, named(name))
            assert all(math.isfinite(fit.least_s) and fit.least_s > 0 for fit in found.precisions)
            assert found.chunk < found.server and found.advice
