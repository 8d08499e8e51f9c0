"""Numbers of several seeds, and what they say together."""

from collections.abc import Iterable, Sequence

import numpy as np
import scipy.stats


def numbers(values: Iterable[float | None], absent: float = np.inf) -> np.ndarray:
    """Return recorded numbers as an array; None, which stands for what is not finite, becomes ``absent``.

    Examples:
      >>> numbers([1.0, None]), numbers([None], np.nan)
      (array([ 1., inf]), array([nan]))
    """
    return np.array([absent if value is None else value for value in values], np.float64)


def standard_error(values: np.ndarray) -> float:
    """Return the standard error of the mean; not a number for one value, or where one is not finite."""
    if len(values) < 2 or not np.all(np.isfinite(values)):
        return np.nan
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def half_interval(values: np.ndarray) -> float:
    """Return how far the 95% interval of the mean reaches to either side, by Student's t.

    Five values reach 2.78 standard errors and a hundred 1.98; not a number where the standard error is none.

    Examples:
      >>> round(half_interval(np.arange(5.0)) / standard_error(np.arange(5.0)), 2)
      2.78
    """
    error = standard_error(values)
    return float(scipy.stats.t.ppf(0.975, len(values) - 1) * error) if np.isfinite(error) else np.nan


def geometric_mean(ratios: Iterable[float]) -> float:
    """Return the geometric mean, infinite if one of them is.

    Examples:
      >>> round(geometric_mean([0.5, 2.0, 1.0]), 12)
      1.0
    """
    return float(np.exp(np.mean(np.log(list(ratios)))))


def quartiles(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper one; between a number and infinity is infinity.

    Examples:
      >>> quartiles([110.0, 100.0, 120.0]), quartiles([1.0, np.inf, np.inf])
      ((105.0, 110.0, 115.0), (inf, inf, inf))
    """
    ordered = np.sort(values)
    low, middle, high = (_quantile(ordered, share) for share in (0.25, 0.5, 0.75))
    return low, middle, high


def _quantile(ordered: np.ndarray, share: float) -> float:
    """Interpolate between order statistics without making infinity times 0."""
    place = share * (len(ordered) - 1)
    low, weight = int(place), place - int(place)
    return float(ordered[low] if weight == 0 else (1 - weight) * ordered[low] + weight * ordered[low + 1])


def expected_best(scores: np.ndarray, k: int) -> float:
    r"""Return the mean, over all choices of ``k`` of ``n`` trials, of the least score among them.

    With scores in rising order the i-th, from 0, is the least of a choice with probability
    :math:`\binom{n-1-i}{k-1} / \binom{n}{k}`.

    Examples:
      >>> float(expected_best(np.array([3.0, 1.0, 2.0]), 2))  # 1, 1 or 2
      1.3333333333333333
    """
    ordered = np.sort(scores)
    n = len(ordered)
    weights = np.zeros(n)
    weights[0] = k / n
    for i in range(1, n - k + 1):
        weights[i] = weights[i - 1] * (n - k - i + 1) / (n - i)
    return float(weights @ ordered)
