"""Adapters merged, against an explicit computation; files that are not whole."""

import pytest
import torch
from torch import Tensor

from dzedge.errors import UsageError
from dzedge.export.lora import Merged, check, split

ALPHA = 6.0


class Held:
    """Tensors in memory."""

    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = {name.replace("__", "."): tensor for name, tensor in tensors.items()}

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def read(self, name: str) -> Tensor:
        return self.tensors[name]


def integers(*shape: int, seed: int) -> Tensor:
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).float()


WEIGHTS = Held(q__weight=integers(3, 5, seed=0).half(), q__bias=integers(3, seed=1), k__weight=integers(4, 5, seed=2))
PARTS = Held(low=integers(2, 5, seed=3), high=integers(3, 2, seed=4))
PAIRS = {"q.weight": ("low", "high")}


class TestMerge:
    def test_by_hand(self) -> None:
        """W + B A alpha / r, entry by entry."""
        found = Merged(WEIGHTS, PARTS, PAIRS, ALPHA).read("q.weight")
        weight, low, high = WEIGHTS.read("q.weight"), PARTS.read("low"), PARTS.read("high")
        for row in range(3):
            for column in range(5):
                added = sum(float(high[row, i] * low[i, column]) for i in range(2)) * ALPHA / 2
                assert float(found[row, column]) == float(weight[row, column]) + added

    def test_sum_is_not_rounded_to_the_weights_type(self) -> None:
        small = Held(low=torch.full((1, 5), 1e-4), high=torch.ones(3, 1))
        found = Merged(WEIGHTS, small, PAIRS, 1.0).read("q.weight")
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, WEIGHTS.read("q.weight").float() + 1e-4, rtol=0.0, atol=1e-7)

    def test_others_pass_through(self) -> None:
        merged = Merged(WEIGHTS, PARTS, PAIRS, ALPHA)
        assert list(merged.names()) == WEIGHTS.names() and merged.shape("k.weight") == (4, 5)
        assert torch.equal(merged.read("k.weight"), WEIGHTS.read("k.weight"))

    def test_alpha_counts(self) -> None:
        one, two = (Merged(WEIGHTS, PARTS, PAIRS, alpha).read("q.weight") for alpha in (2.0, 4.0))
        torch.testing.assert_close(two - one, one - WEIGHTS.read("q.weight").float())
        assert not torch.equal(one, two)


class TestSplit:
    def test_pairs(self) -> None:
        names = ["a.weight", "a.lora_A.default.weight", "a.lora_B.default.weight", "b.lora_A.weight", "b.lora_B.weight"]
        plain, pairs = split(names)
        assert plain == ["a.weight"]
        assert pairs == {"a.weight": (names[1], names[2]), "b.weight": (names[3], names[4])}

    def test_half_a_pair(self) -> None:
        with pytest.raises(UsageError, match=r"a\.weight: A without B"):
            split(["a.lora_A.weight"])


class TestCheck:
    def test_adapter_without_a_weight(self) -> None:
        with pytest.raises(UsageError, match=r"v\.weight.*base model"):
            check(WEIGHTS, PARTS, {"v.weight": ("low", "high")}, 2)

    @pytest.mark.parametrize(("pairs", "rank"), [(PAIRS, 3), ({"k.weight": ("low", "high")}, 2)])
    def test_of_another_model(self, pairs: dict[str, tuple[str, str]], rank: int) -> None:
        check(WEIGHTS, PARTS, PAIRS, 2)
        with pytest.raises(UsageError, match="of another model"):
            check(WEIGHTS, PARTS, pairs, rank)
