"""Checkpoints: what goes in comes out, and nothing foreign does."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dzedge.errors import UsageError
from dzedge.export import checkpoint


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.safetensors"
    state = {
        "step": 7, "rate": 1e-3, "name": "wam", "flag": True, "none": None,
        "model": {"text.table": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3, dtype=torch.int64)},
        "optimizer": {"state": {0: {"step": torch.tensor(4.0)}, 11: {"step": torch.tensor(5.0)}},
                      "param_groups": [{"betas": (0.9, 0.98), "params": [0, 11]}]},
        "momenta": [torch.ones(2), torch.zeros(0, 3)], "half": torch.ones(3, dtype=torch.bfloat16),
    }  # fmt: skip
    checkpoint.save(path, **state)
    found = checkpoint.load(path)
    assert list(found) == list(state)
    assert {k: found[k] for k in ("step", "rate", "name", "flag", "none")} == {
        "step": 7, "rate": 1e-3, "name": "wam", "flag": True, "none": None,
    }  # fmt: skip
    assert list(found["optimizer"]["state"]) == [0, 11], "numbers stay numbers"
    assert found["optimizer"]["param_groups"][0]["betas"] == [0.9, 0.98], "tuples become lists"
    for kept, was in (
        (found["model"]["text.table"], state["model"]["text.table"]),
        (found["model"]["count"], state["model"]["count"]),
        (found["optimizer"]["state"][11]["step"], torch.tensor(5.0)),
        (found["momenta"][0], torch.ones(2)),
        (found["momenta"][1], torch.zeros(0, 3)),
        (found["half"], state["half"]),
    ):
        assert kept.dtype == was.dtype
        assert torch.equal(kept, was)
    assert not list(path.parent.glob("*.half"))


def test_an_optimizer_goes_on_as_it_was(tmp_path: Path) -> None:
    def fresh() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.8, 0.9))

    def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        model(torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = fresh()
    train(model, optimizer, 1)
    checkpoint.save(tmp_path / "a.safetensors", model=model.state_dict(), optimizer=optimizer.state_dict())
    train(model, optimizer, 2)
    other, again = fresh()
    state = checkpoint.load(tmp_path / "a.safetensors")
    other.load_state_dict(state["model"])
    again.load_state_dict(state["optimizer"])
    train(other, again, 2)
    assert torch.equal(other.weight, model.weight)


def test_tensors_that_share_memory_are_kept_apart(tmp_path: Path) -> None:
    whole = torch.arange(4.0)
    checkpoint.save(tmp_path / "a.safetensors", one=whole, part=whole[1:], turned=whole.reshape(2, 2).T)
    found = checkpoint.load(tmp_path / "a.safetensors")
    assert torch.equal(found["part"], whole[1:])
    assert torch.equal(found["turned"], whole.reshape(2, 2).T)


def test_two_places_of_one_name_are_refused(tmp_path: Path) -> None:
    """`a.b` and `a` -> `b` would be one entry of the file, and one of them lost."""
    with pytest.raises(UsageError, match=r"a\.b"):
        checkpoint.save(tmp_path / "a.safetensors", **{"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}})


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 some archive", b"\x10\x00\x00\x00\x00\x00\x00\x00not json, no"])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"model\.pt: not a checkpoint of dzedge"):
        checkpoint.load(path)


def test_safetensors_of_others_are_refused(tmp_path: Path) -> None:
    for metadata in (None, {"format": "pt"}, {"outline": "{"}):
        path = tmp_path / "other.safetensors"
        save_file({"weight": torch.zeros(2)}, path, metadata=metadata)
        with pytest.raises(UsageError, match="not a checkpoint"):
            checkpoint.load(path)


def test_a_missing_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.safetensors"):
        checkpoint.load(tmp_path / "nowhere.safetensors")


def test_a_cut_off_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, model={"w": torch.arange(1000.0)})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UsageError, match="not a checkpoint"):
        checkpoint.load(path)


def test_a_failed_save_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, step=1)
    with pytest.raises(TypeError):
        checkpoint.save(path, step=object())
    assert checkpoint.load(path) == {"step": 1}


def test_chance_hangs_on_every_number() -> None:
    def drawn(*parts: int) -> int:
        return int(torch.randint(1 << 40, (1,), generator=checkpoint.torch_seed(*parts)))

    assert drawn(0, 5, 1) == drawn(0, 5, 1)
    assert len({drawn(0, 5, 1), drawn(1, 5, 1), drawn(0, 6, 1), drawn(0, 5, 0), drawn(5, 0, 1)}) == 5
