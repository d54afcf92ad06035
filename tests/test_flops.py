"""FLOPs and weights by formula: against torch's own count on the very modules, and against published figures."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dzedge.export import flops_wam, flops_wan
from dzedge.export.fit_tokenizer import Tokenizer
from dzedge.export.flops import flops
from dzedge.export.model.graphs import Graph, graphs
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.vae import Vae
from dzedge.export.model.wam import Wam
from dzedge.export.model.wan_config import Config, Window
from dzedge.export.model.wan_joint import WanJoint, parameters_on_meta
from dzedge.export.workload import EYES, LANGUAGE_MODEL, WAMS, named

TERA = 1e12
THINGS = Sizes(width=60, layers=2, heads=3, tokens=7, encoder_width=6, decoder_width=10, window=3)
SHAPES = {
    "nano": WAMS["wam-nano"],
    "9m": WAMS["wam-9m"],
    "things": THINGS,
    "told": replace(THINGS, given=True, horizon=12, patch=3),
    "other image": replace(THINGS, image_height=64, image_width=88),
    "patches": Sizes(tokenizer="vae", cell=8, tokens=108, channels=5, width=48, layers=3, heads=2, frames=3),
}


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def counted(module: nn.Module, *inputs: object) -> int:
    """FLOPs as torch counts them: attention only where it is made of plain matrices."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        module(*inputs)
    return counter.get_total_flops()


