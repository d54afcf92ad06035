"""The filmstrip of a dream, from a made-up history."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dzedge import filmstrip
from dzedge.hardware.sim import task as tasks
from dzedge.hardware.sim.scene import COLOURS, draw_layout
from dzedge.history import History, Imagination, RunResult, Seen
from dzedge.picture import Imaginer

START_NS, TICK_NS, DT_NS, FRAMES = 7_000_000_000, 10_000_000, 200_000_000, 4
REACH_NS = FRAMES * DT_NS
BUSY = 150, 200
"""Ticks during which the arm moves."""


def make_history(ticks: int = 400, every: int = 40) -> History:
    """A chunk every `every` ticks, frames every 6, each as bright as its tick."""
    history = History()
    angle = 0.0
    for k in range(ticks):
        time_ns = START_NS + k * TICK_NS
        angle += 0.01 * (BUSY[0] <= k < BUSY[1])
        history.times_ns.append(time_ns)
        history.commands.append(np.full(6, angle))
        if k % 6 == 0:
            history.seen.append(Seen(time_ns, np.full((120, 160, 3), k // 2, np.uint8)))
        if k % every == 0:
            history.imaginations.append(Imagination(k // every, time_ns, np.full(8, k, np.float32)))
    return history


def imaginer(error: int = 0) -> Imaginer:
    """Imagines just what comes, `error` too bright; a latent is the tick that it was made at."""

    def draw(latents, present):
        nearest = [6 * round((latents[0] + 20 * (i + 1)) / 6) for i in range(FRAMES)]
        return np.stack([np.full((72, 96, 3), min(tick // 2 + error, 255), np.uint8) for tick in nearest])

    return Imaginer(draw, DT_NS, FRAMES)


def result(task: str, history: History) -> RunResult:
    return RunResult(task, True, 3, 4.0, 10, {}, 0, "", {}, history)


def begins(strip) -> list[float]:
    return [round(dream.at_s, 3) for dream in strip.dreams]


class TestCut:
    def test_shows_what_came_beside_what_was_imagined(self):
        strip = filmstrip.cut(result("reach the red cube", make_history()), imaginer())
        assert strip.split == "seen" and len(strip.dreams) == filmstrip.DREAMS
        for dream in strip.dreams:
            assert dream.ahead_s == (0.2, 0.4, 0.6, 0.8)
            np.testing.assert_allclose(dream.came[:, 0, 0, 0], dream.imagined[:, 0, 0, 0], atol=3)
            assert abs(int(dream.present[0, 0, 0]) - 50 * dream.at_s) <= 3
        assert strip.apart < 0.01

    def test_a_dream_begins_where_the_one_before_ends(self):
        first, second = begins(filmstrip.cut(result("reach the red cube", make_history()), imaginer()))
        assert second - first == pytest.approx(REACH_NS / 1e9)

    def test_is_of_the_stretch_with_most_motion(self):
        first, second = begins(filmstrip.cut(result("reach the red cube", make_history()), imaginer()))
        assert first <= BUSY[0] * TICK_NS / 1e9 and second + 0.8 >= BUSY[1] * TICK_NS / 1e9

    def test_of_an_unseen_motion_is_the_last(self):
        strip = filmstrip.cut(result("circle over the red cube", make_history()), imaginer())
        assert strip.split == "novel"
        assert begins(strip) == [2.0, 2.8]  # the last that the camera saw to its end

    def test_is_short_where_chunks_do_not_meet(self):
        strip = filmstrip.cut(result("reach the red cube", make_history(every=51)), imaginer())
        assert len(strip.dreams) == 1

    def test_of_nothing_is_none(self):
        assert filmstrip.cut(result("reach the red cube", History()), imaginer()) is None
        assert filmstrip.cut(result("reach the red cube", make_history(ticks=60)), imaginer()) is None


class TestDraw:
    def test_one_strip_below_the_other(self, tmp_path):
        one = filmstrip.cut(result("reach the red cube", make_history()), imaginer())
        short = replace(one, dreams=one.dreams[:1], success=None)
        sizes = []
        for strips in ([one], [one, short], [short]):
            filmstrip.draw(strips, tmp_path / "strip.png")
            with Image.open(tmp_path / "strip.png") as image:
                sizes.append(image.size)
        assert sizes[1][0] == sizes[0][0] > sizes[2][0]
        assert sizes[1][1] > 1.8 * sizes[0][1] and sizes[2][1] == sizes[0][1]

    def test_document_and_table_name_each(self, tmp_path):
        close, far = (filmstrip.cut(result("circle over the red cube", make_history()), imaginer(e)) for e in (0, 50))
        told = filmstrip.document([close, far], tmp_path / "strip.png")
        assert (told["seed"], told["files"]) == (3, [str(tmp_path / "strip.png")])
        first, second = told["dreams"]
        assert (first["task"], first["split"], first["success"]) == ("circle over the red cube", "novel", True)
        assert second["difference"] > first["difference"] + 0.15
        assert told["difference"] == pytest.approx((first["difference"] + second["difference"]) / 2)
        assert filmstrip.table([close, far]).row_count == 2


class TestScenes:
    @staticmethod
    def bundle(*words: str):
        language = SimpleNamespace(vocabulary=dict.fromkeys(words, 1))
        return SimpleNamespace(manifest=SimpleNamespace(dzedge=SimpleNamespace(language=language)))

    def test_a_labelled_and_an_unseen_motion_about_a_cube_that_is_there(self):
        known = self.bundle("reach", "circle", "over", "the", "cube", *COLOURS)
        for seed in range(10):
            asked = [tasks.parse(words) for words in filmstrip.choose(known, seed, 3)]
            assert [task.split for task in asked] == ["seen", "novel"]
            assert all(task.cube in draw_layout(seed, 3).colours for task in asked)

    def test_only_what_the_model_has_words_for(self):
        (words,) = filmstrip.choose(self.bundle("reach", "the", "cube", *COLOURS), 3, 3)
        assert words.startswith("reach the ")

    @pytest.mark.parametrize("words", ["reach the red cube", "push the cyan cube left"])
    def test_a_scene_where_a_task_can_be_done(self, words):
        task = tasks.parse(words)
        scene = filmstrip.find_scene(words, 20, 3)
        assert scene >= 20 and task.cube in draw_layout(scene, 3).colours
        assert filmstrip.find_scene(words, scene, 3) == scene
        assert filmstrip.find_scene(words, scene + 1, 3) > scene

    def test_free_words_fit_anywhere(self):
        assert filmstrip.find_scene("sort the cubes", 20, 3) == 20
