"""Recipes: every shipped one parses, and what is wrong in one is named."""

from dataclasses import replace
from pathlib import Path

import pytest

from dzedge.errors import UsageError
from dzedge.export.recipe import FAMILIES, Recipe, read_recipe, recipe_path

FOLDER = Path(__file__).parents[1] / "export" / "recipes"
SHIPPED = sorted(FOLDER.glob("*.toml"))


def _read(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return read_recipe(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.sizes.width % recipe.sizes.heads == 0
    assert recipe.policy.iterations > 0
    assert recipe.policy.labelled > 0
    assert recipe.sizes.given == (path.stem == "wam")


def test_an_ablation_changes_what_it_is_named_after() -> None:
    wam = read_recipe(FOLDER / "wam.toml").policy
    for path in SHIPPED:
        if not read_recipe(path).sizes.structured:  # of the simulator's data there are no ablations without labels
            continue
        policy = read_recipe(path).policy
        assert (policy.family == "wam") == path.stem.startswith("wam")
        assert policy.auxiliary == (path.stem == "wam_auxiliary")
        assert policy.pseudo_labels == (path.stem == "pseudo_vla")
        if path.stem.startswith("wam_video"):
            share = int(path.stem.removeprefix("wam_video"))
            assert policy.video_share == share / 100
            assert policy.marker == wam.marker
            assert (policy.video == 0) == (share == 0)
        elif path.stem == "wam_hand":
            assert (policy.video_share, policy.marker) == (0.0, True)
            assert policy.video == wam.video
        else:
            assert policy.video_share == 1.0


def test_every_family_has_one_and_all_share_the_trunk() -> None:
    recipes = {name: read_recipe(FOLDER / f"{name}.toml") for name in FAMILIES}
    assert {name: recipe.policy.family for name, recipe in recipes.items()} == {name: name for name in FAMILIES}
    del recipes["wan_joint"]  # of patches: compared with none of them
    trunks = {replace(recipe.sizes, given=False) for recipe in recipes.values()}  # one projection more
    assert len(trunks) == len({(r.tokenizer, r.policy.rate, r.policy.matrix_rate) for r in recipes.values()}) == 1
    assert len({r.policy.grounding for r in recipes.values()}) == 1, "pointing helps all of them alike"


def test_no_vla_sees_fewer_acting_windows_than_the_world_action_model() -> None:
    """Windows with actions seen in all; the comparison is fair only so. One of the token VLA is H * J tokens long and
    counts twice: it computes more even so."""
    seen = {}
    for name in (*(set(FAMILIES) - {"wan_joint"}), "pseudo_vla", "wam_video0"):
        policy = read_recipe(FOLDER / f"{name}.toml").policy
        seen[name] = policy.iterations * (policy.labelled + policy.play) * (1 + (name == "token_vla"))
    assert min(seen, key=lambda name: seen[name]) == "wam", seen


def test_nothing_said_is_the_default(tmp_path: Path) -> None:
    assert _read(tmp_path, "").policy.family == "wam"
    assert _read(tmp_path, "[policy]\nseed = 3\nrate = 1\n").policy.seed == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[policy]\niteration = 3\n", r"\[policy\].*iteration"),
        ("[tokenizer]\nepochs = 3\n", r"\[tokenizer\].*epochs"),
        ("[sizes]\ndepth = 3\n", r"\[sizes\].*depth"),
        ("[dit]\niterations = 3\n", "unknown table or key 'dit'"),
        ("seed = 3\n", "unknown table or key 'seed'"),
        ("[policy]\nfamily = 'diffusion'\n", "'diffusion': must be one of wam, flow_vla"),
        ("[policy]\niterations = 'many'\n", r"policy\.iterations 'many': must be a whole number"),
        ("[policy]\niterations = 2.5\n", r"policy\.iterations 2\.5: must be a whole number"),
        ("[policy]\nmarker = 1\n", r"policy\.marker 1: must be true or false"),
        ("[policy]\nlabelled = true\n", r"policy\.labelled True: must be a whole number"),
        ("policy = 3\n", r"policy 3: must be a table"),
        ("[policy\n", r"mine\.toml"),
    ],
)
def test_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        _read(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml"):
        read_recipe(tmp_path / "nowhere.toml")


def test_a_packaged_recipe_is_found_by_name_and_a_file_by_its_path(tmp_path: Path) -> None:
    assert recipe_path("wam").samefile(FOLDER / "wam.toml")
    assert recipe_path(str(tmp_path / "wam.toml")) == tmp_path / "wam.toml"
    with pytest.raises(UsageError, match="own_cpu"):
        read_recipe(recipe_path("no_such_recipe"))
