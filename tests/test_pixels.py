"""Webcam pixels as RGB, against Pillow and against the formula in floating point."""

import io

import numpy as np
import pytest
from PIL import Image

from dzedge.hardware.pixels import grey, mjpeg, yuyv

WIDTH, HEIGHT = 32, 24


def jpeg(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=90)
    return out.getvalue()


def without_tables(data: bytes) -> bytes:
    """As webcams send it: no Huffman tables (segment 0xFFC4)."""
    out, at = bytearray(data[:2]), 2
    while data[at + 1] != 0xDA:
        length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] != 0xC4:
            out += data[at : at + length]
        at += length
    return bytes(out + data[at:])


def smooth() -> np.ndarray:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([8 * x, 10 * y, 255 - 4 * (x + y)], axis=2).astype(np.uint8)


class TestYuyv:
    def test_formula_within_one_count(self):
        data = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH // 2, 4), np.uint8)
        y = np.repeat(data[..., ::2].reshape(HEIGHT, WIDTH)[..., None], 1, axis=2)[..., 0].astype(float)
        u, v = (np.repeat(data[..., k].astype(float), 2, axis=1) - 128.0 for k in (1, 3))
        luma = 1.164384 * (y - 16.0)
        wanted = np.stack([luma + 1.596027 * v, luma - 0.391762 * u - 0.812968 * v, luma + 2.017232 * u], axis=2)
        got = yuyv(data.tobytes(), WIDTH, HEIGHT, 2 * WIDTH).astype(float)
        assert np.abs(got - np.clip(wanted, 0.0, 255.0)).max() <= 1.01

    def test_padding_of_rows_is_left_out(self):
        data = np.random.default_rng(1).integers(0, 256, (HEIGHT, 2 * WIDTH), np.uint8)
        padded = np.pad(data, ((0, 0), (0, 16)), constant_values=255)
        plain = yuyv(data.tobytes(), WIDTH, HEIGHT, 2 * WIDTH)
        np.testing.assert_array_equal(yuyv(padded.tobytes(), WIDTH, HEIGHT, 2 * WIDTH + 16), plain)
        np.testing.assert_array_equal(yuyv(padded.tobytes()[:-16], WIDTH, HEIGHT, 2 * WIDTH + 16), plain)
        assert (yuyv(padded.tobytes()[16:], WIDTH, HEIGHT, 2 * WIDTH + 16) != plain).any()

    def test_short(self):
        with pytest.raises(ValueError, match=r"1535 bytes, expected 1536"):
            yuyv(bytes(2 * WIDTH * HEIGHT - 1), WIDTH, HEIGHT, 2 * WIDTH)


class TestMjpeg:
    def test_as_pillow(self):
        got = mjpeg(jpeg(smooth()), WIDTH, HEIGHT, 0)
        assert np.abs(got.astype(int) - smooth()).mean() < 3.0
        assert got.flags.c_contiguous and got.shape == (HEIGHT, WIDTH, 3)

    def test_without_huffman_tables(self):
        data = jpeg(smooth())
        bare = without_tables(data)
        assert len(bare) < len(data) - 300
        np.testing.assert_array_equal(mjpeg(bare, WIDTH, HEIGHT, 0), mjpeg(data, WIDTH, HEIGHT, 0))

    def test_zeros_behind_it_do_no_harm(self):
        data = jpeg(smooth())
        np.testing.assert_array_equal(mjpeg(data + bytes(500), WIDTH, HEIGHT, 0), mjpeg(data, WIDTH, HEIGHT, 0))

    @pytest.mark.parametrize(
        "damage", [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: bytes(100), lambda d: d[2:]]
    )
    def test_damaged(self, damage):
        with pytest.raises(ValueError, match="damaged JPEG"):
            mjpeg(damage(jpeg(smooth())), WIDTH, HEIGHT, 0)

    def test_other_size(self):
        with pytest.raises(ValueError, match="JPEG of 32x24, expected 64x24"):
            mjpeg(jpeg(smooth()), 64, HEIGHT, 0)

    def test_other_picture_formats_are_refused(self):
        out = io.BytesIO()
        Image.fromarray(smooth()).save(out, "PNG")
        with pytest.raises(ValueError, match="damaged JPEG"):
            mjpeg(out.getvalue(), WIDTH, HEIGHT, 0)


def test_grey():
    data = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH), np.uint8)
    got = grey(data.tobytes(), WIDTH, HEIGHT, WIDTH)
    assert all((got[..., channel] == data).all() for channel in range(3))
