"""Camera image to model tensor in one pass: crop, exact area resize, normalise, HWC uint8 to CHW float32.

An output pixel is the mean of the source area it covers, border pixels weighted by their coverage. With the
ratio source : output reduced to p : q, every coverage is a whole number of q-ths and they sum to p; so the
sums are made in integers, exactly, and one multiplication and addition in float32 does both the mean and the
normalisation. A bilinear resize would alias here, and OpenCV's INTER_AREA rounds to uint8 in between.

From YUYV (4:2:2) the same sums are made of Y, U and V, two bytes a pixel instead of three; mean and colour matrix are
both linear, so the matrix has only the output's pixels to turn into RGB. What lies outside the RGB cube is clipped
there, after the mean: where a picture is so saturated that single pixels would be clipped, the two orders differ.
"""

from math import gcd

import cython
import numpy as np

NARROW = cython.declare(cython.int, 257)  # 255 * 257 is the largest sum that fits 16 bits
MOST = cython.declare(cython.int, 16384)  # pixels a side, so that 255 * p fits 32 bits with room to spare


def coverage(source: int, output: int) -> tuple:
    """Which source indices each output index covers, and by how much.

    Returns the first index, Shape (output,), and the weights of it and its followers, Shape (output, taps),
    whole numbers that sum to source / gcd(source, output) in each row. No index leaves the source.
    """
    unit = gcd(source, output)
    p, q = source // unit, output // unit
    begin = np.arange(output) * p
    taps = int(((begin + p - 1) // q - begin // q).max()) + 1
    first = np.minimum(begin // q, source - taps)
    cell = (first[:, None] + np.arange(taps)) * q
    weights = np.minimum(cell + q, begin[:, None] + p) - np.maximum(cell, begin[:, None])
    return first, np.maximum(weights, 0)


def chroma_coverage(first: np.ndarray, weights: np.ndarray, pairs: int) -> tuple:
    """`coverage` in pixels as one in pairs of pixels, which share their U and V. pairs: how many there are."""
    pair = (first[:, None] + np.arange(weights.shape[1])) // 2
    taps = int((pair[:, -1] - pair[:, 0]).max()) + 1
    begin = np.minimum(pair[:, 0], pairs - taps)
    shared = np.zeros((len(first), taps), np.int64)
    np.add.at(shared, (np.arange(len(first))[:, None], pair - begin[:, None]), weights)
    return begin, shared


def halvings(p: int, q: int) -> int:
    """log2 of a ratio of columns of 1, 2, 4 or 8, else -1: such lines are summed by shifting and adding."""
    return {1: 0, 2: 1, 4: 2, 8: 3}.get(p, -1) if q == 1 else -1


def ranged(name: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise ValueError(f"{name} is {value}, must be {least} to {most} pixels")
    return value


def triple(name: str, values: np.ndarray | float) -> np.ndarray:
    """Three finite float64, one for each output channel."""
    array = np.asarray(values, np.float64)
    if array.shape not in ((), (3,)) or not np.isfinite(array).all():
        raise ValueError(f"{name} is {values}, must be one finite number or three")
    return np.broadcast_to(array, 3)


def frozen(values: np.ndarray, kind: type) -> np.ndarray:
    array = np.ascontiguousarray(values, kind)
    array.flags.writeable = False
    return array


@cython.cclass
class ImagePlan:
    """Coverage tables and line buffers for images of one size.

    source_height, source_width: of the camera image. crop: (top, left, height, width) inside it, None for all
    of it. height, width: of the output, either larger or smaller than the crop. scale, bias: one number or
    Shape (3,), per output channel: output = scale * mean + bias with the mean in 0..255; 2/255 and -1 give
    [-1, 1]. order: "RGB" keeps the source's channels, "BGR" reverses them. source: "rgb", three bytes a pixel, or
    "yuyv", two (Y and in turn U and V, ITU-R BT.601, limited range), source_width even.

    One plan serves one thread at a time. Raises ValueError for a size outside its range.
    """

    def __init__(
        self,
        source_height: int,
        source_width: int,
        crop: tuple | None = None,
        height: int = 72,
        width: int = 96,
        scale: np.ndarray | float = 2.0 / 255.0,
        bias: np.ndarray | float = -1.0,
        order: str = "RGB",
        source: str = "rgb",
    ) -> None:
        self.source_height = ranged("source_height", source_height, 1, MOST)
        self.source_width = ranged("source_width", source_width, 1, MOST)
        self.height = ranged("height", height, 1, MOST)
        self.width = ranged("width", width, 1, MOST)
        if crop is not None and len(crop) != 4:
            raise ValueError(f"crop is {crop}, must be (top, left, height, width)")
        top, left, rows, columns = (0, 0, source_height, source_width) if crop is None else crop
        self._top = ranged("crop top", top, 0, source_height - 1)
        self._left = ranged("crop left", left, 0, source_width - 1)
        ranged("crop height", rows, 1, source_height - top)
        ranged("crop width", columns, 1, source_width - left)
        if order not in ("RGB", "BGR"):
            raise ValueError(f"order is {order!r}, must be 'RGB' or 'BGR'")
        if source not in ("rgb", "yuyv"):
            raise ValueError(f"source is {source!r}, must be 'rgb' or 'yuyv'")
        if source == "yuyv" and source_width % 2:
            raise ValueError(f"source_width is {source_width}, must be even: in YUYV two pixels share their colour")
        self.crop = (top, left, rows, columns)
        self.order, self.source = order, source
        self._yuyv = source == "yuyv"
        self._bytes = 2 if self._yuyv else 3
        self._channel = frozen([0, 1, 2] if order == "RGB" else [2, 1, 0], np.int32)
        self._tabulate(rows, columns, triple("scale", scale), triple("bias", bias))

    def _tabulate(self, rows: int, columns: int, scale: np.ndarray, bias: np.ndarray) -> None:
        first, weights = coverage(rows, self.height)
        if weights.shape[1] % 2:  # two source rows are added at a time
            weights = np.pad(weights, ((0, 0), (0, 1)))
        index = first[:, None] + np.arange(weights.shape[1])
        self._row_index = frozen(np.minimum(index, rows - 1), np.int32)
        self._row_weight = frozen(weights, np.int32)
        p_rows = int(weights[0].sum())
        first, weights = coverage(columns, self.width)
        p_columns = int(weights[0].sum())
        self._narrow = p_rows <= NARROW
        self._halvings = -1
        if p_rows * p_columns <= NARROW and not self._yuyv:
            self._halvings = halvings(p_columns, p_columns * self.width // columns)
        self._share = np.float32(1.0 / (p_rows * p_columns))
        self._bias = frozen(bias, np.float32)
        if self._yuyv:
            first = first + self._left % 2  # lines begin with a whole pair
            self._left -= self._left % 2
            pairs = (self.crop[1] % 2 + columns + 1) // 2
            pair, shared = chroma_coverage(first, weights, pairs)
            self._line = 4 * pairs
            self._column_first = frozen(2 * first, np.int32)
            self._scale = frozen(scale, np.float32)
        else:
            pair, shared = first, weights
            self._line = 3 * columns
            self._column_first = frozen(3 * first, np.int32)
            self._scale = frozen(scale / (p_rows * p_columns), np.float32)
        self._column_weight = frozen(weights, np.int32)
        self._pair_first = frozen(4 * pair, np.int32)
        self._pair_weight = frozen(shared, np.int32)
        self._narrow_line = np.zeros(self._line, np.uint16)
        self._wide_line = np.zeros(self._line, np.uint32)
        self._means = np.zeros((3, self.width if self._yuyv else 0), np.float32)

    def run(self, src: np.ndarray, dst: np.ndarray) -> None:
        """src: Shape (source_height, source_width, 3), (..., 2) for YUYV, uint8; rows may lie apart, pixels and
        channels may not. dst: Shape (3, height, width), float32, packed, written.

        Raises ValueError when a shape, type or layout disagrees.
        """
        shape = (self.source_height, self.source_width, self._bytes)
        if src.shape != shape or src.dtype != np.uint8:
            raise ValueError(f"src is {src.dtype} {src.shape}, must be uint8 {shape}")
        if src.strides[1:] != (self._bytes, 1):
            raise ValueError(
                f"src has strides {src.strides}, must be (any, {self._bytes}, 1): copy it, or crop by the plan"
            )
        shape = (3, self.height, self.width)
        if dst.shape != shape or dst.dtype != np.float32 or not dst.flags.c_contiguous:
            layout = "packed" if dst.flags.c_contiguous else "strided"
            raise ValueError(f"dst is {layout} {dst.dtype} {dst.shape}, must be packed float32 {shape}")
        self.apply(src, dst)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def apply(self, src: cython.const[cython.uchar][:, :, :], dst: cython.float[:, :, ::1]) -> cython.void:
        y: cython.Py_ssize_t
        t: cython.Py_ssize_t
        c: cython.Py_ssize_t
        upper: cython.pointer[cython.const[cython.uchar]]
        lower: cython.pointer[cython.const[cython.uchar]]
        for y in range(self.height):
            for t in range(0, self._row_index.shape[1], 2):
                if cython.compiled:
                    upper = cython.address(src[self._top + self._row_index[y, t], self._left, 0])
                    lower = cython.address(src[self._top + self._row_index[y, t + 1], self._left, 0])
                else:
                    upper = src[self._top + self._row_index[y, t], self._left :].reshape(-1)
                    lower = src[self._top + self._row_index[y, t + 1], self._left :].reshape(-1)
                if self._narrow:
                    _add(
                        upper,
                        lower,
                        self._row_weight[y, t],
                        self._row_weight[y, t + 1],
                        t == 0,
                        self._narrow_line,
                        self._line,
                    )
                else:
                    _add_wide(
                        upper,
                        lower,
                        self._row_weight[y, t],
                        self._row_weight[y, t + 1],
                        t == 0,
                        self._wide_line,
                        self._line,
                    )
            if self._yuyv:
                self._from_yuyv(dst, y)
                continue
            for t in range(self._halvings):
                _shift_add(self._narrow_line, 3 << t, self._line)
            for c in range(3):
                if self._halvings >= 0:
                    _pick(
                        self._narrow_line,
                        3 << self._halvings,
                        self._channel[c],
                        self._scale[c],
                        self._bias[c],
                        dst,
                        c,
                        y,
                    )
                elif self._narrow:
                    _sum(
                        self._narrow_line,
                        self._column_first,
                        self._column_weight,
                        self._channel[c],
                        self._scale[c],
                        self._bias[c],
                        dst,
                        c,
                        y,
                    )
                else:
                    _sum_wide(
                        self._wide_line,
                        self._column_first,
                        self._column_weight,
                        self._channel[c],
                        self._scale[c],
                        self._bias[c],
                        dst,
                        c,
                        y,
                    )

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _from_yuyv(self, dst: cython.float[:, :, ::1], y: cython.Py_ssize_t) -> cython.void:
        """A line of summed YUYV to three channels: ITU-R BT.601, the factors n/256 of `yuyv.yuyv_row`."""
        share: cython.float = self._share
        c: cython.Py_ssize_t
        if self._narrow:
            _widen(self._narrow_line, self._wide_line, self._line)
        _mean(self._wide_line, self._column_first, 0, 2, self._column_weight, share, 16.0, self._means, 0)
        _mean(self._wide_line, self._pair_first, 1, 4, self._pair_weight, share, 128.0, self._means, 1)
        _mean(self._wide_line, self._pair_first, 3, 4, self._pair_weight, share, 128.0, self._means, 2)
        c = self._channel[0]  # exchanging first and last is its own inverse
        _mix(self._means, 1.1640625, 0.0, 1.59765625, self._scale[c], self._bias[c], dst, c, y)
        _mix(self._means, 1.1640625, -0.390625, -0.8125, self._scale[1], self._bias[1], dst, 1, y)
        c = self._channel[2]
        _mix(self._means, 1.1640625, 2.015625, 0.0, self._scale[c], self._bias[c], dst, c, y)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _add(
    upper: cython.pointer[cython.const[cython.uchar]],
    lower: cython.pointer[cython.const[cython.uchar]],
    a: cython.ushort,
    b: cython.ushort,
    fresh: cython.bint,
    line: cython.ushort[::1],
    count: cython.Py_ssize_t,
) -> cython.void:
    """line = or += a * upper + b * lower: 16-bit lanes, which every SIMD unit multiplies eight at a time."""
    j: cython.Py_ssize_t
    if fresh:
        for j in range(count):
            line[j] = cython.cast(cython.ushort, a * upper[j] + b * lower[j])
    else:
        for j in range(count):
            line[j] += cython.cast(cython.ushort, a * upper[j] + b * lower[j])


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _add_wide(
    upper: cython.pointer[cython.const[cython.uchar]],
    lower: cython.pointer[cython.const[cython.uchar]],
    a: cython.uint,
    b: cython.uint,
    fresh: cython.bint,
    line: cython.uint[::1],
    count: cython.Py_ssize_t,
) -> cython.void:
    """As `_add`, for ratios whose sums do not fit 16 bits."""
    j: cython.Py_ssize_t
    if fresh:
        for j in range(count):
            line[j] = a * upper[j] + b * lower[j]
    else:
        for j in range(count):
            line[j] += a * upper[j] + b * lower[j]


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _shift_add(line: cython.ushort[::1], gap: cython.Py_ssize_t, count: cython.Py_ssize_t) -> cython.void:
    """Add the value `gap` further on, in place. Half the sums are never used, yet it is the faster way."""
    j: cython.Py_ssize_t
    for j in range(count - gap):
        line[j] += line[j + gap]


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _pick(
    line: cython.ushort[::1],
    stride: cython.Py_ssize_t,
    channel: cython.Py_ssize_t,
    scale: cython.float,
    bias: cython.float,
    dst: cython.float[:, :, ::1],
    c: cython.Py_ssize_t,
    y: cython.Py_ssize_t,
) -> cython.void:
    """One channel of a line already summed."""
    x: cython.Py_ssize_t
    for x in range(dst.shape[2]):
        dst[c, y, x] = scale * cython.cast(cython.float, line[x * stride + channel]) + bias


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _sum(
    line: cython.ushort[::1],
    first: cython.const[cython.int][::1],
    weights: cython.const[cython.int][:, ::1],
    channel: cython.Py_ssize_t,
    scale: cython.float,
    bias: cython.float,
    dst: cython.float[:, :, ::1],
    c: cython.Py_ssize_t,
    y: cython.Py_ssize_t,
) -> cython.void:
    """One channel of a line, its columns weighted by their coverage."""
    x: cython.Py_ssize_t
    t: cython.Py_ssize_t
    total: cython.longlong
    value: cython.longlong
    for x in range(dst.shape[2]):
        total = 0
        for t in range(weights.shape[1]):
            value = cython.cast(cython.longlong, line[first[x] + 3 * t + channel])
            total += value * cython.cast(cython.longlong, weights[x, t])
        dst[c, y, x] = scale * cython.cast(cython.float, total) + bias


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _sum_wide(
    line: cython.uint[::1],
    first: cython.const[cython.int][::1],
    weights: cython.const[cython.int][:, ::1],
    channel: cython.Py_ssize_t,
    scale: cython.float,
    bias: cython.float,
    dst: cython.float[:, :, ::1],
    c: cython.Py_ssize_t,
    y: cython.Py_ssize_t,
) -> cython.void:
    """As `_sum`, for a wide line."""
    x: cython.Py_ssize_t
    t: cython.Py_ssize_t
    total: cython.longlong
    value: cython.longlong
    for x in range(dst.shape[2]):
        total = 0
        for t in range(weights.shape[1]):
            value = cython.cast(cython.longlong, line[first[x] + 3 * t + channel])
            total += value * cython.cast(cython.longlong, weights[x, t])
        dst[c, y, x] = scale * cython.cast(cython.float, total) + bias


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _widen(narrow: cython.ushort[::1], wide: cython.uint[::1], count: cython.Py_ssize_t) -> cython.void:
    j: cython.Py_ssize_t
    for j in range(count):
        wide[j] = narrow[j]


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _mean(
    line: cython.uint[::1],
    first: cython.const[cython.int][::1],
    offset: cython.Py_ssize_t,
    step: cython.Py_ssize_t,
    weights: cython.const[cython.int][:, ::1],
    share: cython.float,
    zero: cython.float,
    means: cython.float[:, ::1],
    plane: cython.Py_ssize_t,
) -> cython.void:
    """One of Y, U and V of a summed line, `step` apart: columns weighted by their coverage, `zero` taken off."""
    x: cython.Py_ssize_t
    t: cython.Py_ssize_t
    total: cython.longlong
    value: cython.longlong
    begin: cython.Py_ssize_t
    if weights.shape[1] <= 2:  # the usual case, without the inner loop
        t = step * (weights.shape[1] - 1)
        for x in range(means.shape[1]):
            begin = first[x] + offset
            total = cython.cast(cython.longlong, line[begin]) * weights[x, 0]
            if t:
                total += cython.cast(cython.longlong, line[begin + t]) * weights[x, 1]
            means[plane, x] = share * cython.cast(cython.float, total) - zero
        return
    for x in range(means.shape[1]):
        total = 0
        for t in range(weights.shape[1]):
            value = cython.cast(cython.longlong, line[first[x] + offset + step * t])
            total += value * cython.cast(cython.longlong, weights[x, t])
        means[plane, x] = share * cython.cast(cython.float, total) - zero


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _mix(
    means: cython.float[:, ::1],
    gain: cython.float,
    u: cython.float,
    v: cython.float,
    scale: cython.float,
    bias: cython.float,
    dst: cython.float[:, :, ::1],
    c: cython.Py_ssize_t,
    y: cython.Py_ssize_t,
) -> cython.void:
    """One channel of a line of means: gain * Y + u * U + v * V, clipped to 0..255, normalised."""
    x: cython.Py_ssize_t
    value: cython.float
    low: cython.float = 0.0
    high: cython.float = 255.0
    for x in range(means.shape[1]):
        value = (gain * means[0, x] + u * means[1, x]) + v * means[2, x]
        value = value if value > low else low
        value = value if value < high else high
        dst[c, y, x] = scale * value + bias
