"""The tokenizer of patches: shapes, its code, what its loss weighs, and that it learns a moving thing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dzedge.errors import UsageError
from dzedge.export import checkpoint, fit_vae, tokenizers
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.vae import Vae, VaeDecoder
from dzedge.export.recipe import TokenizerRecipe

SMALL = Sizes(
    tokenizer="vae", image_height=24, image_width=32, cell=8, tokens=12, channels=6, encoder_width=8, decoder_width=8
)
RECIPE = TokenizerRecipe(iterations=4, batch=16, save_every=2, half=False)


def box(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames of a bright box on a grey table, and where its corner was."""
    rng = np.random.default_rng(seed)
    frames = np.full((count, 24, 32, 3), 90, np.uint8)
    places = np.stack([rng.integers(0, 18, count), rng.integers(0, 26, count)], axis=1)
    for frame, (row, column) in zip(frames, places, strict=True):
        frame[row : row + 6, column : column + 6] = (230, 40, 40)
    return frames, places


def pairs(count: int, seed: int) -> np.ndarray:
    return np.stack([box(count, seed)[0], box(count, seed + 1)[0]], axis=1)


class TestModel:
    @pytest.mark.parametrize(("height", "width", "cell"), [(72, 96, 12), (64, 64, 8), (48, 64, 16), (24, 32, 4)])
    def test_shapes(self, height: int, width: int, cell: int) -> None:
        tokens = height // cell * (width // cell)
        sizes = replace(SMALL, image_height=height, image_width=width, cell=cell, tokens=tokens)
        torch.manual_seed(0)
        model = Vae(sizes).eval()
        image = torch.rand(2, 3, height, width) * 2 - 1
        with torch.no_grad():
            latent = model.encoder(image)
            drawn = model.decoder(latent)
        assert latent.shape == (2, tokens, 6)
        torch.testing.assert_close((latent**2).mean(-1), torch.ones(2, tokens), atol=1e-3, rtol=0)
        assert drawn.shape == image.shape
        assert drawn.abs().max() <= 1.0

    def test_a_frame_knows_of_no_other(self) -> None:
        torch.manual_seed(0)
        encoder = Vae(SMALL).eval().encoder
        image = torch.rand(3, 3, 24, 32) * 2 - 1
        with torch.no_grad():
            torch.testing.assert_close(encoder(image)[1:2], encoder(image[1:2]), atol=1e-5, rtol=1e-5)
            assert (encoder(image)[0] - encoder(image)[1]).abs().max() > 1e-3

    def test_a_fresh_decoder_draws_the_background(self) -> None:
        decoder = VaeDecoder(SMALL).eval()
        decoder.background.fill_(0.25)
        assert (decoder(torch.randn(2, 12, 6)) == 0.25).all()

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            (dict(tokens=11), "sizes.tokens 11: .* 3 x 4 patches of side 8; set tokens = 12"),
            (dict(cell=6), "sizes.cell 6: must be a multiple of 4"),
            (dict(cell=16), "divides image_height 24"),
            (dict(tokenizer="pca"), "sizes.tokenizer 'pca': must be one of structured, vae"),
        ],
    )
    def test_sizes_that_do_not_fit(self, wrong: dict[str, object], says: str) -> None:
        with pytest.raises(UsageError, match=says):
            replace(SMALL, **wrong)

    def test_names_of_tokens(self) -> None:
        assert SMALL.token_names[:5] == ("patch 0,0", "patch 0,1", "patch 0,2", "patch 0,3", "patch 1,0")
        assert len(SMALL.token_names) == SMALL.tokens
        assert Sizes().token_names[0] == "arm"
        assert (SMALL.pointers, Sizes().pointers) == (0, 6)


class TestLoss:
    def test_rare_pixels(self) -> None:
        background = torch.zeros(1, 3, 2, 2)
        image = background.clone()
        image[0, 1, 0, 0], image[0, 2, 0, 1], image[0, 0, 1, 0] = 0.8, -0.3, 0.05
        expected = torch.tensor([[1.0, 0.5], [0.0, 0.0]])
        torch.testing.assert_close(fit_vae.rarity(image, background)[0, 0], expected)

    def test_an_error_at_a_rare_pixel_weighs_more(self) -> None:
        torch.manual_seed(0)
        model, recipe = Vae(SMALL).eval(), replace(RECIPE, noise=0.0)
        weight = torch.ones(1, 1, 24, 32)
        weight[..., :12, :] = 7.0

        def loss(rows: slice) -> float:
            image = torch.zeros(1, 3, 24, 32)
            image[:, :, rows] = 0.5
            return fit_vae.picture_loss(model, image, weight, recipe, torch.Generator().manual_seed(0)).item()

        with torch.no_grad():
            assert loss(slice(0, 12)) > 3.0 * loss(slice(12, 24))

    def test_unit_noise_diverges_least(self) -> None:
        at = {sigma: fit_vae.divergence(torch.full((2, 3), np.log(sigma))).item() for sigma in (0.5, 1.0, 1.5)}
        assert at[1.0] == pytest.approx(0.5)
        assert min(at, key=at.__getitem__) == 1.0


