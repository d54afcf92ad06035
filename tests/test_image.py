"""The image kernel, its interpreted twin and its reference: one class of tests for all three."""

import importlib.util
import threading
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dzedge.kernels import image, reference, yuyv


def interpreted(module: ModuleType) -> ModuleType:
    """The same source, not compiled."""
    path = Path(str(module.__file__)).parent / f"{module.__name__.rsplit('.', 1)[-1]}.py"
    spec = importlib.util.spec_from_file_location(f"{module.__name__}__py", path)
    assert spec is not None and spec.loader is not None
    twin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(twin)
    return twin


TWIN = interpreted(image)
GEOMETRIES = [  # source, crop, output: (height, width)
    ((4, 8), None, (2, 4)),  # halves
    ((8, 16), None, (2, 4)),  # quarters: two shifts
    ((16, 8), None, (4, 1)),  # eighths: three shifts
    ((5, 4), None, (5, 4)),  # no resize
    ((8, 6), None, (3, 3)),  # rows 8:3, columns halved
    ((12, 16), (1, 2, 9, 12), (3, 4)),  # cropped thirds
    ((15, 20), None, (9, 12)),  # 5:3, the camera's 120x160 to the model's 72x96
    ((7, 9), (2, 3, 5, 6), (3, 4)),  # coprime
    ((3, 3), None, (5, 7)),  # enlarging
    ((1, 1), None, (2, 3)),  # one pixel
    ((259, 3), None, (2, 2)),  # rows past 16 bits
    ((2, 517), None, (1, 3)),  # columns past 16 bits
    ((128, 8), None, (1, 2)),  # the largest sum of shifts
]


