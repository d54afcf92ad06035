"""The coupled layout at toy size: keys and counts, the published module's numbers, who sees whom, cache = training."""

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dzedge.errors import UsageError
from dzedge.export.model.blocks import Rows
from dzedge.export.model.wan_config import PRESETS, Config, Window, angles, frame_angles, preset, visible
from dzedge.export.model.wan_joint import WanJoint, parameters_on_meta, rotate

NANO = preset("nano")
BLOCKS = 4
LENGTH = 1 + BLOCKS * NANO.frames
H = NANO.actions


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def noise(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype=np.float32))


def filled(config: Config) -> WanJoint:
    """A model whose every parameter counts: nothing is zero, as a fresh head is."""
    model = WanJoint(config).eval()
    for seed, (_, parameter) in enumerate(sorted(model.named_parameters())):
        parameter.copy_(noise(seed, *parameter.shape) * 0.2)
    return model


def inputs(config: Config = NANO, blocks: int = BLOCKS) -> dict[str, Tensor]:
    length = 1 + blocks * config.frames
    latent = (1, length, config.channels, config.latent_height, config.latent_width)
    steps = torch.linspace(0.1, 0.9, blocks)
    return {
        "clean": noise(101, *latent),
        "video": noise(102, *latent),
        "action": noise(103, 1, blocks * config.actions, config.action_width),
        "state": noise(104, 1, blocks * config.states, config.state_width),
        "t_video": torch.cat([torch.tensor([0.5]), steps.repeat_interleave(config.frames)])[None],
        "t_action": steps.flip(0).repeat_interleave(config.actions)[None],
    }


def prompt(model: WanJoint) -> Rows:
    config = model.config
    image = noise(106, 1, config.image_tokens, config.image_width) if config.image_tokens else None
    return model.context(noise(105, 1, config.text_tokens, config.text_width), image)


