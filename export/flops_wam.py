"""The two-stream model (`model/wam.py`) in FLOPs, weights and kept rows, one part a graph (`model/graphs.py`)."""

from typing import NamedTuple

from dzedge.export.flops import Chunk, Part, Run, attention, convolution, feed_forward, linear, total, weights
from dzedge.export.flops_wan import BRANCHES, EVALUATIONS
from dzedge.export.model.sizes import ARM_CHANNELS, CUBE_CHANNELS, Sizes
from dzedge.export.model.text import CAPACITY
from dzedge.export.model.tokenizer import ARM_MAPS
from dzedge.export.model.wam import EMBODIMENTS

CODES = 33
"""Inputs of the time encoder."""


class Parts(NamedTuple):
    """One a graph. modulation: of one time, both streams."""

    text: Part
    modulation: Part
    frame_encoder: Part
    prefill: Part
    context: Part
    video_step: Part
    action_step: Part
    frame_decoder: Part


def parts(sizes: Sizes) -> Parts:
    """Parts of a model."""
    sight, decoder = (_things if sizes.structured else _patches)(sizes)
    return Parts(
        _text(sizes), _modulation(sizes), sight, _prefill(sizes), _context(sizes), _video(sizes), _action(sizes),
        decoder,
    )  # fmt: skip


def parameters(found: Parts) -> int:
    """Of the trunk, without encoder and decoder."""
    eyes = found.frame_encoder.weights + found.frame_decoder.weights
    return sum(part.weights for part in found) - eyes


def encoder(sizes: Sizes) -> Part:
    """The frame encoder alone, which other families share."""
    return (_things if sizes.structured else _patches)(sizes)[0]


def kept(sizes: Sizes) -> int:
    """Keys and values of one token, in all layers."""
    return 2 * sizes.layers * sizes.width


def window(sizes: Sizes) -> int:
    """Numbers in the sliding window."""
    return sizes.window * sizes.tokens * kept(sizes)


def context(sizes: Sizes) -> int:
    """Numbers in a prompt's rows: language is one token."""
    return kept(sizes)


