"""One loop for every family: interrupted, a training ends where it would have; another seed ends elsewhere."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dzedge.errors import UsageError
from dzedge.export import checkpoint, families, fit_policy
from dzedge.export.episodes import LABELLED, PLAY, VIDEO, Episodes
from dzedge.export.fit_wam import draw
from dzedge.export.model.sizes import Sizes
from dzedge.export.recipe import PolicyRecipe
from dzedge.export.windows import Windows

TOY = Sizes(width=32, layers=1, heads=2)
OF_THINGS = [name for name in families.LEARNERS if name != "wan_joint"]
"""Families that learn on tokens that are things; the other one: test_fit_wan.py."""
TINY = PolicyRecipe(iterations=6, labelled=6, play=4, video=4, save_every=2)


class Interrupted(Exception):
    """The power goes off."""


@pytest.fixture(scope="module")
def windows(made_episodes: Callable[..., Episodes]) -> Windows:
    return Windows(made_episodes(TOY), TOY)


def _recipe(family: str, **changed: Any) -> PolicyRecipe:
    return replace(TINY, family=family, **changed)


def _fit(
    recipe: PolicyRecipe, windows: Windows, path: Path, on_step: Callable[[int], None] = lambda step: None,
    sizes: Sizes = TOY,
) -> tuple[nn.Module, list[dict[str, Any]]]:  # fmt: skip
    lines: list[dict[str, Any]] = []
    learner = families.LEARNERS[recipe.family]()
    return fit_policy.fit(learner, recipe, sizes, windows, windows, path, lines.append, on_step), lines


def _equal(ours: Any, theirs: Any) -> bool:
    """Bit for bit, through dicts and lists."""
    if isinstance(ours, Tensor):
        return ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(_equal(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(_equal, ours, theirs))
    return bool(ours == theirs)


@pytest.mark.parametrize("family", OF_THINGS)
def test_resumed_is_uninterrupted(family: str, windows: Windows, tmp_path: Path) -> None:
    recipe = _recipe(family)
    _fit(recipe, windows, tmp_path / "whole.safetensors")

    def power(step: int) -> None:
        if step == 5:  # the checkpoint is of step 4: what was done since is lost and done again
            raise Interrupted

    torn = tmp_path / "torn.safetensors"
    with pytest.raises(Interrupted):
        _fit(recipe, windows, torn, power)
    assert checkpoint.load(torn)["step"] == 4
    _fit(recipe, windows, torn)
    whole, resumed = checkpoint.load(tmp_path / "whole.safetensors"), checkpoint.load(torn)
    assert whole["step"] == resumed["step"] == 6
    for part in ("model", "average", "optimizer", "moments"):
        assert _equal(whole[part], resumed[part]), part
    _fit(replace(recipe, seed=1), windows, tmp_path / "next.safetensors")
    assert not _equal(whole["model"], checkpoint.load(tmp_path / "next.safetensors")["model"])


def test_a_checkpoint_of_another_recipe_is_not_gone_on_with(windows: Windows, tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    _fit(TINY, windows, path)
    _fit(replace(TINY, iterations=TINY.iterations + 1), windows, path)  # longer is the same training
    with pytest.raises(UsageError, match=r"policy\.grounding = .*the recipe says 0\.7.*another --out"):
        _fit(replace(TINY, grounding=0.7), windows, path)


def test_same_seed_same_weights_whatever_was_drawn_before(windows: Windows, tmp_path: Path) -> None:
    _fit(TINY, windows, tmp_path / "one.safetensors")
    torch.manual_seed(99)
    torch.randn(7)
    np.random.default_rng(3).random(4)
    _fit(TINY, windows, tmp_path / "two.safetensors")
    one, two = (checkpoint.load(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert _equal(one["model"], two["model"])


def test_a_finished_training_is_left_alone(windows: Windows, tmp_path: Path) -> None:
    path, steps = tmp_path / "a.safetensors", []
    first, _ = _fit(TINY, windows, path)
    kept = path.read_bytes()
    again, lines = _fit(TINY, windows, path, steps.append)
    assert (steps, lines) == ([], [])
    assert path.read_bytes() == kept
    assert _equal(first.state_dict(), again.state_dict())


def test_what_comes_back_is_the_average_not_the_last(windows: Windows, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    model, _ = _fit(TINY, windows, path)
    state = checkpoint.load(path)
    found = model.state_dict()
    assert all(torch.equal(found[name], state["average"][name]) for name in found)
    assert not _equal(state["average"], state["model"])
    assert not model.training


def test_log_lines(windows: Windows, tmp_path: Path) -> None:
    told: list[int] = []
    _, lines = _fit(TINY, windows, tmp_path / "a.safetensors", told.append)
    assert told == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines] == [2, 4, 6]
    for name in ("video", "action", "ground", "lab_tip_mm", "nov_tip_mm", "act_r2", "idm_r2"):
        assert np.isfinite(lines[-1][name]), name


@pytest.mark.slow
@pytest.mark.parametrize("family", OF_THINGS)
def test_learns(family: str, windows: Windows, tmp_path: Path) -> None:
    recipe = _recipe(family, iterations=60, save_every=60, labelled=16, rate=4e-3, matrix_rate=8e-3, grounding=0.0)
    learner = families.LEARNERS[family]()

    def loss(model: nn.Module) -> float:
        rng = np.random.default_rng(7)
        acting = recipe.labelled + recipe.play
        with torch.no_grad():
            found = [
                learner.losses(
                    model, recipe, learner.batch(windows, fit_policy.picks(windows, recipe, rng, 1), rng), acting,
                    checkpoint.torch_seed(5, i),
                )["action"].item()
                for i in range(8)
            ]  # fmt: skip
        return float(np.mean(found))

    torch.manual_seed(0)
    before = loss(learner.build(TOY, windows.moments))
    after = loss(fit_policy.fit(learner, recipe, TOY, windows, windows, tmp_path / "a.st", lambda line: None))
    assert after < 0.95 * before


class TestPicks:
    def test_acting_rows_come_first(self, windows: Windows) -> None:
        found = fit_policy.picks(windows, TINY, np.random.default_rng(0), 1)
        kinds = windows.episodes.kind[found].tolist()
        assert kinds == [LABELLED] * 6 + [PLAY] * 4 + [VIDEO] * 4

    def test_a_process_takes_its_part_of_every_kind(self, windows: Windows) -> None:
        found = fit_policy.picks(windows, TINY, np.random.default_rng(0), 2)
        assert windows.episodes.kind[found].tolist() == [LABELLED] * 3 + [PLAY] * 2 + [VIDEO] * 2


def test_videos_are_no_business_of_the_action_terms(windows: Windows, tmp_path: Path) -> None:
    """Actions made up for the videos change no loss of any family."""
    data = windows.episodes
    lies = np.where(data.kind[:, None] == VIDEO, np.float32(5.0), data.commands)
    lied = Windows(replace(data, commands=lies), TOY, windows.moments)
    for name in OF_THINGS:
        build = families.LEARNERS[name]
        recipe = _recipe(name) if name == "wam" else _recipe(name, video=0)
        found = []
        for source in (windows, lied):
            learner, rng = build(), np.random.default_rng(1)
            torch.manual_seed(0)
            model = learner.build(TOY, windows.moments)
            pick = fit_policy.picks(windows, recipe, np.random.default_rng(2), 1)
            terms = learner.losses(model, recipe, learner.batch(source, pick, rng), 10, checkpoint.torch_seed(1))
            found.append({term: value.item() for term, value in terms.items()})
        assert found[0] == found[1], name


@pytest.mark.parametrize("kind", ["labelled", "play", "video"])
def test_windows_that_are_not_there_are_named(kind: str, windows: Windows, tmp_path: Path) -> None:
    data, number = windows.episodes, {"labelled": LABELLED, "play": PLAY, "video": VIDEO}[kind]
    other = PLAY if number == LABELLED else LABELLED
    without = Windows(replace(data, kind=np.where(data.kind == number, other, data.kind)), TOY)
    with pytest.raises(UsageError, match=rf"policy\.{kind} \d+: the data have no such windows; set it to 0"):
        _fit(TINY, without, tmp_path / "a.safetensors")


def test_data_without_videos_have_no_figures_of_them(windows: Windows, tmp_path: Path) -> None:
    data = windows.episodes
    acting = Windows(data.taken(data.kind != VIDEO), TOY)
    _, lines = _fit(replace(TINY, video=0), acting, tmp_path / "a.safetensors")
    assert "act_r2" in lines[-1]
    assert not any(name.startswith("nov") for name in lines[-1])


def test_given_actions_are_learned_with(windows: Windows, tmp_path: Path) -> None:
    sizes = replace(TOY, given=True)
    _, lines = _fit(TINY, Windows(windows.episodes, sizes), tmp_path / "a.safetensors", sizes=sizes)
    assert np.isfinite(lines[-1]["given_tip_mm"])


def test_as_an_auxiliary_loss_no_finished_video_is_acted_on(windows: Windows) -> None:
    batch = windows.batch(fit_policy.picks(windows, TINY, np.random.default_rng(0), 1))
    for auxiliary in (True, False):
        recipe = _recipe("wam", auxiliary=auxiliary, labelled=6)
        drawn = [draw(recipe, batch, 10, checkpoint.torch_seed(i)).t_video[:10] for i in range(20)]
        assert bool(torch.stack(drawn).any()) is not auxiliary