@pytest.fixture(params=[image, TWIN, reference], ids=["compiled", "interpreted", "reference"])
def kernel(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def area(src: np.ndarray, crop: tuple | None, height: int, width: int) -> np.ndarray:
    """The oracle: every source pixel repeated until the output divides it, then plain means. Float64, HWC."""
    if crop is not None:
        src = src[crop[0] : crop[0] + crop[2], crop[1] : crop[1] + crop[3]]
    rows, columns = src.shape[:2]
    fine = src.repeat(height, axis=0).astype(np.float64).reshape(height, rows, columns, 3).mean(axis=1)
    return fine.repeat(width, axis=1).reshape(height, width, columns, 3).mean(axis=2)


class TestImagePlan:
    @pytest.mark.parametrize(("source", "crop", "output"), GEOMETRIES)
    @pytest.mark.parametrize("order", ["RGB", "BGR"])
    def test_is_the_exact_area_mean(
        self, kernel: ModuleType, source: tuple, crop: tuple | None, output: tuple, order: str
    ) -> None:
        src = noise(*source)
        scale, bias = np.array([0.01, 0.02, 0.03]), np.array([-1.0, 0.5, 0.0])
        dst = np.full((3, *output), np.nan, np.float32)
        kernel.ImagePlan(*source, crop, *output, scale, bias, order).run(src, dst)
        mean = area(src, crop, *output)
        want = (mean if order == "RGB" else mean[:, :, ::-1]) * scale + bias
        assert np.abs(dst - want.transpose(2, 0, 1)).max() < 1e-6

    @pytest.mark.parametrize(("source", "crop", "output"), GEOMETRIES)
    @pytest.mark.parametrize("level", [0, 255])
    def test_black_and_white_are_exact(
        self, kernel: ModuleType, source: tuple, crop: tuple | None, output: tuple, level: int
    ) -> None:
        dst = np.empty((3, *output), np.float32)
        kernel.ImagePlan(*source, crop, *output).run(np.full((*source, 3), level, np.uint8), dst)
        assert np.abs(dst - (level / 127.5 - 1)).max() <= 2.4e-7

    def test_compiled_and_interpreted_are_equal_to_the_bit(self) -> None:
        for number, (source, crop, output) in enumerate(GEOMETRIES):
            src = noise(*source, seed=number)
            outs = [np.empty((3, *output), np.float32) for _ in range(2)]
            for module, dst in zip((image, TWIN), outs, strict=True):
                module.ImagePlan(*source, crop, *output, np.array([0.1, 0.2, 0.3]), 0.7).run(src, dst)
            assert outs[0].tobytes() == outs[1].tobytes()

    def test_rows_may_lie_apart(self, kernel: ModuleType) -> None:
        wide = noise(12, 40)
        apart, packed = np.empty((3, 6, 8), np.float32), np.empty((3, 6, 8), np.float32)
        plan = kernel.ImagePlan(12, 16, None, 6, 8)
        plan.run(wide[:, 5:21], apart)
        plan.run(wide[:, 5:21].copy(), packed)
        assert (apart == packed).all()
        plan.run(wide[::-1, 5:21], apart)
        assert np.allclose(apart, packed[:, ::-1], rtol=0, atol=1e-6)

    def test_the_crop_is_the_plans(self, kernel: ModuleType) -> None:
        src = noise(20, 30)
        dst, want = np.empty((3, 5, 7), np.float32), np.empty((3, 5, 7), np.float32)
        kernel.ImagePlan(20, 30, (3, 4, 11, 13), 5, 7).run(src, dst)
        kernel.ImagePlan(11, 13, None, 5, 7).run(src[3:14, 4:17].copy(), want)
        assert (dst == want).all()

    def test_a_plan_serves_again_and_again(self, kernel: ModuleType) -> None:
        plan = kernel.ImagePlan(8, 6, None, 3, 4)
        first, second, again = (np.empty((3, 3, 4), np.float32) for _ in range(3))
        plan.run(noise(8, 6, 1), first)
        plan.run(noise(8, 6, 2), second)
        plan.run(noise(8, 6, 1), again)
        assert (first == again).all() and (first != second).any()

    def test_read_only_frames_will_do(self, kernel: ModuleType) -> None:
        src = noise(4, 4)
        src.flags.writeable = False
        kernel.ImagePlan(4, 4, None, 2, 2).run(src, np.empty((3, 2, 2), np.float32))

    def test_threads_with_plans_of_their_own_do_not_meet(self) -> None:
        want = np.empty((3, 40, 60), np.float32)
        src = noise(120, 160)
        image.ImagePlan(120, 160, None, 40, 60).run(src, want)
        outs = [np.empty_like(want) for _ in range(4)]

        def work(dst: np.ndarray) -> None:
            plan = image.ImagePlan(120, 160, None, 40, 60)
            for _ in range(50):
                plan.run(src, dst)

        threads = [threading.Thread(target=work, args=(dst,)) for dst in outs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all((dst == want).all() for dst in outs)


def yuyv_noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Any bytes: most of them colours that RGB does not have."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 2), dtype=np.uint8)


def natural(height: int, width: int) -> np.ndarray:
    """A smooth picture of moderate colours, all inside the RGB cube, as YUYV."""
    v, u = np.mgrid[0:height, 0:width]
    raw = np.empty((height, width, 2), np.uint8)
    raw[..., 0] = 110 + 60 * np.sin(u / 9) * np.cos(v / 7)
    raw[:, 0::2, 1] = 128 + 20 * np.sin(v / 11)[:, 0::2]
    raw[:, 1::2, 1] = 128 + 20 * np.cos(u / 13)[:, 0::2]
    return raw


class TestYuyv:
    GEOMETRIES = (
        ((4, 8), None, (2, 4)),
        ((5, 4), None, (5, 4)),  # no resize
        ((8, 6), None, (3, 3)),  # a pair of pixels meets two columns
        ((12, 16), (1, 3, 9, 12), (3, 4)),  # a crop that begins inside a pair
        ((12, 16), (0, 1, 12, 14), (4, 7)),  # and ends inside one
        ((7, 10), (2, 3, 5, 6), (3, 4)),
        ((3, 4), None, (5, 7)),  # enlarging
        ((1, 2), None, (2, 3)),
        ((259, 4), None, (2, 2)),  # rows past 16 bits
        ((2, 518), None, (1, 3)),
        ((120, 160), None, (72, 96)),
    )

    @pytest.mark.parametrize(("source", "crop", "output"), GEOMETRIES)
    @pytest.mark.parametrize("order", ["RGB", "BGR"])
    def test_is_the_matrix_of_the_exact_area_mean(
        self, kernel: ModuleType, source: tuple, crop: tuple | None, output: tuple, order: str
    ) -> None:
        raw = yuyv_noise(*source)
        dst = np.full((3, *output), np.nan, np.float32)
        scale, bias = np.array([0.01, 0.02, 0.03]), np.array([-1.0, 0.5, 0.0])
        kernel.ImagePlan(*source, crop, *output, scale, bias, order, "yuyv").run(raw, dst)
        planes = np.stack([raw[..., 0], *(np.repeat(raw[:, i::2, 1], 2, axis=1) for i in (0, 1))], axis=-1)
        y, u, v = np.moveaxis(area(planes, crop, *output), -1, 0)
        luma = 298 / 256 * (y - 16)
        rgb = [luma + 409 / 256 * (v - 128), luma - 100 / 256 * (u - 128) - 208 / 256 * (v - 128)]
        want = np.clip(np.stack([*rgb, luma + 516 / 256 * (u - 128)], axis=-1), 0, 255)
        want = (want if order == "RGB" else want[:, :, ::-1]) * scale + bias
        assert np.abs(dst - want.transpose(2, 0, 1)).max() < 4e-6

    def test_compiled_and_interpreted_are_equal_to_the_bit(self) -> None:
        for number, (source, crop, output) in enumerate(self.GEOMETRIES[:-1]):
            raw = yuyv_noise(*source, seed=number)
            outs = [np.empty((3, *output), np.float32) for _ in range(2)]
            for module, dst in zip((image, TWIN), outs, strict=True):
                scale = np.array([0.1, 0.2, 0.3])
                module.ImagePlan(*source, crop, *output, scale, 0.7, source="yuyv").run(raw, dst)
            assert outs[0].tobytes() == outs[1].tobytes()

    def test_is_what_converting_first_gives_to_half_a_count(self) -> None:
        """Where no pixel is clipped, the two orders differ only by the rounding of the 8-bit picture between them."""
        raw = natural(120, 160)
        rgb = np.empty((120, 160, 3), np.uint8)
        yuyv.yuyv_to_rgb(raw, rgb)
        assert rgb.min() > 0 and rgb.max() < 255
        fused, apart = np.empty((3, 72, 96), np.float32), np.empty((3, 72, 96), np.float32)
        image.ImagePlan(120, 160, None, 72, 96, 1.0, 0.0, source="yuyv").run(raw, fused)
        image.ImagePlan(120, 160, None, 72, 96, 1.0, 0.0).run(rgb, apart)
        assert 0 < np.abs(fused - apart).max() < 0.51

    def test_saturated_pixels_are_clipped_after_the_mean(self) -> None:
        raw = yuyv_noise(8, 8)
        rgb = np.empty((8, 8, 3), np.uint8)
        yuyv.yuyv_to_rgb(raw, rgb)
        fused, apart = np.empty((3, 2, 2), np.float32), np.empty((3, 2, 2), np.float32)
        image.ImagePlan(8, 8, None, 2, 2, 1.0, 0.0, source="yuyv").run(raw, fused)
        image.ImagePlan(8, 8, None, 2, 2, 1.0, 0.0).run(rgb, apart)
        assert np.abs(fused - apart).max() > 3.0
        assert fused.min() >= 0 and fused.max() <= 255

    def test_rows_may_lie_apart(self, kernel: ModuleType) -> None:
        wide = yuyv_noise(12, 40)
        apart, packed = np.empty((3, 6, 8), np.float32), np.empty((3, 6, 8), np.float32)
        plan = kernel.ImagePlan(12, 16, None, 6, 8, source="yuyv")
        plan.run(wide[:, 6:22], apart)
        plan.run(wide[:, 6:22].copy(), packed)
        assert (apart == packed).all()

    def test_a_plan_serves_one_kind_of_picture(self) -> None:
        assert image.ImagePlan(4, 4, source="yuyv").source == "yuyv"
        plan, dst = image.ImagePlan(4, 4, None, 2, 2, source="yuyv"), np.empty((3, 2, 2), np.float32)
        with pytest.raises(ValueError, match=r"must be uint8 \(4, 4, 2\)"):
            plan.run(noise(4, 4), dst)
        with pytest.raises(ValueError, match=r"must be \(any, 2, 1\)"):
            plan.run(yuyv_noise(4, 8)[:, ::2], dst)


@pytest.mark.parametrize("module", [image, TWIN], ids=["compiled", "interpreted"])
class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"source_height": 0}, "source_height is 0, must be 1 to 16384 pixels"),
            ({"source_width": 20000}, "source_width is 20000, must be 1 to 16384 pixels"),
            ({"height": 0}, "height is 0, must be 1 to 16384"),
            ({"width": -1}, "width is -1, must be 1 to 16384"),
            ({"crop": (0, 0, 8)}, r"crop is \(0, 0, 8\), must be \(top, left, height, width\)"),
            ({"crop": (8, 0, 1, 1)}, "crop top is 8, must be 0 to 7 pixels"),
            ({"crop": (0, -1, 1, 1)}, "crop left is -1, must be 0 to 9 pixels"),
            ({"crop": (2, 0, 7, 1)}, "crop height is 7, must be 1 to 6 pixels"),
            ({"crop": (0, 4, 1, 0)}, "crop width is 0, must be 1 to 6 pixels"),
            ({"scale": np.nan}, "scale is nan, must be one finite number or three"),
            ({"bias": np.zeros(2)}, "bias is .*, must be one finite number or three"),
            ({"order": "YUV"}, "order is 'YUV', must be 'RGB' or 'BGR'"),
            ({"source": "nv12"}, "source is 'nv12', must be 'rgb' or 'yuyv'"),
            ({"source": "yuyv", "source_width": 9}, "source_width is 9, must be even"),
        ],
    )
    def test_a_plan(self, module: ModuleType, change: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            module.ImagePlan(**{"source_height": 8, "source_width": 10, "height": 4, "width": 5, **change})

    def test_an_image(self, module: ModuleType) -> None:
        plan = module.ImagePlan(8, 10, None, 4, 5)
        dst = np.empty((3, 4, 5), np.float32)
        for bad in (noise(8, 9), noise(8, 10)[:, :, 0], noise(8, 10).astype(np.int8)):
            with pytest.raises(ValueError, match=r"src is .*, must be uint8 \(8, 10, 3\)"):
                plan.run(bad, dst)
        for bad in (noise(8, 20)[:, ::2], noise(8, 10)[:, :, ::-1], noise(8, 10)[:, ::-1]):
            with pytest.raises(ValueError, match="src has strides"):
                plan.run(bad, dst)

    def test_a_tensor(self, module: ModuleType) -> None:
        plan = module.ImagePlan(8, 10, None, 4, 5)
        for bad in (np.empty((3, 5, 4), np.float32), np.empty((3, 4, 5)), np.empty((3, 4, 10), np.float32)[:, :, ::2]):
            with pytest.raises(ValueError, match=r"dst is .*, must be packed float32 \(3, 4, 5\)"):
                plan.run(noise(8, 10), bad)
