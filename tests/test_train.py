"""`dzedge train` from a folder of datasets to a checkpoint: alone, after an interruption, and two processes at once."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dzedge.errors import UsageError
from dzedge.export import checkpoint, train
from dzedge.export.episodes import VIDEO, Episodes
from dzedge.export.fit_tokenizer import Tokenizer
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.wam import Wam

TOY = Sizes(width=32, layers=1, heads=2, encoder_width=4, decoder_width=4)
RECIPE = """
[sizes]
width = 32
layers = 1
heads = 2
encoder_width = 4
decoder_width = 4

[tokenizer]
iterations = 5

[policy]
iterations = 4
labelled = 4
play = 2
video = 4
save_every = 2
marker = true
"""
RANK = """
import os, sys
import torch
from dzedge.export import families, fit_wam, train

class Spy(fit_wam.WamLearner):
    model = None
    def build(self, sizes, moments):
        built = super().build(sizes, moments)
        Spy.model = Spy.model or built  # the one that learns; later ones are read from checkpoints
        return built

families.LEARNERS["wam"] = Spy
train.main(sys.argv[2:])
torch.save(Spy.model.state_dict(), f"{sys.argv[1]}/rank{os.environ['RANK']}.pt")
"""


@pytest.fixture
def folder(made_folder: Callable[[Path], Path], tmp_path: Path) -> Path:
    return made_folder(tmp_path / "data")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where a recipe lies, and a tokenizer whose training is over."""
    (tmp_path / "tiny.toml").write_text(RECIPE)
    torch.manual_seed(0)
    model = Tokenizer(TOY)
    checkpoint.save(
        tmp_path / "out" / train.TOKENIZER, recipe={"iterations": 5}, sizes=TOY.to_json(), step=5,
        model=model.state_dict(), average=model.state_dict(), optimizer={},
    )  # fmt: skip
    return tmp_path / "out"


def _arguments(out: Path, folder: Path) -> list[str]:
    return [str(out.parent / "tiny.toml"), "--data", str(folder), "--out", str(out)]


def test_alone(out: Path, folder: Path) -> None:
    train.main(_arguments(out, folder))
    state = checkpoint.load(out / "tiny-0.safetensors")
    assert state["step"] == 4
    lines = [json.loads(line) for line in (out / "tiny-0.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert (out / "tiny-0.png").read_bytes().startswith(b"\x89PNG")
    train.main([*_arguments(out, folder), "--seed", "3"])
    other = checkpoint.load(out / "tiny-3.safetensors")
    assert other["recipe"]["seed"] == 3
    assert not torch.equal(other["model"]["video.enter.weight"], state["model"]["video.enter.weight"])


@pytest.mark.slow
def test_two_processes_under_torchs_launcher(out: Path, folder: Path) -> None:
    script = out.parent / "rank.py"
    script.write_text(RANK)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(script), str(out.parent), *_arguments(out, folder)],
        capture_output=True, text=True, timeout=300, cwd=out.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(out.parent / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    state = checkpoint.load(out / "tiny-0.safetensors")
    for name, weight in one.items():
        assert torch.equal(weight, two[name]), name
        assert torch.equal(weight, state["model"][name]), name
    torch.manual_seed(0)
    fresh = Wam(TOY).state_dict()
    assert sum(not torch.equal(weight, fresh[name]) for name, weight in one.items()) > 0.9 * len(one), "it has learned"
    lines = [json.loads(line) for line in (out / "tiny-0.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4], "one process writes"
    for line in lines:
        assert all(np.isfinite(line[name]) for name in ("video", "action", "ground"))
    alone = out.parent / "alone"
    alone.mkdir()
    (alone / train.TOKENIZER).write_bytes((out / train.TOKENIZER).read_bytes())
    train.main([str(out.parent / "tiny.toml"), "--data", str(folder), "--out", str(alone)])
    single = checkpoint.load(alone / "tiny-0.safetensors")["model"]
    assert not torch.equal(single["video.enter.weight"], one["video.enter.weight"]), "the second one saw other rows"


class TestUnfinished:
    def test_an_interrupted_tokenizer_is(self, tmp_path: Path) -> None:
        path = tmp_path / train.TOKENIZER
        assert train.unfinished(path)
        checkpoint.save(path, step=250, recipe={"iterations": 7000})
        assert train.unfinished(path)
        checkpoint.save(path, step=7000, recipe={"iterations": 7000})
        assert not train.unfinished(path)

    def test_and_goes_on_before_the_policy(self, out: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        state = checkpoint.load(out / train.TOKENIZER)
        checkpoint.save(out / train.TOKENIZER, **{**state, "step": 3})
        order: list[str] = []
        monkeypatch.setattr(train, "train_tokenizer", lambda *a: order.append("tokenizer"))
        monkeypatch.setattr(train, "train_policy", lambda *a: order.append("policy"))
        train.main(_arguments(out, folder))
        assert order == ["tokenizer", "policy"]


class TestParts:
    def test_the_last_of_our_robot_is_held_out(self, folder: Path) -> None:
        found = train.parts(folder, marker=True)
        assert [path.name for path in found] == ["marker-000", "robot-000", "robot-001"]
        assert [path.name for path in train.parts(folder, marker=False)] == ["robot-000", "robot-001"]

    def test_one_dataset_alone(self, folder: Path) -> None:
        assert set(train.parts(folder / "robot-000", marker=False)) == {folder / "robot-000"}

    def test_too_few(self, folder: Path, tmp_path: Path) -> None:
        for path in (tmp_path / "nowhere", folder / "robot-000" / "meta"):
            with pytest.raises(UsageError, match="0 datasets, at least 2 needed"):
                train.parts(path, marker=True)


class TestShareOfVideos:
    @pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 1.0])
    def test_keeps_that_share_and_everything_else(
        self, share: float, made_episodes: Callable[..., Episodes]
    ) -> None:
        whole = made_episodes(TOY, count=80, length=10)
        found = train.share_of_videos(whole, share)
        ours = (whole.kind == VIDEO) & (whole.body == 0)
        kept = (found.kind == VIDEO) & (found.body == 0)
        assert kept.sum() == round(share * 20) * 10
        assert (~kept).sum() == (~ours).sum(), "labels, play and the hand stay"
        assert ((found.end - found.start) == 10).all()
        numbers = found.latents[found.start, -1, -1][kept][::10]
        if share == 0.5:
            assert np.ptp(np.diff(numbers)) == 0, "evenly spread"
        whole_numbers = whole.latents[:, -1, -1]
        np.testing.assert_array_equal(found.joints, whole.joints[np.isin(whole_numbers, found.latents[:, -1, -1])])

    def test_more_is_a_superset(self, made_episodes: Callable[..., Episodes]) -> None:
        whole = made_episodes(TOY, count=80, length=10)
        few, more = (set(train.share_of_videos(whole, share).latents[:, -1, -1]) for share in (0.5, 1.0))
        assert few < more
