"""How imagined frames are shown. Latents say where things are, not how the light falls: a decoder draws soft, generic
pictures, and the frame that the camera has just taken knows better what has not moved.

Three ways; now: Shape (h, w, 3), uint8, the present frame as the model sees it; decoded_now: Shape (h, w, 3), uint8,
the decoder's picture of it; decoded: Shape (F, h, w, 3), uint8, of the imagined frames.

    decoded      the decoder's pictures as they are
    difference   the present frame plus what the decoder says will change
    inlay        where the decoder says something will change its picture, in the present light; else the present frame

`dzedge evaluate --suite imagination` measures all three. Inlay is the one that dzedge shows: over 516 moments of the
first shipped model it came nearest to the true frames, in what moved and as a whole.
"""

import numpy as np
from numpy.typing import NDArray

from dzedge.bundle import Bundle, Section
from dzedge.kernels.image import ImagePlan
from dzedge.types import Frame

Image = NDArray[np.uint8]
CHANGED = (4.0, 16.0)
"""Difference of two decoded pixels [8-bit counts], in the channel where it is largest, at which an inlay begins to
show, and from which on nothing else shows."""


def imagines(bundle: Bundle) -> bool:
    """Whether a bundle can say what it expects to see, and draw it."""
    section = bundle.manifest.dzedge
    return section.family in ("wam", "wan_joint") and "frame_decoder" in section.graphs


class Eye:
    """A camera's frames as a model sees them: cropped and resized by the runtime's own kernel.

    camera: (height, width); crop: (left, top, width, height) of it, or None for the bundle's own.
    """

    def __init__(
        self, section: Section, camera: tuple[int, int], crop: tuple[int, int, int, int] | None = None
    ) -> None:
        left, top, width, height = crop or section.image.crop or (0, 0, camera[1], camera[0])
        self._plan = ImagePlan(*camera, (top, left, height, width), section.image.height, section.image.width)
        self._image = np.zeros((3, section.image.height, section.image.width), np.float32)

    def see(self, frame: Frame) -> Image:
        """Shape (h, w, 3), uint8, RGB; a fresh array."""
        self._plan.run(frame.image, self._image)
        pixels = np.rint((self._image + 1.0) * 127.5).clip(0, 255).astype(np.uint8)
        return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def difference(now: Image, decoded_now: Image, decoded: Image) -> Image:
    """Shape (F, h, w, 3), uint8: the present frame plus what the decoder says will change."""
    change = decoded.astype(np.int16) - decoded_now
    return (now + change).clip(0, 255).astype(np.uint8)


def inlay(now: Image, decoded_now: Image, decoded: Image) -> Image:
    """Shape (F, h, w, 3), uint8: the present frame, and the decoder's picture where it says something will change."""
    low, high = CHANGED
    change = np.abs(decoded.astype(np.float32) - decoded_now).max(axis=-1, keepdims=True)
    share = ((change - low) / (high - low)).clip(0.0, 1.0)
    gain, offset = _light(now, decoded_now)
    mixed = share * (decoded * gain + offset) + (1.0 - share) * now
    return np.rint(mixed.clip(0, 255)).astype(np.uint8)


def _light(now: Image, decoded_now: Image) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Gain and offset of each channel that bring the decoder's picture nearest to the camera's (least squares)."""
    x, y = (image.reshape(-1, 3).astype(np.float64) for image in (decoded_now, now))
    spread = x.var(axis=0)
    shared = ((x - x.mean(axis=0)) * (y - y.mean(axis=0))).mean(axis=0)
    gain = np.divide(shared, spread, out=np.ones_like(spread), where=spread > 0.0)
    offset = y.mean(axis=0) - gain * x.mean(axis=0)
    return gain.astype(np.float32), offset.astype(np.float32)
