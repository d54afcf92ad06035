"""Showing a dream: what has not moved is the camera's, what has is the decoder's in the camera's light."""

import numpy as np
import pytest

from dzedge import dream
from dzedge.config import default_path, load
from dzedge.dream import Eye
from dzedge.robot import verified_bundle
from dzedge.types import Frame

SHAPE = (12, 16, 3)


@pytest.fixture
def now():
    return np.random.default_rng(1).integers(40, 120, SHAPE, dtype=np.uint8)


def moved(image, rows: slice, change: int = 60):
    """`image` with some rows brighter: Shape (1, h, w, 3)."""
    out = image.copy()
    out[rows] += np.uint8(change)
    return out[None]


class TestInlay:
    def test_of_a_perfect_decoder_is_the_future(self, now):
        future = moved(now, slice(3, 7))
        np.testing.assert_array_equal(dream.inlay(now, now, future), future)

    def test_where_nothing_changes_is_the_present_frame(self, now):
        decoded_now = np.full(SHAPE, 80, np.uint8)
        shown = dream.inlay(now, decoded_now, moved(decoded_now, slice(3, 7)))
        np.testing.assert_array_equal(shown[0, :3], now[:3])
        np.testing.assert_array_equal(shown[0, 7:], now[7:])
        assert not np.array_equal(shown[0, 3:7], now[3:7])

    def test_small_changes_do_not_show(self, now):
        shown = dream.inlay(now, now, moved(now, slice(3, 7), change=int(dream.CHANGED[0])))
        np.testing.assert_array_equal(shown[0], now)

    def test_is_lit_as_the_present_frame_is(self, now):
        bright = (now // 2) * 2
        decoded_now = (bright // 2 + 30).astype(np.uint8)  # half the contrast, another brightness
        shown = dream.inlay(bright, decoded_now, moved(decoded_now, slice(3, 7), change=20))
        np.testing.assert_allclose(shown[0, 3:7].astype(int), bright[3:7].astype(int) + 40, atol=1)


class TestDifference:
    def test_adds_what_changes(self, now):
        decoded_now = np.full(SHAPE, 100, np.uint8)
        shown = dream.difference(now, decoded_now, moved(decoded_now, slice(3, 7), change=30))
        np.testing.assert_array_equal(shown[0, 3:7], now[3:7] + 30)
        np.testing.assert_array_equal(shown[0, 7:], now[7:])

    def test_stays_between_black_and_white(self):
        white, black = np.full(SHAPE, 255, np.uint8), np.zeros(SHAPE, np.uint8)
        assert dream.difference(white, black, white[None]).min() == 255
        assert dream.difference(black, white, black[None]).max() == 0


@pytest.fixture(scope="module")
def section():
    return verified_bundle(load(default_path())).manifest.dzedge


class TestEye:
    def test_sees_at_the_models_size(self, section):
        image = np.zeros((120, 160, 3), np.uint8)
        image[:, 80:] = 200, 100, 50
        seen = Eye(section, (120, 160)).see(Frame(image, 0, 1, 1))
        assert (seen.shape, seen.dtype) == ((section.image.height, section.image.width, 3), np.uint8)
        np.testing.assert_array_equal(seen[0, -1], (200, 100, 50))
        assert seen[:, 0].max() == 0

    def test_sees_no_more_than_its_crop(self, section):
        image = np.zeros((120, 160, 3), np.uint8)
        image[:, 80:] = 200
        frame = Frame(image, 0, 1, 1)
        assert Eye(section, (120, 160), (80, 0, 80, 60)).see(frame).min() == 200
        assert Eye(section, (120, 160), (0, 0, 80, 60)).see(frame).max() == 0
