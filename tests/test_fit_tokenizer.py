"""The tokenizer of things in training: it resumes bit for bit, projects as the camera does, and learns of our arm."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dzedge.export import checkpoint, fit_tokenizer, stills, tokenizers
from dzedge.export.model.latent import to_latent
from dzedge.export.model.sizes import Sizes
from dzedge.export.recipe import TokenizerRecipe
from dzedge.export.stills import Stills
from dzedge.hardware.sim import camera
from dzedge.hardware.sim.scene import draw_layout

TOY = Sizes(width=32, layers=1, heads=2, encoder_width=4, decoder_width=4)
RECIPE = TokenizerRecipe(iterations=6, batch=8, save_every=2, half=False)


class Interrupted(Exception):
    """The power goes off."""


@pytest.fixture(scope="module")
def shown() -> Stills:
    return stills.generate(20, seed=7)


def _fit(
    shown: Stills, path: Path, recipe: TokenizerRecipe = RECIPE, on_step: Callable[[int], None] = lambda step: None
) -> tuple[fit_tokenizer.Tokenizer, list[dict[str, Any]]]:
    lines: list[dict[str, Any]] = []
    return fit_tokenizer.fit(recipe, TOY, shown, shown, path, lines.append, on_step), lines


def test_resumed_is_uninterrupted(shown: Stills, tmp_path: Path) -> None:
    def power(step: int) -> None:
        if step == 3:
            raise Interrupted

    whole, lines = _fit(shown, tmp_path / "whole.safetensors")
    assert [line["step"] for line in lines] == [2, 4, 6]
    with pytest.raises(Interrupted):
        _fit(shown, tmp_path / "torn.safetensors", on_step=power)
    resumed, rest = _fit(shown, tmp_path / "torn.safetensors")
    assert [line["step"] for line in rest] == [4, 6]
    one, two = (checkpoint.load(tmp_path / f"{name}.safetensors") for name in ("whole", "torn"))
    for name, value in one["model"].items():
        assert torch.equal(value, two["model"][name]), name
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    other, _ = _fit(shown, tmp_path / "next.safetensors", replace(RECIPE, seed=1))
    assert not torch.equal(other.encoder.heat.weight, whole.encoder.heat.weight)


def test_figures_and_what_is_loaded(shown: Stills, tmp_path: Path) -> None:
    model, lines = _fit(shown, tmp_path / "a.safetensors")
    assert all(np.isfinite(value) for value in lines[-1].values())
    assert {"tip_mm", "cube_mm", "presence_wrong", "psnr_db"} <= set(lines[-1])
    loaded = tokenizers.load(tmp_path / "a.safetensors")
    assert loaded.encoder.sizes == TOY
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


@pytest.mark.slow
def test_learns(shown: Stills, tmp_path: Path) -> None:
    _, lines = _fit(shown, tmp_path / "a.safetensors", replace(RECIPE, iterations=150, save_every=75, rate=4e-3))
    torch.manual_seed(0)
    untrained = fit_tokenizer.errors(fit_tokenizer.Tokenizer(TOY), shown)
    assert lines[-1]["psnr_db"] > untrained["psnr_db"] + 1.0
    assert lines[-1]["tip_mm"] < 0.9 * untrained["tip_mm"]


@pytest.mark.parametrize("seed", range(4))
def test_projects_as_the_camera(seed: int) -> None:
    view, rng = draw_layout(seed).view, np.random.default_rng(seed)
    points = rng.uniform((0.05, -0.3, 0.0), (0.35, 0.3, 0.2), (5, 3))
    found = fit_tokenizer.project(
        torch.from_numpy(points[None]).float(), fit_tokenizer.cameras(np.stack([view]))
    )[0].numpy()  # fmt: skip
    eye, rotation = camera.placed(view)
    right, down, forward = ((points - eye) @ rotation).T
    np.testing.assert_allclose(found[:, 0], camera.FOCAL * right / forward / (camera.WIDTH / 2), atol=1e-5)
    np.testing.assert_allclose(found[:, 1], camera.FOCAL * down / forward / (camera.HEIGHT / 2), atol=1e-5)
    still = fit_tokenizer.project(torch.from_numpy(points[None]).float(), fit_tokenizer.cameras(np.zeros((1, 6))))
    assert np.abs(found - still[0].numpy()).max() > 1e-3


def test_heat_is_least_where_things_are(shown: Stills) -> None:
    """Maps that peak at the projected points cost less than maps that peak beside them."""
    labels, stand = torch.from_numpy(shown.labels), fit_tokenizer.cameras(shown.views)
    cells, spacing = fit_tokenizer.Tokenizer(TOY).encoder.cells, 4.0 / TOY.image_width
    arm = labels[:, 0, :9].unflatten(-1, (3, 3))
    points = torch.cat([arm, torch.zeros(len(labels), 3, 3), labels[:, 1:, :3]], dim=1)

    def cost(aside: float) -> float:
        where = fit_tokenizer.project(points, stand) + aside
        square = ((where.unsqueeze(2) - cells) ** 2).sum(-1)
        log_heat = (-square / (2.0 * (0.7 * spacing) ** 2)).log_softmax(-1)
        return fit_tokenizer.heat_loss(log_heat, labels, stand, cells, spacing).item()

    assert cost(0.0) < cost(0.05) < cost(0.2)


def test_a_decoder_learns_of_frames_that_show_our_arm_alone(
    shown: Stills, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def watched(model: Any, image: torch.Tensor, labels: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        assert fit_tokenizer.shows_arm(labels).all()
        seen.append(len(image))
        return model.decoder.background.sum() * 0.0

    monkeypatch.setattr(fit_tokenizer, "decoder_loss", watched)
    _fit(shown, tmp_path / "a.safetensors", replace(RECIPE, batch=32))
    assert len(seen) == 2, "every third iteration"
    assert max(seen) < 32


def test_latents_of_labels_have_no_place_for_what_is_absent(shown: Stills) -> None:
    latents = to_latent(shown.labels.copy())
    absent = shown.labels[:, 1:, 3] == 0
    assert (latents[:, 1:][absent] == 0).all()
    assert np.abs(latents[:, 0, :9]).max() < 6.0


def test_augmentation_keeps_the_picture(shown: Stills) -> None:
    plain = torch.from_numpy(shown.frames[:4]).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    one, again, other = (fit_tokenizer.augmented(shown.frames[:4], np.random.default_rng(s)) for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert 0.005 < (one - plain).abs().mean() < 0.1
    assert one.abs().max() <= 1.0
