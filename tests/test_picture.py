"""The picture of a run, from a made-up history."""

import numpy as np
import pytest
from PIL import Image

from dzedge import canvas, picture
from dzedge.config import default_path, load
from dzedge.history import History, Imagination, RunResult, Seen
from dzedge.kernels.tick import State
from dzedge.picture import Imaginer

START_NS, TICK_NS, DT_NS = 7_000_000_000, 10_000_000, 200_000_000
SHAPE = (72, 96, 3)


@pytest.fixture(scope="module")
def config():
    return load(default_path())


def make_history(ticks: int = 400, joints: int = 6) -> History:
    """Joint 0 moves faster and faster; a chunk every 20 ticks, frames every 6."""
    history = History()
    for k in range(ticks):
        time_ns = START_NS + k * TICK_NS
        command = np.zeros(joints)
        command[0] = (k / ticks) ** 2
        history.times_ns.append(time_ns)
        history.states.append(int(State.ARMED if k < 20 else State.RUN))
        history.chunk_ids.append(k // 20 - 1)
        history.commands.append(command)
        history.positions.append(command - 0.02)
        if k % 6 == 0:
            history.seen.append(Seen(time_ns, np.full((120, 160, 3), k % 250, np.uint8)))
        if k % 20 == 0 and k:
            history.imaginations.append(Imagination(k // 20 - 1, time_ns, np.full(8, k, np.float32)))
    return history


def imaginer(frames: int = 4) -> Imaginer:
    def draw(latents, present):
        assert present.image.shape == (120, 160, 3)
        return np.full((frames, *SHAPE), latents[0] % 250, np.uint8)

    return Imaginer(draw, DT_NS, frames)


def make_result(history: History, success: bool | None = True) -> RunResult:
    stages = {f"inference.{i}": {"p50_ms": 10.0**-i, "p99_ms": 3 * 10.0**-i} for i in range(9)}
    return RunResult("reach the red cube", success, 3, 4.0, 19, {"stale": 2}, 0, "", stages, history)


class TestSummary:
    @pytest.mark.parametrize("success", [True, False, None])
    def test_is_drawn(self, tmp_path, config, success):
        path = tmp_path / "summary.png"
        picture.summary(make_result(make_history(), success), config, imaginer(), path)
        with Image.open(path) as image:
            assert image.width == picture.WIDTH and image.height > 1000
            colours = np.array([colour for _, colour in image.convert("RGB").getcolors(1 << 24)])
        for wanted in (picture.COMMANDED, picture.MEASURED, picture.SEAM, picture.STATE_COLOURS[State.RUN]):
            far = np.abs(colours - np.frombuffer(bytes.fromhex(wanted[1:]), np.uint8)).max(axis=1)
            assert far.min() < 30

    def test_without_imagination_or_motion(self, tmp_path, config):
        path = tmp_path / "summary.png"
        picture.summary(make_result(History()), config, None, path)
        with Image.open(path) as image:
            assert image.width == picture.WIDTH

    def test_values_that_are_not_finite_do_not_spoil_it(self, tmp_path, config):
        history = make_history(50)
        history.commands[10] = np.full(6, np.nan)
        picture.summary(make_result(history), config, None, tmp_path / "summary.png")


class TestMoments:
    def test_are_spread_and_whole(self):
        history = make_history()
        moments = picture.pick_moments(history, imaginer(), 4)
        assert len(moments) == 4
        times = [moment.t_obs_ns for moment in moments]
        assert times == sorted(times)
        assert times[-1] + 4 * DT_NS <= history.seen[-1].capture_ns

    def test_prefer_motion(self):
        (only,) = picture.pick_moments(make_history(), imaginer(), 1)
        whole = [i for i in make_history().imaginations if i.t_obs_ns + 4 * DT_NS <= START_NS + 396 * TICK_NS]
        assert only.t_obs_ns == whole[-1].t_obs_ns

    def test_of_nothing_are_none(self):
        assert picture.pick_moments(History(), imaginer(), 4) == []


class TestDifference:
    def test_of_equal_images_is_zero(self):
        assert picture.difference(np.full((120, 160, 3), 90, np.uint8), np.full(SHAPE, 90, np.uint8)) == 0.0

    def test_of_black_and_white_is_one(self):
        white = np.full((120, 160, 3), 255, np.uint8)
        assert picture.difference(white, np.zeros(SHAPE, np.uint8)) == 1.0


class TestTicks:
    @pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.3, 2.1), (0, 12.7), (1e-4, 3e-4), (5, 5)])
    def test_lie_inside_and_are_few(self, low, high):
        values = canvas.ticks(low, high, 5)
        assert len(values) <= 6
        assert all(low - 1e-9 <= value <= high + 1e-9 for value in values)

    def test_are_round(self):
        assert canvas.ticks(0, 1, 5) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
