"""Foresight: its measures on models whose dream is known, and on the shipped bundle."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from msgspec.structs import replace
from rich.console import Console

from dzedge import foresight
from dzedge.config import default_path, load
from dzedge.demonstration import Theatre
from dzedge.dream import imagines
from dzedge.errors import UsageError
from dzedge.foresight import Examiner, Moment, figures
from dzedge.policies import WorldActionModel
from dzedge.robot import verified_bundle
from dzedge.types import ActionChunk

K, C, H, F = 7, 10, 8, 4
NOISE = 12
"""What a made-up decoder is wrong by, up and down, in every other pixel [counts]."""


class Oracle(WorldActionModel):
    """Knows one demonstration. A latent is a step's number; lag: of the imagined steps behind the true ones."""

    follows_actions = False

    def __init__(self, shown, eye, lag: int, chunk_scale: float = 1.0) -> None:
        self.shown, self.eye, self.lag, self.scale = shown, eye, lag, chunk_scale
        self.history_ns, self.sampler = (200_000_000, 0), SimpleNamespace(video_steps=1, action_steps=1, coupled=False)
        self.asked = []

    def reset(self, instruction):
        self.asked.append(instruction)

    def latent(self, frame):
        return np.full((K, C), frame.number, np.float32)

    def decode(self, latents):
        pattern = NOISE * (-1) ** np.arange(96)[None, None, :, None]
        pictures = np.stack([self.eye.see(self.shown.frames[int(latent[0, 0])]) for latent in latents])
        return (pictures + pattern).clip(0, 255).astype(np.uint8)

    def metres(self, latents):
        return self.shown.tips[latents[..., :1, :1].astype(int)].reshape(*latents.shape[:-2], 1, 3)

    def infer(self, observation, prefix, chunk_id):
        step = observation.frames[-1].number
        future = np.arange(F)[:, None, None] * 2 + step + 2
        imagined = np.maximum(future - self.lag, step) + np.zeros((F, K, C))
        return self._chunk_of(observation, step, imagined.astype(np.float32), self.scale)

    def imagine(self, observation, chunk_id=0, actions=None):
        step = observation.frames[-1].number
        told = np.array_equal(actions, self.shown.commands[step : step + H])
        return (np.arange(F)[:, None, None] * 2 + step + 2 * told + np.zeros((F, K, C))).astype(np.float32)

    def infer_actions(self, observation, future, prefix, chunk_id=0):
        return self._chunk_of(observation, observation.frames[-1].number, future, 1.0)

    def _chunk_of(self, observation, step, imagined, scale):
        anchor = self.shown.joints[step]
        positions = anchor + scale * (self.shown.commands[step : step + H] - anchor)
        return ActionChunk(positions, imagined, observation.t_obs_ns, 100_000_000, 0, 1)


@pytest.fixture(scope="module")
def parts():
    config = load(default_path())
    return config, verified_bundle(config)


@pytest.fixture(scope="module")
def shown():
    return Theatre().perform(4002, "circle", "novel")


@pytest.fixture
def examined(parts, shown, monkeypatch):
    """`examined(lag)` -> figures of an oracle whose dream lags so many steps behind."""

    def of(lag: int, chunk_scale: float = 1.0):
        oracle = Oracle(shown, None, lag, chunk_scale)
        monkeypatch.setattr(foresight, "load_policy", lambda config, bundle: oracle)
        examiner = Examiner(*parts)
        oracle.eye = examiner._eye
        moments = list(examiner.examine(shown, 0))
        assert oracle.asked == [shown.task.instruction]
        return figures(moments)

    return of


class TestMeasures:
    def test_of_a_true_dream(self, examined):
        found = examined(lag=0)
        assert found["psnr_db"]["decoded"] == pytest.approx(20 * np.log10(255 / NOISE), abs=0.1)
        assert found["psnr_db"]["inlay"] == found["psnr_db"]["perfect"]
        gain = found["psnr_db"]["inlay"] - found["psnr_db"]["copied"]
        assert found["gain_db"]["value"] == pytest.approx(gain, abs=0.002) and gain > 10
        assert found["tip_mm"]["imagined"] == found["tip_mm"]["perfect"] == [0.0] * F
        assert min(found["tip_mm"]["copied"]) > 5
        assert found["actions_r2"]["inferred"]["value"] == found["actions_r2"]["acted"]["value"] == 1.0

    def test_of_a_dream_that_nothing_moves(self, examined):
        found = examined(lag=100)
        assert found["gain_db"]["value"] == 0.0
        assert found["whole_psnr_db"]["inlay"] == found["whole_psnr_db"]["copied"]
        assert found["tip_mm"]["imagined"] == found["tip_mm"]["copied"]
        assert found["psnr_db"]["perfect"] > found["psnr_db"]["inlay"] + 10

    def test_of_a_dream_that_is_late(self, examined):
        true, late, still = (examined(lag)["gain_db"]["value"] for lag in (0, 1, 100))
        assert true > late > still

    def test_actions_inferred_and_acted_are_told_apart(self, examined):
        found = examined(lag=0, chunk_scale=0.5)["actions_r2"]
        assert found["inferred"]["value"] == 1.0
        assert 0.5 < found["acted"]["value"] < 0.9  # a quarter of the spread, and of the mean, is missing

    def test_a_dream_that_is_told_the_actions(self, examined, monkeypatch):
        assert examined(lag=100)["tip_mm"]["told"] is None
        monkeypatch.setattr(Oracle, "follows_actions", True)
        found = examined(lag=100)["tip_mm"]
        assert found["told"] == [0.0] * F and min(found["imagined"]) > 5

    def test_moments_are_four_steps_apart_and_have_a_whole_future(self, examined, shown):
        found = examined(lag=0)
        assert found["scenes"] == 1
        assert found["moments"] == len(range(0, len(shown.frames) - H, foresight.STRIDE))


