"""The coupled layout (`model/wan_joint.py`) in FLOPs, weights and kept rows, as dzedge runs it and as the original
server does: that one embeds two prompts a request, runs two guidance branches, and in every pass projects the text into
cross-attention rows and the time into a modulation of every token (facts/dreamzero 2.1, 7.1).
"""

from typing import NamedTuple

from dzedge.export.flops import Chunk, Part, Run, attention, feed_forward, linear, total, weights
from dzedge.export.model.wan_config import PATCH, PRESETS, Config

FURTHER = {
    "0.2B": Config(width=768, layers=20, heads=6, feed=3072),
    "1.3B": Config(width=1536, layers=30, heads=12, feed=8960),
}
"""Sizes of facts/dreamzero 7.1 that nothing is made of here."""
NAMED = dict(sorted((PRESETS | FURTHER).items(), key=lambda entry: entry[1].width * entry[1].layers))
"""Configurations by name, the smallest first."""
MID_WINDOW = 5
"""Frames that the published window of 7 holds on average."""
BRANCHES, EVALUATIONS = 2, 8
"""Of the original server: guidance branches, and of its 16 steps those that run the trunk (facts/dreamzero 2.1)."""


class Parts(NamedTuple):
    """embed: text and image to the trunk's width; cross: cross-attention rows of a prompt, all layers; step: a denoise
    pass; prefill: clean frames that come together into the window; spread: what a modulation of every token costs
    beside one of every time; window, context: numbers that the full window (its block included) and a prompt's rows
    hold."""

    embed: Part
    cross: Part
    step: Part
    prefill: Part
    spread: Part
    window: int
    context: int


def parts(config: Config, seen: int = MID_WINDOW) -> Parts:
    """Parts of a model whose window holds `seen` frames, 0 to window."""
    c, width = config, config.width
    words, block, clean = c.text_tokens + c.image_tokens, c.frames * c.tokens, seen * c.tokens
    fresh = 1 if c.streaming else c.frames  # clean frames that come together
    registers = c.actions + c.states
    tokens, times, kept = block + registers, c.frames + registers, 2 * c.layers * width
    read = Part(0, 0, (clean + words) * kept)
    step = total(
        _enter(c, block), _times(c, times), _registers(c), _layer(c, tokens, clean, words) * c.layers,
        linear(block, width, PATCH**2 * c.channels), weights(2 * width), read,
    )  # fmt: skip
    prefill = total(
        _enter(c, fresh * c.tokens), _times(c, fresh), _layer(c, fresh * c.tokens, clean, words) * c.layers, read
    )  # fmt: skip
    spread = Part(2 * (tokens - times) * width * 6 * width)
    window = (c.window + c.frames) * c.tokens * kept
    return Parts(*_prompt(c), step, prefill, spread, window, words * kept)


def _prompt(config: Config) -> tuple[Part, Part]:
    """What a prompt is embedded by, and its rows in every layer."""
    c, width = config, config.width
    embed = feed_forward(c.text_tokens, c.text_width, width, width)
    rows = linear(c.text_tokens, width, width) * 2
    if c.image_tokens:
        norms = weights(2 * c.image_width + 2 * width)
        embed += feed_forward(c.image_tokens, c.image_width, c.image_width, width) + norms
        rows += linear(c.image_tokens, width, width) * 2
    norms = weights((1 + bool(c.image_tokens)) * width)
    return embed, (rows + norms) * c.layers


def _enter(config: Config, tokens: int) -> Part:
    return linear(tokens, PATCH**2 * (config.channels + config.condition_channels), config.width)


def _times(config: Config, times: int) -> Part:
    width = config.width
    return feed_forward(times, config.time_width, width, width) + linear(times, width, 6 * width)


def _registers(config: Config) -> Part:
    """Actions in and out, states in."""
    c, width = config, config.width
    return total(
        linear(c.actions, c.action_width, width), feed_forward(c.actions, 2 * width, width, width),
        feed_forward(c.states, c.state_width, c.hidden, width),
        feed_forward(c.actions, width, c.hidden, c.action_width),
    )  # fmt: skip


def _layer(config: Config, tokens: int, clean: int, words: int) -> Part:
    """One layer on `tokens` new tokens, a prompt's rows being there."""
    width = config.width
    norms = weights((6 + 2 + 2 + 1) * width)  # modulation, norm3, queries and keys here, queries of the prompt
    return total(
        linear(tokens, width, width) * 6, feed_forward(tokens, width, config.feed, width),
        attention(tokens, clean + tokens, width), attention(tokens, words, width), norms,
    )  # fmt: skip


def parameters(config: Config) -> int:
    """Of the whole model: the published 5.607 and 16.484 B."""
    found = parts(config)
    return found.embed.weights + found.cross.weights + found.step.weights


def chunk(found: Parts, eye: Part, evaluations: int) -> Chunk:
    """A chunk here: one branch; text and its rows are kept from `reset` on. eye: of the new frames."""
    return {
        "frame_encoder": Run(eye, 1), "prefill": Run(found.prefill, 1), "joint_step": Run(found.step, evaluations),
    }  # fmt: skip


def server_chunk(
    found: Parts, eye: Part, text: Part, evaluations: int = EVALUATIONS, branches: int = BRANCHES
) -> Chunk:
    """A steady request of the original server. text: the language model on one prompt; branches: 1 leaves guidance
    out, which the published code cannot."""
    again = found.embed + found.cross + found.spread + Part(0, 0, -found.context)  # made anew, not read
    return {
        "text": Run(text, branches), "frame_encoder": Run(eye, 1), "prefill": Run(found.prefill + again, branches),
        "joint_step": Run(found.step + again, branches * evaluations),
    }  # fmt: skip
