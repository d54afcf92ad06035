"""Shares of successes, and how well a finite number of episodes knows them."""

import math

Z95 = 1.959963984540054
"""Standard normal quantile of a two-sided interval of 95 %."""


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Bounds of the 95 % interval of a success rate (Wilson 1927: right near 0 and 1 and for small n)."""
    if n == 0:
        return 0.0, 1.0
    rate, z2 = successes / n, Z95 * Z95
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    # At the ends the formula gives 0 and 1 but for rounding.
    return (centre - half if successes else 0.0), (centre + half if successes < n else 1.0)


def paired(both: int, first: int, second: int, neither: int) -> tuple[float, float]:
    """Bounds of the 95 % interval of the difference, first rate minus second rate, over the same cases.

    both, first, second, neither: cases in which both succeeded, only the first, only the second, none. Newcombe 1998,
    Statistics in Medicine 17, 2635-2650, method 10: the two Wilson intervals, squared and added, less what the pairing
    correlates, phi with a continuity correction.
    """
    n = both + first + second + neither
    if n == 0:
        return -1.0, 1.0
    one, two = (both + first) / n, (both + second) / n
    (low1, high1), (low2, high2) = wilson(both + first, n), wilson(both + second, n)
    phi = _correlation(both, first, second, neither)
    return (
        one - two - _joined(one - low1, high2 - two, phi),
        one - two + _joined(high1 - one, two - low2, phi),
    )


def _correlation(both: int, first: int, second: int, neither: int) -> float:
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    if margins == 0:
        return 0.0
    excess = float(both * neither - first * second)
    if excess > 0:
        excess = max(excess - (both + first + second + neither) / 2, 0.0)
    return excess / math.sqrt(margins)


def _joined(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))
