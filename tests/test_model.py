"""The World Action Model's parts at toy sizes: shapes, the promises between streams, sampling, words."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from dzedge.errors import PolicyError
from dzedge.export.model.blocks import rotate, velocity
from dzedge.export.model.latent import latent_mean, latent_std, to_latent, used
from dzedge.export.model.sizes import TOKEN_NAMES, Sizes
from dzedge.export.model.text import VOCABULARY, colour_of, words_of
from dzedge.export.model.tokenizer import FrameDecoder, FrameEncoder
from dzedge.export.model.wam import Given, Wam

TOY = Sizes(width=32, layers=2, heads=2, encoder_width=4, decoder_width=4)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def awake(sizes: Sizes) -> Wam:
    torch.manual_seed(0)
    model = Wam(sizes).eval()
    # A fresh trunk's heads are zero; random ones make every path matter.
    for stream in (model.video, model.action):
        torch.nn.init.normal_(stream.leave.weight, std=0.3)
        torch.nn.init.normal_(stream.shared.weight, std=0.1)
    torch.nn.init.normal_(model.text.points, std=0.15)
    return model


@pytest.fixture
def wam() -> Wam:
    return awake(TOY)


def inputs(batch: int = 2) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {
        "latents": torch.randn(batch, TOY.window, TOY.tokens, TOY.channels, generator=rng),
        "video": torch.randn(batch, TOY.frames, TOY.tokens, TOY.channels, generator=rng),
        "action": torch.randn(batch, TOY.horizon, TOY.joints, generator=rng),
        "state": torch.randn(batch, TOY.joints, generator=rng),
        "slot_pos": torch.tensor([[0.0, -1.0]]).expand(batch, -1),
        "valid": torch.ones(batch, TOY.window),
        "words": torch.tensor([words_of("reach the red cube", TOY.words)] * batch),
        "time": torch.full((batch,), 0.3),
        "body": torch.zeros(batch, dtype=torch.int64),
    }


def watch(
    model: Wam, x: dict[str, torch.Tensor], given: Given | None = None
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    window = model.window(x["latents"])
    text = model.text(x["words"])
    latent = x["latents"][:, 0]
    clean, rows, _ = model.video(
        x["video"], latent, window, x["slot_pos"], x["valid"], text, x["time"], x["body"], given
    )
    return clean, rows


class TestTrunk:
    def test_shapes(self, wam: Wam) -> None:
        x = inputs()
        clean, rows = watch(wam, x)
        assert clean.shape == x["video"].shape
        assert rows[0].shape == rows[1].shape == (2, TOY.layers, TOY.heads, TOY.tokens, TOY.head_width)
        nothing = torch.zeros(2, TOY.horizon)
        chunk = wam.action(x["action"], torch.zeros_like(x["action"]), nothing, x["state"], rows, x["time"])
        assert chunk.shape == x["action"].shape

    def test_an_empty_slot_is_not_seen(self, wam: Wam) -> None:
        x = inputs()
        x["valid"] = torch.tensor([[1.0, 0.0]] * 2)
        first, _ = watch(wam, x)
        x["latents"] = x["latents"].clone()
        x["latents"][:, 1] += 5.0
        hidden, _ = watch(wam, x)
        x["valid"] = torch.ones(2, 2)
        shown, _ = watch(wam, x)
        torch.testing.assert_close(first, hidden, rtol=0, atol=0)
        assert (first - shown).abs().max() > 1e-3

    def test_rows_of_a_frame_do_not_depend_on_the_other_frames(self, wam: Wam) -> None:
        x = inputs()
        both, _ = wam.window(x["latents"])
        alone, _ = wam.prefill(x["latents"][:, 1])
        torch.testing.assert_close(both[:, 1], alone, rtol=0, atol=1e-6)

    def test_the_age_of_a_slot_matters(self, wam: Wam) -> None:
        x = inputs()
        young, _ = watch(wam, x)
        x["slot_pos"] = torch.tensor([[0.0, -3.0]]).expand(2, -1)
        old, _ = watch(wam, x)
        assert (young - old).abs().max() > 1e-4

    def test_words_reach_the_video(self, wam: Wam) -> None:
        x = inputs()
        red, _ = watch(wam, x)
        x["words"] = torch.tensor([words_of("reach the blue cube", TOY.words)] * 2)
        blue, _ = watch(wam, x)
        assert (red - blue).abs().max() > 1e-3

    def test_cubes_are_exchangeable(self, wam: Wam) -> None:
        """Two cubes that change places together with their colour words give the same future, changed about."""
        x = inputs()
        colours = {"red": VOCABULARY["red"], "blue": VOCABULARY["blue"]}
        for index, word in enumerate(TOKEN_NAMES[1:]):
            wam.text.points[VOCABULARY[word]] = 0.2 * torch.eye(len(TOKEN_NAMES) - 1)[index]
        plain, _ = watch(wam, x)
        swap = torch.arange(TOY.tokens)
        swap[[1, 3]] = swap[[3, 1]]
        x["latents"], x["video"] = x["latents"][:, :, swap], x["video"][:, :, swap]
        x["words"] = torch.where(x["words"] == colours["red"], colours["blue"], x["words"])
        swapped, _ = watch(wam, x)
        torch.testing.assert_close(swapped[:, :, swap], plain, atol=1e-5, rtol=1e-5)

    def test_committed_actions_come_out_as_they_went_in(self, wam: Wam) -> None:
        x = inputs()
        _, rows = watch(wam, x)
        prefix = torch.randn(2, TOY.horizon, TOY.joints)
        mask = torch.zeros(2, TOY.horizon)
        mask[:, :3] = 1.0
        chunk = wam.action(x["action"], prefix * mask[..., None], mask, x["state"], rows, x["time"])
        torch.testing.assert_close(chunk[:, :3], prefix[:, :3])
        free = wam.action(x["action"], prefix * 0, mask * 0, x["state"], rows, x["time"])
        assert (chunk[:, 3:] - free[:, 3:]).abs().max() > 1e-4

    def test_noise_under_the_prefix_is_not_seen(self, wam: Wam) -> None:
        x = inputs()
        _, rows = watch(wam, x)
        prefix, mask = torch.randn(2, TOY.horizon, TOY.joints), torch.zeros(2, TOY.horizon)
        mask[:, :2] = 1.0
        prefix = prefix * mask[..., None]
        other = x["action"].clone()
        other[:, :2] += 3.0
        one = wam.action(x["action"], prefix, mask, x["state"], rows, x["time"])
        two = wam.action(other, prefix, mask, x["state"], rows, x["time"])
        torch.testing.assert_close(one, two, rtol=0, atol=0)


    def test_another_body_has_another_future(self, wam: Wam) -> None:
        x = inputs()
        ours, _ = watch(wam, x)
        x["body"] = torch.tensor([0, 1])
        mixed, _ = watch(wam, x)
        torch.testing.assert_close(mixed[0], ours[0], rtol=0, atol=1e-6)
        assert (mixed[1] - ours[1]).abs().max() > 1e-3

    def test_actions_are_no_business_of_the_video(self, wam: Wam) -> None:
        """What makes video without actions a lesson, and a finished video's rows reusable."""
        assert not any("action" in name for name, _ in wam.video.named_parameters())
        with pytest.raises(AttributeError):
            watch(wam, inputs(), (torch.zeros(2, TOY.horizon, TOY.joints), torch.ones(2)))


