"""The published quantile normalisation, edge cases included."""

import numpy as np
import pytest

from dzedge.errors import UsageError
from dzedge.export.q99 import Range

NAMES = ("shoulder", "elbow", "gripper")
RANGE = Range.of(NAMES, [-1.0, 0.5, 2.0], [3.0, 1.5, 2.0], width=5)


class TestForward:
    def test_by_hand(self) -> None:
        found = RANGE.normalise(np.array([[0.0, 1.0, 0.3], [3.0, 0.5, -0.2]]))
        np.testing.assert_allclose(found, [[-0.5, 0.0, 0.3, 0.0, 0.0], [1.0, -1.0, -0.2, 0.0, 0.0]])

    def test_clamped(self) -> None:
        """Beyond the quantiles, and a constant value beyond one: both end at the edge."""
        found = RANGE.normalise(np.array([-9.0, 9.0, 2.0]))
        np.testing.assert_array_equal(found, [-1.0, 1.0, 1.0, 0.0, 0.0])


class TestInverse:
    def test_undoes_what_was_not_clamped(self) -> None:
        values = np.array([[0.3, 0.7], [2.9, 1.4]])
        both = Range.of(NAMES[:2], [-1.0, 0.5], [3.0, 1.5], width=4)
        np.testing.assert_allclose(both.restore(both.normalise(values)), values, rtol=1e-12)

    def test_is_not_clamped(self) -> None:
        np.testing.assert_allclose(RANGE.restore(np.array([2.0, 0.0, 0.0, 7.0, 7.0])), [5.0, 1.0, 2.0])

    def test_a_constant_is_lost(self) -> None:
        """It enters as it is and leaves as the constant, whatever it was: said by name."""
        found = RANGE.restore(RANGE.normalise(np.array([0.0, 1.0, 0.3])))
        assert found[2] == 2.0
        assert RANGE.constant == ("gripper",)


class TestRounding:
    def test_quantiles_are_compared_in_float32(self) -> None:
        """A spread that float32 cannot see is none."""
        thin = Range.of(["x"], [1.0], [1.0 + 1e-9], width=1)
        assert thin.constant == ("x",)
        assert Range.of(["x"], [1.0], [1.0 + 1e-6], width=1).constant == ()

    def test_quantiles_are_those_of_float32(self) -> None:
        found = Range.of(["x"], [0.1], [0.7], width=1).restore(np.array([-1.0]))
        assert found[0] == float(np.float32(0.1)) != 0.1


@pytest.mark.parametrize(
    ("low", "high", "width", "named"),
    [
        ([0.0], [1.0], 5, "3 values"), ([0.0] * 3, [1.0] * 3, 2, r"3 values, allowed 1\.\.2"),
        ([0.0, 2.0, 0.0], [1.0] * 3, 5, "elbow: q01 2, q99 1"), ([0.0, 0.0, np.nan], [1.0] * 3, 5, "gripper"),
    ],
)  # fmt: skip
def test_impossible_quantiles_are_named(low: list[float], high: list[float], width: int, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Range.of(NAMES, low, high, width)


def test_wrong_width_is_named() -> None:
    with pytest.raises(UsageError, match=r"expected \(\.\.\., 3\)"):
        RANGE.normalise(np.zeros((2, 5)))
    with pytest.raises(UsageError, match=r"expected \(\.\.\., 5\)"):
        RANGE.restore(np.zeros((2, 3)))