def trained(model: WanJoint, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    v_video, v_action = model.teacher_forced(
        x["clean"], x["video"], x["action"], x["state"], prompt(model), x["t_video"], x["t_action"]
    )
    assert v_action is not None
    return v_video, v_action


class Cache:
    """A sliding window as a host keeps it: the oldest frame leaves, `shift` renumbers all positions."""

    def __init__(self, config: Config, shift: float = 0.0) -> None:
        self.config, self.shift, self.seen = config, shift, 0
        shape = (1, config.window, config.layers, config.heads, config.tokens, config.head_width)
        self.key, self.value = torch.zeros(shape), torch.zeros(shape)

    def window(self, frames: int) -> Window:
        slots = self.config.window
        position = torch.arange(self.seen - slots, self.seen + frames, dtype=torch.float32)[None]
        return Window(self.key, self.value, position + self.shift, (position[:, :slots] >= 0).float())

    def push(self, rows: Rows) -> None:
        slots = self.config.window
        self.key = torch.cat([self.key, rows[0]], dim=1)[:, -slots:]
        self.value = torch.cat([self.value, rows[1]], dim=1)[:, -slots:]
        self.seen += rows[0].shape[1]


def of_block(config: Config, number: int) -> tuple[slice, slice, slice]:
    """Frames, actions and states of a block, counted from 1."""
    before = number - 1
    return (
        slice(1 + before * config.frames, 1 + number * config.frames),
        slice(before * config.actions, number * config.actions),
        slice(before * config.states, number * config.states),
    )


def step(
    model: WanJoint, x: dict[str, Tensor], cache: Cache, number: int, condition: Tensor | None = None, **changed: Tensor
) -> tuple[Tensor, Tensor]:
    """One denoise pass over block `number`."""
    frames, actions, states = of_block(model.config, number)
    action = x["action"][:, actions]
    given = {
        "video": x["video"][:, frames], "action": action, "prefix": torch.zeros_like(action),
        "prefix_mask": torch.zeros(1, model.config.actions), "state": x["state"][:, states],
        "t_video": x["t_video"][:, frames.start], "t_action": x["t_action"][:, actions.start], **changed,
    }  # fmt: skip
    window = cache.window(model.config.frames)
    return model(context=prompt(model), window=window, condition=condition, **given)


def advance(model: WanJoint, x: dict[str, Tensor], cache: Cache, upto: int) -> Cache:
    """Puts the first frame and all blocks before `upto` into the cache."""
    for number in range((cache.seen + model.config.frames - 1) // model.config.frames, upto):
        frames = slice(0, 1) if number == 0 else of_block(model.config, number)[0]
        latent = x["clean"][:, frames]
        cache.push(model.prefill(latent, prompt(model), cache.window(latent.shape[1])))
    return cache


class TestSizes:
    @pytest.mark.parametrize(
        ("name", "count", "published"),
        [
            ("nano", 90_630, "0.000"), ("0.1B", 114_092_896, "0.114"), ("0.45B", 421_899_488, "0.422"),
            ("5B", 5_606_692_832, "5.607"), ("14B", 16_484_292_448, "16.484"),
        ],
    )  # fmt: skip
    def test_parameters(self, name: str, count: int, published: str) -> None:
        assert parameters_on_meta(preset(name)) == count
        assert f"{count / 1e9:.3f}" == published

    def test_tokens_of_a_frame(self) -> None:
        assert [preset(name).tokens for name in ("0.1B", "5B", "14B")] == [50, 50, 880]
        assert {preset(name).rope_widths for name in ("5B", "14B")} == {(44, 42, 42)}

    @pytest.mark.parametrize(
        ("change", "named"),
        [({"heads": 5}, "48 over 5"), ({"heads": 16}, "3 each"), ({"latent_width": 5}, "latent_width is 5"),
         ({"window": 0}, "window is 0"), ({"image_tokens": -1}, "image_tokens is -1")],
    )  # fmt: skip
    def test_impossible_sizes_are_named(self, change: dict[str, int], named: str) -> None:
        with pytest.raises(UsageError, match=named):
            replace(NANO, **change)

    def test_record_travels(self) -> None:
        for config in PRESETS.values():
            assert Config.from_json(config.to_json()) == config
        with pytest.raises(UsageError, match="'depth'"):
            Config.from_json(NANO.to_json() | {"depth": 3})
        with pytest.raises(UsageError, match=r"0\.1B"):
            preset("7B")


LINEAR = ("weight", "bias")
ATTENTION = [f"{part}.{kind}" for part in "qkvo" for kind in LINEAR] + ["norm_q.weight", "norm_k.weight"]
IMAGE = [f"{part}.{kind}" for part in ("k_img", "v_img") for kind in LINEAR] + ["norm_k_img.weight"]
BLOCK = [
    "modulation", "norm3.weight", "norm3.bias", *(f"ffn.{n}.{kind}" for n in (0, 2) for kind in LINEAR),
    *(f"self_attn.{name}" for name in ATTENTION), *(f"cross_attn.{name}" for name in ATTENTION + IMAGE),
]  # fmt: skip
AROUND = [
    *(f"{name}.{kind}" for kind in LINEAR for name in (
        "patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2",
        "time_projection.1", "head.head", "img_emb.proj.0", "img_emb.proj.1", "img_emb.proj.3", "img_emb.proj.4",
    )), "head.modulation",
    *(f"{name}.{kind}" for kind in "Wb" for name in (
        "state_encoder.layer1", "state_encoder.layer2", "action_decoder.layer1", "action_decoder.layer2",
        "action_encoder.W1", "action_encoder.W2", "action_encoder.W3",
    )),
]  # fmt: skip


class TestKeys:
    """Names and shapes of the published files (facts/dreamzero 4)."""

    @pytest.mark.parametrize("name", ["5B", "14B"])
    def test_names_are_the_published_ones(self, name: str) -> None:
        with torch.device("meta"):
            model = WanJoint(preset(name))
        keys = set(model.state_dict())
        assert {key for key in keys if not key.startswith("blocks.")} == set(AROUND)
        numbered = [re.fullmatch(r"blocks\.(\d+)\.(.+)", key) for key in keys if key.startswith("blocks.")]
        found = {(int(match[1]), match[2]) for match in numbered if match}
        assert found == {(layer, key) for layer in range(preset(name).layers) for key in BLOCK}

    def test_shapes(self) -> None:
        with torch.device("meta"):
            state = WanJoint(preset("14B")).state_dict()
        expected = {
            "patch_embedding.weight": (5120, 36, 1, 2, 2), "head.head.weight": (64, 5120),
            "head.modulation": (1, 2, 5120), "blocks.39.modulation": (1, 6, 5120),
            "blocks.0.self_attn.norm_q.weight": (5120,), "blocks.0.ffn.2.weight": (5120, 13824),
            "time_projection.1.weight": (30720, 5120), "time_embedding.0.weight": (5120, 256),
            "text_embedding.0.weight": (5120, 4096), "img_emb.proj.1.weight": (1280, 1280),
            "state_encoder.layer1.W": (1, 64, 1024), "action_encoder.W1.W": (1, 32, 5120),
            "action_encoder.W2.W": (1, 10240, 5120), "action_decoder.layer2.W": (1, 1024, 32),
            "action_decoder.layer2.b": (1, 32),
        }  # fmt: skip
        assert {key: tuple(state[key].shape) for key in expected} == expected

    def test_without_image_there_is_no_image_branch(self) -> None:
        assert not [key for key in WanJoint(NANO).state_dict() if "img" in key]


PUBLISHED = replace(NANO, condition_channels=5, image_tokens=257, window=7, state_sees_all=True)
GOLDEN = {
    "train": (
        [2.25214, -2.46443, -1.37803, -2.29228, 3.20676], 64.3014,
        [0.22414, 3.16561, -0.4024, 0.99915, 5.04208], 45.305,
    ),
    "infer": (
        [2.30927, -1.27869, -0.02848, -3.12102, -2.0489], 30.5548,
        [0.0455, -5.04124, 2.58383, -4.5246, 0.4287], 19.3732,
    ),
}  # fmt: skip
"""What the published module (commit ab790c1, its eager path in float32) gave for these weights and inputs: values at
equal strides and the norm of its video velocity, then of its action velocity. It trains with a state that sees itself
and infers with one that sees all."""


class TestPublishedNumbers:
    @staticmethod
    def check(found: tuple[Tensor, Tensor], name: str) -> None:
        video, video_norm, action, action_norm = GOLDEN[name]
        for velocity, values, norm in ((found[0], video, video_norm), (found[1], action, action_norm)):
            # The published velocity is noise - clean.
            flat = -velocity.flatten()
            np.testing.assert_allclose(flat[:: len(flat) // 5][:5], values, atol=2e-4)
            assert flat.norm().item() == pytest.approx(norm, rel=1e-5)

    @pytest.fixture
    def given(self) -> tuple[dict[str, Tensor], Tensor]:
        return inputs(PUBLISHED), noise(107, 1, LENGTH, 5, 4, 6)

    def test_training(self, given: tuple[dict[str, Tensor], Tensor]) -> None:
        x, condition = given
        model = filled(replace(PUBLISHED, state_sees_all=False))
        self.check(model.teacher_forced(**x, context=prompt(model), condition=condition), "train")  # type: ignore[arg-type]

    @pytest.mark.parametrize("rule", [True, False])
    def test_inference(self, given: tuple[dict[str, Tensor], Tensor], rule: bool) -> None:
        x, condition = given
        model = filled(replace(PUBLISHED, state_sees_all=rule))
        cache = Cache(PUBLISHED)
        for frames in (slice(0, 1), slice(1, 3)):
            latent, extra = x["clean"][:, frames], condition[:, frames]
            cache.push(model.prefill(latent, prompt(model), cache.window(latent.shape[1]), extra))
        found = step(model, x, cache, 2, condition=condition[:, 3:5])
        if rule:
            self.check(found, "infer")
        else:
            with pytest.raises(AssertionError):
                self.check(found, "infer")


SMALL = replace(NANO, frames=1, window=1)
OWN = [
    "x.........", "xx........", ".xx.......",
    "...x......", "x...x.x.x.", ".x...x.x.x",
    "x...x.x.x.", ".x...x.x.x",
    "........x.", ".........x",
]  # fmt: skip


def picture(config: Config) -> list[str]:
    """Who sees whom among clean 0..2, noisy 0..2, actions of blocks 1 and 2, states of blocks 1 and 2."""
    place = torch.tensor(
        [[0, 0, 0, 1, 1, 1, 2, 2, 3, 3], [0, 1, 2, 0, 1, 2, 1, 2, 1, 2], [0, 1, 2, 0, 0, 0, 0, 0, 0, 0]]
    )
    return ["".join("x" if seen else "." for seen in row) for row in visible(config, place).tolist()]


class TestWhoSeesWhom:
    def test_rule(self) -> None:
        assert picture(SMALL) == OWN

    def test_longer_window_reaches_further_back(self) -> None:
        wide = [*OWN]
        for row in (2, 5, 7):
            wide[row] = "x" + wide[row][1:]
        assert picture(replace(SMALL, window=2)) == wide

    def test_published_inference_rule_of_states(self) -> None:
        assert picture(replace(SMALL, state_sees_all=True)) == [*OWN[:8], *OWN[6:8]]

    @pytest.mark.parametrize(
        ("name", "where", "video", "action"),
        [
            ("clean", slice(0, 1), {1, 2, 3, 4}, {1, 2, 3, 4}),
            ("clean", slice(3, 5), {3, 4}, {3, 4}),
            ("clean", slice(7, 9), set(), set()),
            ("video", slice(0, 1), {0}, set()),
            ("video", slice(3, 5), {2}, {2}),
            ("action", slice(H, 2 * H), {2}, {2}),
            ("state", slice(1, 2), {2}, {2}),
            ("t_video", slice(3, 5), {2}, {2}),
            ("t_action", slice(H, 2 * H), {2}, {2}),
        ],
    )
    @pytest.mark.parametrize("rule", [False, True])
    def test_change_reaches_only(self, name: str, where: slice, video: set[int], action: set[int], rule: bool) -> None:
        """Blocks whose outputs change when one block's input does; every other output keeps every bit."""
        model = filled(replace(NANO, state_sees_all=rule))
        before = inputs()
        after = before | {name: before[name].clone()}
        after[name][:, where] += 0.3
        moved = [(a != b)[0] for a, b in zip(trained(model, before), trained(model, after), strict=True)]
        frames = {(int(frame) + 1) // 2 for frame in torch.nonzero(moved[0].flatten(1).any(1))}
        chunks = {int(row) // H + 1 for row in torch.nonzero(moved[1].any(1))}
        assert (frames, chunks) == (video, action)

    def test_video_without_actions(self) -> None:
        model, x = filled(NANO), inputs()
        v_video, v_action = model.teacher_forced(x["clean"], x["video"], None, None, prompt(model), x["t_video"], None)
        assert v_action is None and v_video.shape == x["video"].shape
        assert not torch.allclose(v_video[:, 1:], trained(model, x)[0][:, 1:], atol=1e-2)


class TestCache:
    @pytest.mark.parametrize("rule", [False, True])
    @pytest.mark.parametrize("window", [1, 3, 7])
    def test_equals_training(self, rule: bool, window: int) -> None:
        """Frame by frame through a window that slides, against all blocks in one pass."""
        model, x = filled(replace(NANO, state_sees_all=rule, window=window)), inputs()
        v_video, v_action = trained(model, x)
        cache = Cache(model.config)
        for number in range(1, BLOCKS + 1):
            frames, actions, _ = of_block(model.config, number)
            video, action = step(model, x, advance(model, x, cache, number), number)
            torch.testing.assert_close(video, v_video[:, frames], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(action, v_action[:, actions], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("change", [{"window": 2}, {"state_sees_all": True}])
    def test_other_rule_is_another_function(self, change: dict[str, int]) -> None:
        x = inputs()
        v_video, v_action = trained(filled(NANO), x)
        other = filled(replace(NANO, **change))
        video, action = step(other, x, advance(other, x, Cache(other.config), 3), 3)
        assert (video - v_video[:, 5:7]).abs().max() > 1e-3
        assert (action - v_action[:, 2 * H : 3 * H]).abs().max() > 1e-3

    def test_empty_slots_do_not_count(self) -> None:
        model, x = filled(NANO), inputs()
        cache = advance(model, x, Cache(NANO), 1)
        clean = step(model, x, cache, 1)
        cache.key[:, :-1], cache.value[:, :-1] = 7.0, -7.0
        for kept, found in zip(clean, step(model, x, cache, 1), strict=True):
            torch.testing.assert_close(found, kept, rtol=0.0, atol=0.0)
        cache.value[:, -1] = -7.0
        assert not torch.allclose(step(model, x, cache, 1)[0], clean[0], atol=1e-2)

    def test_slots_may_be_permuted(self) -> None:
        """A ring that overwrites in place is as good as one that shifts: only positions tell the order."""
        model, x = filled(NANO), inputs()
        cache = advance(model, x, Cache(NANO), 3)
        straight = cache.window(NANO.frames)
        order = torch.tensor([2, 0, 1])
        position = torch.cat([straight.slot_pos[:, :3][:, order], straight.slot_pos[:, 3:]], dim=1)
        turned = Window(cache.key[:, order], cache.value[:, order], position, straight.valid[:, order])
        latent = x["clean"][:, 5:7]
        rows = [model.prefill(latent, prompt(model), w) for w in (straight, turned)]
        torch.testing.assert_close(rows[0], rows[1], rtol=1e-5, atol=1e-5)
        wrong = model.prefill(latent, prompt(model), turned._replace(slot_pos=straight.slot_pos))
        assert not torch.allclose(wrong[0], rows[0][0], atol=1e-3)


class TestPositions:
    def test_scores_depend_on_distance_only(self) -> None:
        config = replace(NANO, width=256)
        query, key = noise(1, 1, 1, 12, 128), noise(2, 1, 1, 12, 128)

        def scores(first: float, second: float) -> Tensor:
            at = [frame_angles(config, torch.tensor([[frame, frame + 1.0]])) for frame in (first, second)]
            return rotate(query, at[0]) @ rotate(key, at[1]).transpose(2, 3)

        torch.testing.assert_close(scores(9.0, 3.0), scores(6.0, 0.0), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(scores(9.0, 3.0), scores(9.0, 4.0), atol=1e-2)

    def test_pairs_are_interleaved(self) -> None:
        angle = angles(torch.tensor([[3.0]]), 4)
        torch.testing.assert_close(angle, torch.tensor([[[3.0, 0.03]]]))
        turned = rotate(torch.tensor([[[[1.0, 0.0, 1.0, 0.0]]]]), angle)
        expected = [np.cos(3.0), np.sin(3.0), np.cos(0.03), np.sin(0.03)]
        np.testing.assert_allclose(turned.flatten(), expected, rtol=1e-6)

    def test_video_may_be_renumbered_but_actions_may_not(self) -> None:
        """Shifting every position leaves a clean pass as it is, through all layers; actions turn at another rate."""
        model, x = filled(NANO), inputs()
        near, far = (advance(model, x, Cache(NANO, shift), 4) for shift in (0.0, 6.0))
        torch.testing.assert_close((near.key, near.value), (far.key, far.value), rtol=1e-4, atol=1e-4)
        moved = [a - b for a, b in zip(step(model, x, near, 4), step(model, x, far, 4), strict=True)]
        assert min(part.abs().max() for part in moved) > 1e-3


class TestTimes:
    def test_each_stream_has_its_own(self) -> None:
        model, x = filled(NANO), inputs()
        cache = advance(model, x, Cache(NANO), 2)
        pairs = [(0.3, 0.3), (0.3, 0.8), (0.8, 0.3), (0.8, 0.8)]
        found = [
            step(model, x, cache, 2, t_video=torch.tensor([video]), t_action=torch.tensor([action]))
            for video, action in pairs
        ]
        for i in range(4):
            for other in found[:i]:
                assert min((a - b).abs().max() for a, b in zip(found[i], other, strict=True)) > 1e-3

    def test_committed_actions_are_clean_at_any_time(self) -> None:
        model, x = filled(NANO), inputs()
        cache = advance(model, x, Cache(NANO), 2)
        action, prefix = x["action"][:, H : 2 * H], noise(9, 1, H, NANO.action_width)

        def run(committed: int, time: float, noisy: Tensor = action) -> tuple[Tensor, Tensor]:
            mask = (torch.arange(H) < committed).float()[None]
            changed = {"action": noisy, "prefix": prefix, "prefix_mask": mask, "t_action": torch.tensor([time])}
            return step(model, x, cache, 2, **changed)

        v_video, v_action = run(3, 0.25)
        torch.testing.assert_close((action + 0.75 * v_action)[:, :3], prefix[:, :3])
        changed = action.clone()
        changed[:, :3] += 1.0
        torch.testing.assert_close(run(3, 0.25, changed)[0], v_video, rtol=0.0, atol=0.0)
        assert (run(2, 0.25, changed)[0] - v_video).abs().max() > 1e-3
        # All committed: nothing is left of the noise or of its time but in the state's.
        torch.testing.assert_close(run(H, 0.25)[0], run(H, 0.9, changed)[0], rtol=0.0, atol=0.0)
        assert (run(H - 1, 0.25)[0] - run(H - 1, 0.9)[0]).abs().max() > 1e-3

    def test_state_takes_the_time_of_the_last_action(self) -> None:
        """A committed prefix makes the first actions clean; the chunk as a whole is as noisy as its last one."""
        x, time = inputs(), torch.tensor([[1.0] * 3 + [0.2] * (H - 3) + [0.7] * H])
        states = filled(NANO)._registers(x["action"][:, : 2 * H], time, x["state"][:, :2], torch.zeros(1, 1))[1]
        torch.testing.assert_close(states.time, torch.tensor([[0.2, 0.7]]))


class TestUse:
    def test_everything_learns(self) -> None:
        config = replace(NANO, image_tokens=2, image_width=16)
        model, x = filled(config), inputs(config)
        with torch.enable_grad():
            v_video, v_action = trained(model, x)
            (v_video.square().mean() + v_action.square().mean()).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []

    def test_fresh_model_imagines_nothing(self) -> None:
        torch.manual_seed(0)
        v_video, v_action = trained(WanJoint(NANO), inputs())
        assert v_video.abs().max() == 0.0
        assert v_action.abs().max() > 0.0

    def test_wrong_shapes_are_named(self) -> None:
        model, x = filled(NANO), inputs()
        with pytest.raises(UsageError, match=r"\(4, 4, 5\), expected \(4, 4, 6\)"):
            model.prefill(x["clean"][:, :1, :, :, :5], prompt(model), Cache(NANO).window(1))
        with pytest.raises(UsageError, match="expected 0 image tokens"):
            model.context(noise(1, 1, 5, 16), noise(2, 1, 2, 16))
        for missing in ("action", "state", "t_action"):
            with pytest.raises(UsageError, match=f"{missing} is missing"):
                model.teacher_forced(**(x | {missing: None}), context=prompt(model))  # type: ignore[arg-type]