class TestErrors:
    def test_of_a_copy(self) -> None:
        """A model that draws the background only: moved pixels are as far off as the box is bright."""
        torch.manual_seed(0)
        model = Vae(SMALL).eval()
        model.decoder.background.copy_(fit_vae.as_image(np.full((1, 24, 32, 3), 90, np.uint8)))
        still = np.full((1, 2, 24, 32, 3), 90, np.uint8)
        assert fit_vae.errors(model, still) == {"psnr_db": 100.0}
        moved = still.copy()
        moved[0, 1, 4:8, 4:8] = 190
        found = fit_vae.errors(model, moved)
        expected = -20 * np.log10(100 / 255)
        assert (found["moving_db"], found["copied_db"]) == pytest.approx((expected, expected), abs=1e-3)
        assert found["psnr_db"] == pytest.approx(found["moving_db"] - 10 * np.log10(16 / (24 * 32)), abs=1e-3)


class TestFit:
    def test_goes_on_where_it_stopped(self, tmp_path: Path) -> None:
        frames, held_out = box(64, 0)[0], pairs(8, 5)
        whole = fit_vae.fit(RECIPE, SMALL, frames, held_out, tmp_path / "whole.safetensors", lambda line: None)
        state = checkpoint.load(tmp_path / "whole.safetensors")
        lines: list[dict[str, float]] = []
        path = tmp_path / "cut.safetensors"

        def interrupted(line: dict[str, float]) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit_vae.fit(RECIPE, SMALL, frames, held_out, path, interrupted)
        assert checkpoint.load(path)["step"] == 2
        cut = fit_vae.fit(RECIPE, SMALL, frames, held_out, path, lines.append)
        assert [line["step"] for line in lines] == [4] == [state["step"]]
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(value, cut.state_dict()[name], atol=0, rtol=0)
        other = fit_vae.fit(
            replace(RECIPE, seed=1), SMALL, frames, held_out, tmp_path / "other.safetensors", lambda line: None
        )
        weights = "encoder.body.0.0.weight"
        assert not torch.equal(other.state_dict()[weights], whole.state_dict()[weights])

    def test_another_recipe_or_other_sizes_are_refused(self, tmp_path: Path) -> None:
        frames, path = box(64, 0)[0], tmp_path / "tokenizer.safetensors"
        fit_vae.fit(RECIPE, SMALL, frames, pairs(8, 5), path, lambda line: None)
        before = path.read_bytes()
        with pytest.raises(UsageError, match=r"sizes\.channels = .*the recipe says 4"):
            fit_vae.fit(RECIPE, replace(SMALL, channels=4), frames, pairs(8, 5), path, lambda line: None)
        with pytest.raises(UsageError, match=r"tokenizer\.rate"):
            fit_vae.fit(replace(RECIPE, rate=1e-5), SMALL, frames, pairs(8, 5), path, lambda line: None)
        assert path.read_bytes() == before
        longer: list[dict[str, float]] = []
        fit_vae.fit(replace(RECIPE, iterations=6), SMALL, frames, pairs(8, 5), path, longer.append)
        assert [line["step"] for line in longer] == [6]
        loaded = tokenizers.load(path)
        assert isinstance(loaded, Vae)
        assert loaded.encoder.sizes == SMALL

    def test_it_learns_where_the_box_is(self, tmp_path: Path) -> None:
        """A new place is drawn far better than the last one copied, and can be read off the code."""
        recipe = replace(RECIPE, iterations=250, batch=32, save_every=250)
        lines: list[dict[str, float]] = []
        path = tmp_path / "tokenizer.safetensors"
        model = fit_vae.fit(recipe, SMALL, box(2000, 0)[0], pairs(64, 7), path, lines.append)
        assert lines[-1]["moving_db"] > lines[-1]["copied_db"] + 6.0
        codes, places = [], []
        for seed in (11, 12):
            shown, where = box(400, seed)
            with torch.no_grad():
                code = model.encoder(fit_vae.as_image(shown)).flatten(1).numpy().astype(float)
            codes.append(np.hstack([code, np.ones((len(code), 1))]))
            places.append(where)
        ridge = codes[0].T @ codes[0] + 1e-1 * np.eye(codes[0].shape[1])
        read = codes[1] @ np.linalg.solve(ridge, codes[0].T @ places[0])
        guess = np.abs(places[1] - places[0].mean(axis=0)).mean()
        assert np.abs(read - places[1]).mean() < 0.3 * guess