def server_chunk(sizes: Sizes, found: Parts) -> Chunk:
    """A request as the original server would run this model (`flops_wan.server_chunk`): both streams in every pass,
    the window's frames encoded anew, a modulation of every token, language projected in every pass, two branches."""
    tokens = sizes.tokens + 1 + sizes.horizon // sizes.patch
    spread = Part(found.modulation.flops * tokens // 2)
    step = found.video_step + found.action_step + found.text + spread + Part(0, 0, -context(sizes))  # made anew
    return {
        "text": Run(found.text, BRANCHES), "frame_encoder": Run(found.frame_encoder, sizes.window),
        "prefill": Run(found.prefill, BRANCHES), "joint_step": Run(step, BRANCHES * EVALUATIONS),
    }  # fmt: skip


def _block(sizes: Sizes, tokens: int, outside: int) -> Part:
    """A layer on `tokens` new tokens, which see themselves and `outside` rows; its modulation's bias is elsewhere."""
    width = sizes.width
    return total(
        linear(tokens, width, 3 * width), attention(tokens, tokens + outside, width), linear(tokens, width, width),
        feed_forward(tokens, width, 4 * width, width),
    )  # fmt: skip


def _text(sizes: Sizes) -> Part:
    """The words' embedding, its rows in the video stream, what each token is called."""
    width, doing = sizes.width, sizes.width - sizes.pointers
    names = weights((sizes.kinds + bool(sizes.pointers) + EMBODIMENTS) * width)
    rows = linear(1, doing, width) + linear(1, width, kept(sizes)) + names
    if sizes.structured:
        return total(weights(CAPACITY * width), feed_forward(1, doing, width, doing), rows)
    table = weights((sizes.vocabulary + sizes.words) * width)
    return total(table, linear(sizes.words, width, width), feed_forward(1, width, width, width), rows)


def _modulation(sizes: Sizes) -> Part:
    """Both streams' time encoders; what the words do is projected again: it is small."""
    width, doing = sizes.width, sizes.width - sizes.pointers
    stream = feed_forward(1, CODES, width, width) + linear(1, width, 6 * width) + weights(6 * sizes.layers * width)
    return stream * 2 + Part(linear(1, doing, width).flops)


def _prefill(sizes: Sizes) -> Part:
    k, width = sizes.tokens, sizes.width
    return total(
        linear(k, sizes.channels, width), weights((sizes.kinds + 6) * width), _block(sizes, k, 0),
        linear(k, width, kept(sizes)),
    )  # fmt: skip


def _context(sizes: Sizes) -> Part:
    """Turns rows, and where the video can be told actions, makes theirs."""
    read, patches = Part(0, 0, window(sizes) + context(sizes)), sizes.horizon // sizes.patch
    if not sizes.given:
        return read
    told = linear(patches, sizes.patch * sizes.joints, sizes.width) + linear(patches, sizes.width, kept(sizes))
    return told + weights(patches * sizes.width) + read


def _video(sizes: Sizes) -> Part:
    k, width = sizes.tokens, sizes.width
    outside = sizes.window * k + 1 + sizes.given * (sizes.horizon // sizes.patch)
    return total(
        linear(k, (sizes.frames + 1) * sizes.channels, width), _block(sizes, k, outside) * sizes.layers,
        linear(k, width, sizes.frames * sizes.channels), Part(0, 0, outside * kept(sizes)),
    )  # fmt: skip


def _action(sizes: Sizes) -> Part:
    patches, width = sizes.horizon // sizes.patch, sizes.width
    tokens, rows = patches + 1, sizes.tokens * kept(sizes)
    return total(
        feed_forward(1, sizes.joints, width, width), linear(patches, sizes.patch * (sizes.joints + 1), width),
        weights(tokens * width), _block(sizes, tokens, sizes.tokens) * sizes.layers,
        linear(patches, width, sizes.patch * sizes.joints), Part(0, 0, rows),
    )  # fmt: skip


def _things(sizes: Sizes) -> tuple[Part, Part]:
    """Encoder and decoder of `model/tokenizer.py`."""
    w, cubes = sizes.encoder_width, sizes.tokens - 1
    pixels, maps = sizes.image_height * sizes.image_width, ARM_MAPS + cubes
    half, quarter, eighth = (_pixels(sizes, step) for step in (2, 4, 8))
    encoder = total(
        convolution(half, 3, w, 5), convolution(half, w, w, 3) * 2, convolution(quarter, w, 2 * w, 3),
        convolution(quarter, 2 * w, 2 * w, 3), convolution(eighth, 2 * w, 3 * w, 3),
        convolution(eighth, 3 * w, 3 * w, 3) * 3, convolution(eighth, 3 * w, 2 * w, 1),
        convolution(quarter, 2 * w, w, 1), convolution(half, w, maps, 1),
        Part(2 * maps * half * (2 + w)),  # where, and what is there
        feed_forward(1, ARM_MAPS * (w + 2), 96, ARM_CHANNELS), feed_forward(cubes, w + 3, 64, CUBE_CHANNELS),
    )  # fmt: skip
    w = sizes.decoder_width
    drawn = 2 * (3 + 3) + 2 * cubes + 1 + 4
    decoder = total(
        feed_forward(4 + cubes, 3, 32, 2), convolution(half, drawn, w, 3), convolution(half, w, w, 3),
        convolution(half, w, 12, 3), weights(3 + 2 + 4 * half + 3 * pixels),
    )  # fmt: skip
    return encoder, decoder


def _pixels(sizes: Sizes, step: int) -> int:
    """Places of a stride; an odd side rounds up."""
    return -(-sizes.image_height // step) * -(-sizes.image_width // step)


def _patches(sizes: Sizes) -> tuple[Part, Part]:
    """Encoder and decoder of `model/vae.py`."""
    w, last, places = sizes.encoder_width, sizes.cell // 4, sizes.tokens
    half, quarter, pixels = _pixels(sizes, 2), _pixels(sizes, 4), sizes.image_height * sizes.image_width
    encoder = total(
        convolution(half, 3, w, 5), convolution(quarter, w, 2 * w, 3), convolution(quarter, 2 * w, 2 * w, 3) * 2,
        convolution(places, 2 * w, 4 * w, 5), convolution(places, 4 * w, 4 * w, 3) * 4,
        convolution(places, 4 * w, 2 * sizes.channels, 1),
    )  # fmt: skip
    w = sizes.decoder_width
    decoder = total(
        convolution(places, sizes.channels, 4 * w, 3), convolution(places, 4 * w, 4 * w, 3) * 4,
        convolution(places, 4 * w, 2 * w * last**2, 3), convolution(quarter, 2 * w, 2 * w, 3) * 2,
        convolution(quarter, 2 * w, 4 * w, 3), convolution(half, w, w, 3), convolution(half, w, 12, 3),
        weights(3 * pixels),
    )  # fmt: skip
    return encoder, decoder
