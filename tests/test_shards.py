"""Weights read one at a time, and every way in which a folder of them can be wrong."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dzedge.errors import UsageError
from dzedge.export.shards import Renamed, Shards, pickles

A, B, C = torch.arange(6.0).reshape(2, 3), torch.ones(4, dtype=torch.bfloat16), torch.zeros(1, 2, 2)
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"a": A, "b": B}, tmp_path / FIRST)
    save_file({"c": C}, tmp_path / SECOND)
    index(tmp_path, a=FIRST, b=FIRST, c=SECOND)
    return tmp_path


def index(folder: Path, **where: str) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


class TestReading:
    def test_across_files(self, folder: Path) -> None:
        found = Shards.open(folder)
        assert sorted(found.names()) == ["a", "b", "c"]
        assert (found.shape("a"), found.shape("c")) == ((2, 3), (1, 2, 2))
        assert torch.equal(found.read("a"), A) and torch.equal(found.read("b"), B)
        assert found.read("b").dtype == torch.bfloat16
        assert [path.name for path in found.files()] == [FIRST, SECOND]

    @pytest.mark.parametrize("name", ["model", "diffusion_pytorch_model"])
    def test_one_file(self, tmp_path: Path, name: str) -> None:
        save_file({"a": A}, tmp_path / f"{name}.safetensors")
        assert Shards.open(tmp_path).names() == ("a",)

    def test_other_names(self, folder: Path) -> None:
        shards = Shards.open(folder)
        found = Renamed({"x": (shards, "a"), "y": (shards, "c")})
        assert found.names() == ("x", "y") and found.shape("y") == (1, 2, 2)
        assert torch.equal(found.read("x"), A)


class TestDamage:
    def test_no_weights(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"neither model\.safetensors nor its index"):
            Shards.open(tmp_path)

    def test_pickles_are_named_and_not_opened(self, tmp_path: Path) -> None:
        (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit'\ntR.")
        with pytest.raises(UsageError, match=r"pytorch_model\.bin: pickles"):
            Shards.open(tmp_path)
        assert pickles(tmp_path) == ["pytorch_model.bin"]

    def test_shard_missing(self, folder: Path) -> None:
        (folder / SECOND).unlink()
        with pytest.raises(UsageError, match=SECOND):
            Shards.open(folder)

    def test_shard_cut_off(self, folder: Path) -> None:
        whole = (folder / FIRST).read_bytes()
        (folder / FIRST).write_bytes(whole[:-1])
        with pytest.raises(UsageError, match=f"{FIRST}: not a safetensors file"):
            Shards.open(folder)

    @pytest.mark.parametrize("where", [{"c": FIRST}, {"d": SECOND}])
    def test_not_where_the_index_says(self, folder: Path, where: dict[str, str]) -> None:
        index(folder, **{"a": FIRST, "b": FIRST, "c": SECOND} | where)
        with pytest.raises(UsageError, match=f"{next(iter(where))}: not in the file"):
            Shards.open(folder)

    def test_twice(self, folder: Path) -> None:
        save_file({"c": C, "a": A}, folder / SECOND)
        with pytest.raises(UsageError, match="'a' lies in"):
            Shards.open(folder)

    @pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors"])
    def test_index_stays_in_its_folder(self, folder: Path, name: str) -> None:
        index(folder, a=name)
        with pytest.raises(UsageError, match="plain names"):
            Shards.open(folder)

    @pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', "{}"])
    def test_index_not_understood(self, folder: Path, text: str) -> None:
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(UsageError, match="no weight_map"):
            Shards.open(folder)