class TestGiven:
    """Actions that the video is told to follow, where the model has been made for it."""

    SIZES = replace(TOY, given=True)

    def test_change_the_video_where_they_are_seen(self) -> None:
        model, x = awake(self.SIZES), inputs()
        nothing, _ = watch(model, x)
        told, _ = watch(model, x, (x["action"], torch.tensor([1.0, 0.0])))
        assert (told[0] - nothing[0]).abs().max() > 1e-3
        torch.testing.assert_close(told[1], nothing[1], rtol=0, atol=1e-6)

    def test_other_actions_other_video(self) -> None:
        model, x = awake(self.SIZES), inputs()
        for seen, differs in ((torch.ones(2), True), (torch.zeros(2), False)):
            one, _ = watch(model, x, (x["action"], seen))
            two, _ = watch(model, x, (x["action"].flip(1), seen))
            assert bool((one - two).abs().max() > 1e-3) is differs

    def test_of_one_row_are_not_the_others(self) -> None:
        model, x = awake(self.SIZES), inputs()
        one, _ = watch(model, x, (x["action"], torch.ones(2)))
        other = torch.stack([x["action"][0], x["action"][1] + 1.0])
        two, _ = watch(model, x, (other, torch.ones(2)))
        torch.testing.assert_close(one[0], two[0], rtol=0, atol=1e-6)
        assert (one[1] - two[1]).abs().max() > 1e-3


