"""Intervals of success rates, against published figures and against what they promise."""

import numpy as np
import pytest

from dzedge.proportion import paired, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (45, 50, 0.7864, 0.9565), (0, 0, 0.0, 1.0)],
)
def test_wilson(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-4)


class TestPaired:
    @pytest.mark.parametrize(
        ("table", "low", "high"),
        [
            # Bentur et al. 2009, as worked out by Fagerland, Lydersen and Laake 2014 (square-and-add)
            ((1, 1, 7, 12), -0.507, -0.026),
            # Altman, Machin, Bryant and Gardner 2000, table 6.2
            ((14, 5, 0, 22), 0.011, 0.226),
        ],
    )
    def test_published_examples(self, table, low, high):
        assert paired(*table) == pytest.approx((low, high), abs=6e-4)

    def test_exchanging_the_two_turns_the_interval_round(self):
        low, high = paired(20, 9, 4, 17)
        assert paired(20, 4, 9, 17) == pytest.approx((-high, -low))

    def test_agreement_narrows_it(self):
        low, high = paired(45, 5, 5, 45)
        apart_low, apart_high = paired(25, 25, 25, 25)
        assert (high - low) < 0.7 * (apart_high - apart_low)

    @pytest.mark.parametrize("table", [(10, 0, 0, 0), (0, 10, 0, 0), (0, 0, 0, 10), (5, 0, 0, 5), (0, 5, 5, 0)])
    def test_ends_stay_in_range_and_hold_the_difference(self, table):
        low, high = paired(*table)
        difference = (table[1] - table[2]) / sum(table)
        assert -1.0 <= low <= difference <= high <= 1.0

    def test_nothing_played_says_nothing(self):
        assert paired(0, 0, 0, 0) == (-1.0, 1.0)

    def test_it_covers_the_truth_as_often_as_it_says(self):
        shares = np.array([0.6, 0.15, 0.08, 0.17])
        draws = np.random.default_rng(3).multinomial(120, shares, 2000)
        inside = [low <= shares[1] - shares[2] <= high for low, high in (paired(*map(int, row)) for row in draws)]
        assert 0.93 < np.mean(inside) < 0.975