def held(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def folded(module: nn.Module) -> int:
    """Parameters after export: a batch norm becomes its convolution's bias, a background is a weight."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    background = dict(module.named_buffers()).get("background")
    return held(module) - sum(norm.num_features for norm in norms) + (0 if background is None else background.numel())


@pytest.fixture(scope="module", params=SHAPES)
def cut(request: pytest.FixtureRequest) -> tuple[Sizes, list[Graph]]:
    sizes = SHAPES[request.param]
    tokenizer = (Tokenizer if sizes.structured else Vae)(sizes).eval()
    model = Wam(sizes).eval().requires_grad_(False)
    return sizes, graphs(model, tokenizer.encoder.requires_grad_(False), tokenizer.decoder.requires_grad_(False))


class TestTwoStreams:
    def test_every_graph_as_torch_counts_it(self, cut: tuple[Sizes, list[Graph]]) -> None:
        parts = flops_wam.parts(cut[0])._asdict()
        assert {graph.name: counted(graph.module, *graph.inputs.values()) for graph in cut[1]} == {
            name: part.flops for name, part in parts.items()
        }

    def test_weights(self, cut: tuple[Sizes, list[Graph]]) -> None:
        parts, modules = flops_wam.parts(cut[0]), {graph.name: graph.module for graph in cut[1]}
        assert flops_wam.parameters(parts) == held(Wam(cut[0]))
        assert parts.frame_encoder.weights == folded(modules["frame_encoder"])
        assert parts.frame_decoder.weights == folded(modules["frame_decoder"])

    def test_rows(self, cut: tuple[Sizes, list[Graph]]) -> None:
        parts, inputs = flops_wam.parts(cut[0]), {graph.name: graph.inputs for graph in cut[1]}
        for name, rows in (("context", ("key", "value", "key_text", "value_text")),
                           ("video_step", ("key_context", "value_context")),
                           ("action_step", ("key_video", "value_video"))):  # fmt: skip
            assert getattr(parts, name).rows == sum(inputs[name][row].numel() for row in rows), name


WAN = {name: replace(flops_wan.NAMED[name], layers=2) for name in ("nano", "0.1B", "5B", "14B")} | {
    "streaming": replace(flops_wan.NAMED["nano"], streaming=True),
    "odd": replace(flops_wan.NAMED["nano"], image_tokens=3, image_width=10, condition_channels=2, states=2, frames=3),
}


@pytest.fixture(scope="module", params=WAN)
def meta(request: pytest.FixtureRequest) -> tuple[Config, WanJoint]:
    config = WAN[request.param]
    with torch.device("meta"):
        return config, WanJoint(config).requires_grad_(False)


class TestCoupled:
    def test_parameters(self, meta: tuple[Config, WanJoint]) -> None:
        assert flops_wan.parameters(meta[0]) == held(meta[1])

    def test_passes_as_torch_counts_them(self, meta: tuple[Config, WanJoint]) -> None:
        config, model = meta
        seen = 2
        found = flops_wan.parts(config, seen)
        with torch.device("meta"):
            text = torch.empty(1, config.text_tokens, config.text_width)
            image = torch.empty(1, config.image_tokens, config.image_width) if config.image_tokens else None
            rows = torch.empty(1, seen, config.layers, config.heads, config.tokens, config.head_width)
            window = Window(rows, rows, torch.empty(1, seen + config.frames), torch.empty(1, seen))
            grid = (config.latent_height, config.latent_width)
            video = torch.empty(1, config.frames, config.channels, *grid)
            condition = torch.empty(1, config.frames, config.condition_channels, *grid)
            known = condition if config.condition_channels else None
            action, mask = torch.empty(1, config.actions, config.action_width), torch.empty(1, config.actions)
            state = torch.empty(1, config.states, config.state_width)
            context = model.context(text, image)
            fresh = video[:, :1] if config.streaming else video
            only = window._replace(slot_pos=torch.empty(1, seen + fresh.shape[1]))
            time = torch.empty(1)
            made = counted(Use(model.context), text, image)
            step = counted(model, video, action, action, mask, state, context, window, time, time, known)
            prefill = counted(Use(model.prefill), fresh, context, only, known)
        assert made == found.embed.flops + found.cross.flops
        assert step == found.step.flops
        assert prefill == found.prefill.flops
        assert found.context == sum(part.numel() for part in context)
        assert found.step.rows == 2 * rows.numel() + found.context

    def test_all_named_sizes(self) -> None:
        counts = {name: parameters_on_meta(config) for name, config in flops_wan.NAMED.items()}
        assert {name: flops_wan.parameters(config) for name, config in flops_wan.NAMED.items()} == counts


class Use(nn.Module):
    """One method of a module, called as a module is."""

    def __init__(self, method: object) -> None:
        super().__init__()
        self.method = method

    def forward(self, *inputs: Tensor) -> object:
        assert callable(self.method)
        return self.method(*inputs)


def server_pass(name: str, seen: int) -> float:
    """One pass as the original server makes it [TFLOP]."""
    run = flops_wan.server_chunk(flops_wan.parts(flops_wan.NAMED[name], seen), EYES["tiny"], LANGUAGE_MODEL)
    return run["joint_step"].part.flops / TERA


def step(name: str) -> float:
    return flops_wan.parts(flops_wan.NAMED[name]).step.flops / TERA


class TestPublished:
    """facts/dreamzero 7.1 and 2.4: 5 % at most."""

    @pytest.mark.parametrize(
        ("found", "published"),
        [
            (server_pass("5B", 5), 2.05), (step("5B"), 1.14),
            (server_pass("14B", 1), 51.6), (server_pass("14B", 5), 56.8), (server_pass("14B", 7), 59.4),
            (step("1.3B"), 0.323), (step("0.45B"), 0.094), (step("0.2B"), 0.045), (step("0.1B"), 0.025),
            (flops(named("5B").server) / TERA, 47.8), (flops(named("14B").server) / TERA, 1041),
            (flops(named("5B").chunk) / TERA, 7.2), (flops_wan.parts(flops_wan.NAMED["5B"]).prefill.flops / TERA, 0.95),
        ],
    )  # fmt: skip
    def test_flops(self, found: float, published: float) -> None:
        assert found == pytest.approx(published, rel=0.05)

    @pytest.mark.parametrize(
        ("name", "billions"),
        [("14B", 16.484), ("5B", 5.607), ("1.3B", 1.43), ("0.45B", 0.42), ("0.2B", 0.201), ("0.1B", 0.11)],
    )
    def test_parameters(self, name: str, billions: float) -> None:
        assert flops_wan.parameters(flops_wan.NAMED[name]) / 1e9 == pytest.approx(billions, rel=0.05)

    @pytest.mark.parametrize(
        ("name", "window", "context"), [("14B", 6.49e9, 630e6), ("5B", 0.166e9, 284e6), ("0.1B", 18e6, None)]
    )
    def test_kept_rows(self, name: str, window: float, context: float | None) -> None:
        parts = flops_wan.parts(flops_wan.NAMED[name])
        assert 2 * parts.window == pytest.approx(window, rel=0.05)
        assert context is None or 2 * parts.context == pytest.approx(context, rel=0.05)

    def test_the_window_counts(self) -> None:
        """Must differ: a pass that sees more frames costs more."""
        costs = [server_pass("14B", seen) for seen in (1, 5, 7)]
        assert all(b > a * 1.03 for a, b in itertools.pairwise(costs))


class TestAgainstTheServer:
    """Text, cross-attention and rows kept, one branch: how much of a request of the original server is left."""

    def test_five_billion(self) -> None:
        for steps, share in ((4, 0.150), (8, 0.245)):
            model = named("5B", steps)
            assert flops(model.chunk) / flops(model.server) == pytest.approx(share, abs=0.001)

    def test_caching_alone_is_half(self) -> None:
        """As many branches and passes: without dropping guidance a third would not be reached."""
        parts = flops_wan.parts(flops_wan.NAMED["5B"])
        kept = EYES["wan-2.2"].flops + 2 * (parts.prefill.flops + 8 * parts.step.flops)
        assert kept / flops(named("5B").server) == pytest.approx(0.456, abs=0.002)

    def test_two_streams(self) -> None:
        shares = {name: flops(named(name).chunk) / flops(named(name).server) for name in WAMS}
        assert shares == pytest.approx({"wam-nano": 0.344, "wam-9m": 0.279}, abs=0.001)
