"""YUYV to RGB: the kernel, its interpreted twin and its reference."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dzedge.kernels import reference, yuyv


def interpreted(module: ModuleType) -> ModuleType:
    """The same source, not compiled."""
    path = Path(str(module.__file__)).parent / f"{module.__name__.rsplit('.', 1)[-1]}.py"
    spec = importlib.util.spec_from_file_location(f"{module.__name__}__py", path)
    assert spec is not None and spec.loader is not None
    twin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(twin)
    return twin


TWIN = interpreted(yuyv)


@pytest.fixture(params=[yuyv, TWIN, reference], ids=["compiled", "interpreted", "reference"])
def kernel(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


def convert(kernel: ModuleType, raw: np.ndarray) -> np.ndarray:
    rgb = np.full((*raw.shape[:2], 3), 77, np.uint8)
    kernel.yuyv_to_rgb(raw, rgb)
    return rgb


class TestConversion:
    @pytest.mark.parametrize(
        ("yuv", "rgb"),
        [
            ((16, 128, 128), (0, 0, 0)),
            ((235, 128, 128), (255, 255, 255)),
            ((81, 90, 240), (255, 0, 0)),
            ((145, 54, 34), (0, 255, 0)),
            ((41, 240, 110), (0, 0, 255)),
            ((126, 128, 128), (128, 128, 128)),
        ],
    )
    def test_known_colours(self, kernel: ModuleType, yuv: tuple, rgb: tuple) -> None:
        """ITU-R BT.601's bars, to the rounding of 8 bits."""
        raw = np.array([[[yuv[0], yuv[1]], [yuv[0], yuv[2]]]], np.uint8)
        assert np.abs(convert(kernel, raw)[0].astype(int) - rgb).max() <= 1

    def test_all_three_are_equal(self) -> None:
        raw = np.random.default_rng(0).integers(0, 256, (24, 32, 2), np.uint8)
        first = convert(yuyv, raw)
        assert np.array_equal(first, convert(TWIN, raw))
        assert np.array_equal(first, convert(reference, raw))
        assert np.array_equal(convert(yuyv, raw[:, ::-1].copy()), first) is False

    def test_rows_may_lie_apart(self, kernel: ModuleType) -> None:
        raw = np.random.default_rng(1).integers(0, 256, (6, 20, 2), np.uint8)
        assert np.array_equal(convert(kernel, raw[:, 4:12]), convert(kernel, raw[:, 4:12].copy()))

    def test_two_pixels_share_their_colour(self, kernel: ModuleType) -> None:
        raw = np.array([[[100, 90], [100, 200], [100, 200], [100, 90]]], np.uint8)
        rgb = convert(kernel, raw)[0]
        assert (rgb[0] == rgb[1]).all() and (rgb[2] == rgb[3]).all() and (rgb[0] != rgb[2]).any()


@pytest.mark.parametrize("module", [yuyv, TWIN], ids=["compiled", "interpreted"])
class TestRefusals:
    @pytest.mark.parametrize("shape", [(4, 5, 2), (4, 6, 3), (4, 6), (0, 6, 2)])
    def test_a_picture(self, module: ModuleType, shape: tuple) -> None:
        with pytest.raises(ValueError, match=r"must be uint8 \(height, even width, 2\)"):
            module.yuyv_to_rgb(np.zeros(shape, np.uint8), np.zeros((4, 6, 3), np.uint8))

    def test_pixels_apart(self, module: ModuleType) -> None:
        with pytest.raises(ValueError, match=r"must be \(any, 2, 1\): copy it"):
            module.yuyv_to_rgb(np.zeros((4, 12, 2), np.uint8)[:, ::2], np.zeros((4, 6, 3), np.uint8))

    def test_a_target(self, module: ModuleType) -> None:
        raw = np.zeros((4, 6, 2), np.uint8)
        for bad in (np.zeros((4, 6, 2), np.uint8), np.zeros((4, 6, 3), int), np.zeros((4, 12, 3), np.uint8)[:, ::2]):
            with pytest.raises(ValueError, match=r"must be packed uint8 \(4, 6, 3\)"):
                module.yuyv_to_rgb(raw, bad)
