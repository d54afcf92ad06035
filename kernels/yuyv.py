"""YUYV (4:2:2, ITU-R BT.601, limited range) to RGB at its own size, as librealsense converts it for RGB8.

8.8 fixed point. Webcams and D400 colour sensors deliver YUYV; what becomes a tensor at once is better left to
`image.ImagePlan`, which converts only the pixels it puts out.
"""

import cython
import numpy as np


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def yuyv_row(
    source: cython.pointer[cython.const[cython.uchar]],
    target: cython.pointer[cython.uchar],
    width: cython.Py_ssize_t,
) -> cython.void:
    """One row of `width` pixels; width is even."""
    x: cython.Py_ssize_t
    luma: cython.int
    u: cython.int
    v: cython.int
    for x in range(width):
        luma = 298 * (cython.cast(cython.int, source[2 * x]) - 16) + 128
        u = cython.cast(cython.int, source[4 * (x // 2) + 1]) - 128
        v = cython.cast(cython.int, source[4 * (x // 2) + 3]) - 128
        target[3 * x] = _byte((luma + 409 * v) >> 8)
        target[3 * x + 1] = _byte((luma - 100 * u - 208 * v) >> 8)
        target[3 * x + 2] = _byte((luma + 516 * u) >> 8)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _byte(value: cython.int) -> cython.uchar:
    if value < 0:
        return 0
    if value > 255:
        return 255
    return cython.cast(cython.uchar, value)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _yuyv_rows(src: cython.const[cython.uchar][:, :, :], dst: cython.uchar[:, :, ::1]) -> cython.void:
    y: cython.Py_ssize_t
    for y in range(dst.shape[0]):
        if cython.compiled:
            yuyv_row(cython.address(src[y, 0, 0]), cython.address(dst[y, 0, 0]), dst.shape[1])
        else:
            yuyv_row(src[y].reshape(-1).astype(int), dst[y].reshape(-1), dst.shape[1])


def yuyv_to_rgb(src: np.ndarray, dst: np.ndarray) -> None:
    """YUYV to RGB at its own size, as librealsense and `FramePump` convert it.

    src: Shape (height, width, 2), uint8, width even; rows may lie apart, pixels may not. dst: Shape (height, width, 3),
    uint8, packed, written. Raises ValueError when a shape, type or layout disagrees.
    """
    if src.ndim != 3 or src.shape[2] != 2 or src.dtype != np.uint8 or src.shape[1] % 2 or 0 in src.shape:
        raise ValueError(f"src is {src.dtype} {src.shape}, must be uint8 (height, even width, 2)")
    if src.strides[1:] != (2, 1):
        raise ValueError(f"src has strides {src.strides}, must be (any, 2, 1): copy it")
    shape = (*src.shape[:2], 3)
    if dst.shape != shape or dst.dtype != np.uint8 or not dst.flags.c_contiguous:
        raise ValueError(f"dst is {dst.dtype} {dst.shape}, must be packed uint8 {shape}")
    _yuyv_rows(src, dst)