class TestFlow:
    def test_euler_over_an_exact_velocity_lands_on_the_clean_value(self) -> None:
        clean, noise = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
        x, steps = noise.clone(), 5
        for step in range(steps):
            x = x + velocity(clean, x, torch.full((3,), step / steps)) / steps
        torch.testing.assert_close(x, clean, atol=1e-5, rtol=0)

    def test_velocity_is_finite_at_the_end(self) -> None:
        assert velocity(torch.ones(1, 2), torch.zeros(1, 2), torch.ones(1)).isfinite().all()

    def test_rotation_keeps_lengths_and_depends_on_distance_only(self) -> None:
        rows = torch.randn(1, 2, 3, 8)
        turned = rotate(rows, torch.full((1, 1, 3), 2.0))
        torch.testing.assert_close(turned.norm(dim=-1), rows.norm(dim=-1))
        query = torch.randn(1, 2, 3, 8)
        near = (rotate(query, torch.full((1, 1, 3), 1.0)) * rotate(rows, torch.zeros(1, 1, 3))).sum(-1)
        far = (rotate(query, torch.full((1, 1, 3), 4.0)) * rotate(rows, torch.full((1, 1, 3), 3.0))).sum(-1)
        torch.testing.assert_close(near, far, atol=1e-5, rtol=1e-5)


class TestTokenizer:
    def test_shapes_and_ranges(self) -> None:
        torch.manual_seed(0)
        encoder, decoder = FrameEncoder(TOY).eval(), FrameDecoder(TOY).eval()
        image = torch.rand(2, 3, TOY.image_height, TOY.image_width) * 2 - 1
        latent = encoder(image)
        assert latent.shape == (2, TOY.tokens, TOY.channels)
        assert ((latent[:, 1:, 3] >= 0) & (latent[:, 1:, 3] <= 1)).all()
        assert (latent[:, 1:, 4:] == 0).all()
        drawn = decoder(latent)
        assert drawn.shape == image.shape
        assert drawn.abs().max() <= 1.0

    def test_latent_units(self) -> None:
        labels = np.zeros((1, len(TOKEN_NAMES), 10), dtype=np.float32)
        labels[0, 0] = 0.1
        labels[0, 2, :4] = (0.25, -0.05, 0.02, 1.0)
        latent = to_latent(labels.copy())
        back = latent * latent_std() + latent_mean()
        np.testing.assert_allclose(back[0, 0], labels[0, 0], atol=1e-6)
        np.testing.assert_allclose(back[0, 2, :4], labels[0, 2, :4], atol=1e-6)
        assert (latent[0, 1] == 0).all(), "an absent cube has no place"
        assert used().sum() == 10 + 6 * 4


class TestWords:
    def test_every_task_has_words(self) -> None:
        from dzedge.hardware.sim.task import TASKS

        for task in TASKS:
            ids = words_of(task.instruction, TOY.words)
            assert len(ids) == TOY.words
            assert TOKEN_NAMES[1 + colour_of(task.instruction)] == task.colour
        assert len({tuple(sorted(words_of(t.instruction, TOY.words))) for t in TASKS}) == len(TASKS)

    def test_nothing_said(self) -> None:
        assert words_of("", TOY.words) == [0] * TOY.words
        assert colour_of("") == -1

    @pytest.mark.parametrize("text", ["reach the purple cube", "the the the the the the the the the"])
    def test_refused(self, text: str) -> None:
        with pytest.raises(PolicyError):
            words_of(text, TOY.words)

    def test_ids_are_stable(self) -> None:
        assert VOCABULARY["reach"] == 1
        assert max(VOCABULARY.values()) == len(VOCABULARY)


def test_orthogonalised_is_nearly_orthogonal() -> None:
    from dzedge.export.optim import orthogonalised

    torch.manual_seed(0)
    for rows, columns in ((16, 48), (48, 16)):
        x = orthogonalised(torch.randn(3, rows, columns))
        singular = torch.linalg.svdvals(x)
        assert (singular > 0.5).all()
        assert (singular < 1.3).all()


def test_schedule() -> None:
    from dzedge.export.optim import schedule

    values = [schedule(step, 1000) for step in range(1000)]
    assert math.isclose(values[0], 0.01)
    assert values[100] == values[500] == 1.0
    assert values[-1] < 0.03