def moment(scene: int, error: float, wanted: float, missed: float, moving: int = 10) -> Moment:
    """One imagined frame, one action of one joint."""
    ways = len(foresight.WAYS)
    return Moment(
        scene, "circle", "novel", np.array([moving]), np.full((ways, 1), error), np.full((ways, 1), error),
        np.full((4, 1), 0.01), np.full((1, 1), wanted), np.full((2, 1, 1), missed),
    )  # fmt: skip


class TestFigures:
    def test_are_ratios_of_sums(self):
        found = figures([moment(0, 100.0, 1.0, 0.5), moment(1, 900.0, -1.0, 0.0, moving=30)])
        assert found["psnr_db"]["decoded"] == pytest.approx(10 * np.log10(255**2 * 40 / 1000), abs=1e-3)
        assert found["actions_r2"]["acted"]["value"] == pytest.approx(1 - 0.25 / 2)
        assert found["tip_mm"]["imagined"] == [10.0]
        assert (found["scenes"], found["moments"], found["moving_pixels"]) == (2, 2, 40)

    def test_interval_is_over_scenes(self):
        alike = [moment(scene, 100.0, (-1.0) ** scene, 0.5) for scene in range(10)]
        found = figures(alike)["actions_r2"]["acted"]
        assert found["low"] <= found["value"] <= found["high"]
        mixed = [moment(s, 100.0, w, 0.5 if s % 2 else 0.0) for s in range(10) for w in (-1.0, 1.0)]
        wide = figures(mixed)["actions_r2"]["acted"]
        assert wide["high"] - wide["low"] > 0.05
        assert figures([moment(0, 1.0, w, 0.5) for w in (-1.0, 1.0)])["actions_r2"]["acted"]["low"] is None

    def test_that_cannot_be_given_are_none(self):
        still = figures([moment(0, 0.0, 1.0, 0.5, moving=0), moment(1, 0.0, 1.0, 0.5, moving=0)])
        assert still["gain_db"] is None and still["psnr_db"]["copied"] is None
        assert still["actions_r2"]["acted"] is None  # commands that are all alike have no spread to explain
        json.dumps(still, allow_nan=False)


class TestVerbs:
    def test_of_a_split_are_those_with_such_a_pair(self):
        known = "reach", "press", "push", "left", "right", "circle", "over", "the", "cube", "red", "green", "blue"
        words = dict.fromkeys(known, 1)
        assert foresight.verbs_of("novel", words) == ("circle",)
        assert "reach" not in foresight.verbs_of("semantic", words)
        assert foresight.verbs_of("seen", words) == ("reach", "press", "push left", "push right")
        assert foresight.verbs_of("novel", {}) == ()


TOLD = []


@pytest.fixture(scope="module")
def entry(parts):
    return foresight.measure(*parts, 2, [7], lambda: TOLD.append(1))


class TestShippedBundle:
    def test_dreams_better_than_a_copy(self, entry):
        for split in foresight.SPLITS:
            found = entry[split]
            assert found["scenes"] == 2 and found["moments"] >= 2
            assert found["gain_db"]["value"] > 0.0
            assert found["tip_mm"]["imagined"][-1] < found["tip_mm"]["copied"][-1]
            assert found["actions_r2"]["inferred"]["value"] > 0.5
            assert found["psnr_db"]["perfect"] > found["psnr_db"]["copied"]
            assert sum(row["scenes"] for row in found["verbs"].values()) == 2

    def test_is_repeatable_and_another_seed_differs(self, parts, entry):
        assert foresight.measure(*parts, 2, [7]) == entry
        assert foresight.measure(*parts, 1, [8])["novel"]["psnr_db"] != entry["novel"]["psnr_db"]

    def test_document_and_table(self, entry):
        assert json.loads(json.dumps(entry, allow_nan=False)) == entry
        console = Console(width=120, record=True, file=io.StringIO())
        console.print(foresight.table(entry))
        told = console.export_text()
        assert "imagination" in told and "novel" in told and "R2 inferred" in told
        assert f"{entry['novel']['gain_db']['value']:.1f} [" in told

    def test_every_demonstration_is_told(self, entry):
        assert len(TOLD) == sum(entry[split]["scenes"] for split in foresight.SPLITS)


def test_a_policy_that_imagines_nothing_is_refused(parts):
    config, bundle = parts
    blind = replace(bundle.manifest.dzedge, graphs={"text": bundle.manifest.dzedge.graphs["text"]})
    other = SimpleNamespace(name="blind", manifest=SimpleNamespace(dzedge=blind))
    assert imagines(bundle) and not imagines(other)
    with pytest.raises(UsageError, match="blind: wam draws nothing that it imagines; choose a wam bundle"):
        foresight.measure(config, other, 1, [0])


def test_seeds_that_reach_into_training_are_refused(parts):
    with pytest.raises(UsageError, match="scene 500000"):
        foresight.measure(*parts, 1, [500])
