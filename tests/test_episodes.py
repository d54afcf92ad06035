"""Episodes: joined and taken, each step still knows where its episode begins and ends; read from a dataset once."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dzedge.errors import UsageError
from dzedge.export import data, episodes
from dzedge.export.dataset import Dataset, Writer
from dzedge.export.episodes import LABELLED, PLAY, VIDEO, Episodes
from dzedge.export.fit_tokenizer import Tokenizer
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.text import words_of

TOY = Sizes(width=32, layers=1, heads=2, encoder_width=4, decoder_width=4)


@pytest.fixture
def made(made_episodes: Callable[..., Episodes]) -> Episodes:
    return made_episodes(TOY)


@pytest.fixture(scope="module")
def folder(made_folder: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_folder(tmp_path_factory.mktemp("data"))


def _tokenizer() -> Tokenizer:
    torch.manual_seed(1)
    return Tokenizer(TOY).eval()


def _whole(found: Episodes) -> None:
    """Start and end of every step frame its own episode: nothing overlaps, nothing is missing."""
    steps = np.arange(len(found.start))
    assert ((found.start <= steps) & (steps < found.end)).all()
    first = steps == found.start
    np.testing.assert_array_equal(found.end[first][:-1], found.start[first][1:])
    assert found.end[-1] == len(steps)
    for step in steps:
        rows = slice(found.start[step], found.end[step])
        assert (found.start[rows] == found.start[step]).all()
        assert (found.latents[rows, -1, -1] == found.latents[step, -1, -1]).all(), "of one episode"


class TestJoined:
    def test_starts_and_ends_move_along(self, made: Episodes, made_episodes: Callable[..., Episodes]) -> None:
        other = made_episodes(TOY, count=3, length=11)
        found = Episodes.joined([made, other, other])
        _whole(found)
        assert len(found.start) == len(made.start) + 66
        np.testing.assert_array_equal(found.joints, np.concatenate([made.joints, other.joints, other.joints]))
        np.testing.assert_array_equal(np.unique(found.end - found.start), [11, 24])

    def test_one_alone_is_itself(self, made: Episodes) -> None:
        found = Episodes.joined([made])
        for field in fields(Episodes):
            np.testing.assert_array_equal(getattr(found, field.name), getattr(made, field.name))


class TestTaken:
    def test_keeps_whole_episodes(self, made: Episodes) -> None:
        number = made.latents[:, -1, -1].astype(int)
        kept = np.isin(number, (1, 2, 7, 11))
        found = made.taken(kept)
        _whole(found)
        assert sorted(set(found.latents[:, -1, -1])) == [1, 2, 7, 11]
        np.testing.assert_array_equal(found.commands, made.commands[kept])

    def test_of_different_lengths(self, made: Episodes, made_episodes: Callable[..., Episodes]) -> None:
        mixed = Episodes.joined([made, made_episodes(TOY, count=3, length=11)])
        found = mixed.taken((mixed.end - mixed.start == 11) | (mixed.start == 24))
        _whole(found)
        np.testing.assert_array_equal((found.end - found.start)[[0, 24, 35]], [24, 11, 11])

    def test_all_is_all_and_none_is_none(self, made: Episodes) -> None:
        everything = made.taken(np.ones(len(made.start), bool))
        np.testing.assert_array_equal(everything.start, made.start)
        np.testing.assert_array_equal(everything.end, made.end)
        assert len(made.taken(np.zeros(len(made.start), bool)).start) == 0


class TestRead:
    def test_columns(self, folder: Path) -> None:
        found = episodes.read(folder / "robot-000", _tokenizer().encoder, TOY)
        source = Dataset(folder / "robot-000")
        np.testing.assert_array_equal(found.joints, source.column("observation.state"))
        np.testing.assert_array_equal(found.commands, source.column("action"))
        assert [int(k) for k in found.kind[source.offsets[:-1]]] == [LABELLED, PLAY, VIDEO] * 2
        assert found.words[0].tolist() == words_of("reach the red cube", TOY.words)
        assert found.colour[source.offsets[:-1]].tolist() == [0, -1, 2] * 2
        assert not found.body.any()
        np.testing.assert_array_equal(found.end - found.start, 24)

    def test_latents_are_the_encoders(self, folder: Path) -> None:
        encoder = _tokenizer().encoder
        found = episodes.read(folder / "robot-000", encoder, TOY)
        frames = Dataset(folder / "robot-000").frames(data.CAMERA, 1)
        image = torch.from_numpy(data.shrink(frames[5])).permute(2, 0, 1)[None].float() / 127.5 - 1.0
        with torch.no_grad():
            np.testing.assert_allclose(found.latents[24 + 5], encoder(image)[0].numpy(), atol=1e-5)

    def test_the_hand_is_another_body(self, folder: Path) -> None:
        found = episodes.read(folder / "marker-000", _tokenizer().encoder, TOY)
        assert (found.body == 1).all()
        assert (found.kind == VIDEO).all()

    def test_a_dataset_of_others_acts_throughout(self, tmp_path: Path) -> None:
        """Only our own datasets say what acts and what was disturbed."""
        common = {name: row for name, row in data.features().items()
                  if name in ("observation.state", "action", data.CAMERA)}  # fmt: skip
        rng = np.random.default_rng(0)
        with Writer(tmp_path / "own", common, data.FPS, "so101", (120, 160)) as writer:
            columns = {name: rng.normal(size=(15, 6)).astype(np.float32) for name in ("observation.state", "action")}
            writer.add(columns, {data.CAMERA: np.zeros((15, 120, 160, 3), np.uint8)}, "press the blue cube")
        found = episodes.read(tmp_path / "own", _tokenizer().encoder, TOY)
        assert (found.kind == LABELLED).all()
        assert not found.disturbed.any()
        assert not found.body.any()

    def test_another_robot_is_refused(self, folder: Path) -> None:
        with pytest.raises(UsageError, match=r"6 joints in observation\.state, the model has 7"):
            episodes.read(folder / "robot-000", _tokenizer().encoder, replace(TOY, joints=7))


class TestCached:
    def test_encodes_once(self, folder: Path, tmp_path: Path) -> None:
        said: list[str] = []
        encoder, path = _tokenizer().encoder, tmp_path / "tokenizer.safetensors"
        path.write_bytes(b"one")
        first = episodes.cached(folder / "robot-001", path, encoder, TOY, said.append)
        again = episodes.cached(folder / "robot-001", path, encoder, TOY, said.append)
        assert len(said) == 1
        for field in fields(Episodes):
            np.testing.assert_array_equal(getattr(first, field.name), getattr(again, field.name))
        path.write_bytes(b"two")
        episodes.cached(folder / "robot-001", path, encoder, TOY, said.append)
        assert len(said) == 2, "another tokenizer has other latents"

    def test_an_interruption_leaves_no_part_of_one(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoder, path = _tokenizer().encoder, tmp_path / "tokenizer.safetensors"
        path.write_bytes(b"one")

        def torn(file: Path, **arrays: np.ndarray) -> None:
            Path(file).write_bytes(b"PK")
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(np, "savez", torn)
            episodes.cached(folder / "robot-001", path, encoder, TOY, lambda line: None)
        assert len(episodes.cached(folder / "robot-001", path, encoder, TOY, lambda line: None).start) == 72
