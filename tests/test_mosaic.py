"""Mosaics pixel by pixel."""

import numpy as np
import pytest

from dzedge.errors import UsageError
from dzedge.export.mosaic import Pixels, corners, image, mosaic, view, wrist_above


def grey(*rows: list[int]) -> Pixels:
    """A picture whose three channels can be told apart: value, value + 100, value + 200."""
    return np.stack([np.array(rows, np.uint8) + shift for shift in (0, 100, 200)], axis=-1).astype(np.uint8)


LEFT, RIGHT, WRIST = grey([1, 2], [3, 4]), grey([11, 12], [13, 14]), grey([21, 22], [23, 24])


class TestLayouts:
    def test_droid(self) -> None:
        expected = grey([21, 21, 22, 22], [23, 23, 24, 24], [1, 2, 11, 12], [3, 4, 13, 14])
        np.testing.assert_array_equal(wrist_above(LEFT, RIGHT, WRIST), expected)
        np.testing.assert_array_equal(mosaic("oxe_droid", [LEFT, RIGHT, WRIST]), expected)

    def test_corners(self) -> None:
        """First upper left, second below it, third beside it, the last corner black."""
        black = np.zeros_like(LEFT)
        found = mosaic("agibot", [LEFT, RIGHT, WRIST])
        expected = np.concatenate([np.concatenate([LEFT, WRIST], 1), np.concatenate([RIGHT, black], 1)])
        np.testing.assert_array_equal(found, expected)
        assert found[3, 3].tolist() == [0, 0, 0] and found[0, 2].tolist() == [21, 121, 221]

    def test_two_views(self) -> None:
        """Of DROID too: without a wrist it is the others' layout."""
        found = mosaic("oxe_droid", [LEFT, RIGHT])
        np.testing.assert_array_equal(found, corners(LEFT, RIGHT))
        assert found[:2, 2:].max() == 0 and found[2, 0, 0] == 11

    def test_one_view_stays(self) -> None:
        np.testing.assert_array_equal(mosaic("gr1_unified", [LEFT]), LEFT)

    @pytest.mark.parametrize("count", [0, 4])
    def test_number_of_views(self, count: int) -> None:
        with pytest.raises(UsageError, match=f"{count} views"):
            mosaic("yam", [LEFT] * count)

    def test_views_of_one_shape(self) -> None:
        with pytest.raises(UsageError, match="use `view` first"):
            mosaic("yam", [LEFT, LEFT[:, :1]])


class TestView:
    def test_crop_then_resize_of_a_plane(self) -> None:
        """A plane stays a plane: the middle of the crop is where the middle of the frame was."""
        frame = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None] * 4, (40, 60, 3)).copy()
        found = view(frame, 38, 57)
        np.testing.assert_array_equal(found, frame[1:39, 1:58])

    def test_odd_rests_round_to_even(self) -> None:
        """180 rows keep 171: the rest of 9 leaves 4 above (4.5 rounds to even) and 5 below."""
        frame = np.zeros((180, 320, 3), np.uint8)
        frame[4:175, 8:312] = 255
        assert view(frame, 171, 304).min() == 255
        frame[4] = 0
        assert view(frame, 171, 304)[0].max() == 0

    def test_values_are_cut_off(self) -> None:
        """Half way between 0 and 255 is 127, not 128."""
        frame = np.array([[0, 255]], np.uint8)[..., None].repeat(3, axis=2)
        assert view(frame, 1, 3, kept=1.0)[0, 1].tolist() == [127, 127, 127]

    def test_published_size(self) -> None:
        frame = np.random.default_rng(0).integers(0, 256, (180, 320, 3), dtype=np.uint8)
        assert mosaic("oxe_droid", [view(frame, 176, 320)] * 3).shape == (352, 640, 3)

    def test_not_a_picture(self) -> None:
        with pytest.raises(UsageError, match="float64"):
            view(np.zeros((4, 4, 3)), 2, 2)  # type: ignore[arg-type]


class TestImage:
    def test_values(self) -> None:
        picture = np.zeros((2, 2, 3), np.uint8)
        picture[0, 1] = (255, 0, 51)
        found = image(picture, 2, 2)
        assert found.shape == (1, 3, 2, 2) and found.dtype == np.float32
        np.testing.assert_allclose(found[0, :, 0, 1], [1.0, -1.0, -0.6], atol=1e-6)

    def test_halved_as_published(self) -> None:
        """Bilinear without a filter: every second pair of pixels counts, one in between does not."""
        row = np.array([0, 0, 255, 0, 0, 0, 0, 0], np.uint8)
        picture = np.broadcast_to(row[None, :, None], (4, 8, 3)).copy()
        np.testing.assert_allclose(image(picture, 1, 2)[0, 0, 0], [-0.0, -1.0], atol=1e-6)
