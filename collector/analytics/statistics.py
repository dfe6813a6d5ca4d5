"""The statistics that analyses share: tests with their p-values, robust scales, slopes. Only numpy is needed.

Whoever looks at many things finds something by chance; `adjusted` (Benjamini-Hochberg) holds the share of false findings, and
`within_family` (Bonferroni) their probability at all.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Q = 0.01
"""Findings are given where less than this is to be expected by chance."""
Z95 = 1.959963984540054
LARGE = 10_000.0


def normal_sf(z: float) -> float:
    """P(Z > z)."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def normal_sfs(z: Numbers) -> Numbers:
    """P(Z > z) of each; 1 where z is below 2, which no finding comes from."""
    out = np.ones(len(z))
    for index in np.flatnonzero(z >= 2):  # noqa: PLR2004
        out[index] = normal_sf(float(z[index]))
    return out


def chi2_sf(x: float, freedom: float) -> float:
    """P(X > x) of chi-square."""
    return 1.0 if x <= 0 or freedom <= 0 else _gamma_tails(freedom / 2, x / 2)[1]


def poisson_sf(count: int, mean: float) -> float:
    """P(X >= count) where `mean` is expected; as exact far below 1e-16 as above."""
    if count <= 0:
        return 1.0
    return _gamma_tails(count, mean)[0] if mean > 0 else 0.0


def _gamma_tails(a: float, x: float) -> tuple[float, float]:
    """The regularised lower and upper incomplete gamma function. The smaller of the two is computed, and is never 1 less the other."""
    if x <= 0:
        return 0.0, 1.0
    if a > LARGE:
        return _gamma_tails_large(a, x)
    scale = math.exp(-x + a * math.log(x) - math.lgamma(a))
    if x >= a + 1:
        upper = min(1.0, scale * _fraction(a, x))
        return 1 - upper, upper
    term = total = 1 / a
    for n in range(1, 100_000):
        term *= x / (a + n)
        total += term
        if term < total * 1e-16:
            break
    lower = min(1.0, total * scale)
    return lower, 1 - lower


def _gamma_tails_large(a: float, x: float) -> tuple[float, float]:
    """The same by Temme's uniform expansion: near the middle, series take as many terms as the root of `a` is large."""
    excess = (x - a) / a
    distance = excess - (math.log1p(excess) if excess > -0.5 else math.log(x) - math.log(a))  # noqa: PLR2004
    eta = math.copysign(math.sqrt(2 * distance), excess)
    if abs(eta) < 0.01:  # noqa: PLR2004 - what follows would be a difference of nearly equal numbers
        first = -1 / 3 + eta / 12 - 2 * eta**2 / 135 + eta**3 / 864
        second = -1 / 540 - eta / 288
    else:
        first = 1 / excess - 1 / eta
        second = 1 / eta**3 - 1 / excess**3 - 1 / excess**2 - 1 / (12 * excess)
    rest = math.exp(-a * distance) / math.sqrt(2 * math.pi * a) * (first + second / a)
    near = math.erfc(abs(eta) * math.sqrt(a / 2)) / 2
    if eta >= 0:
        upper = near + rest
        return 1 - upper, upper
    lower = near - rest
    return lower, 1 - lower


def _fraction(a: float, x: float) -> float:
    """Lentz's way through the continued fraction of the upper incomplete gamma function."""
    tiny = 1e-300
    b = x + 1 - a
    c, d = 1 / tiny, 1 / b
    h = d
    for n in range(1, 100_000):
        step = -n * (n - a)
        b += 2
        d = step * d + b or tiny
        c = b + step / c or tiny
        d = 1 / d
        h *= d * c
        if abs(d * c - 1) < 1e-15:  # noqa: PLR2004
            break
    return h


def adjusted(p: "list[float]") -> list[float]:
    """p-values for the share of false findings (Benjamini-Hochberg)."""
    if not p:
        return []
    values = np.array(p)
    order = np.argsort(values)[::-1]
    ranks = np.arange(len(p), 0, -1)
    out = np.empty(len(p))
    out[order] = np.minimum(1.0, np.minimum.accumulate(values[order] * len(p) / ranks))
    return [float(value) for value in out]


def within_family(p: float, tests: int) -> float:
    """A p-value for one of many tests (Bonferroni)."""
    return min(1.0, p * max(1, tests))


def stable(counts: Numbers) -> Numbers:
    """Counts made nearly normal with a spread of 1, were they of Poisson (Anscombe)."""
    return np.asarray(2 * np.sqrt(np.maximum(counts, 0) + 0.375))


def robust_scale(values: Numbers, *, least: float = 1.0) -> float:
    """The spread of values, whatever a few of them do; never below `least`."""
    if values.size == 0:
        return least
    return max(least, 1.482602218505602 * float(np.median(np.abs(values - np.median(values)))))


class Slope(NamedTuple):
    """A line through values: by how much a step, within what 95 % of, how likely by chance, and where it is at step 0."""

    slope: float
    low: float
    high: float
    p: float
    start: float


def slope(y: Numbers) -> Slope:
    """Theil-Sen's slope with its interval, and the test of Mann and Kendall, corrected for ties and for neighbours that are alike."""
    n = len(y)
    i, j = np.triu_indices(n, 1)
    steps = (y[j] - y[i]) / (j - i)
    middle = float(np.median(steps))
    s = float(np.sign(y[j] - y[i]).sum())
    _, ties = np.unique(y, return_counts=True)
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    variance *= _inflation(y - middle * np.arange(n))
    if variance <= 0:
        return Slope(middle, middle, middle, 1.0, float(np.median(y)))
    z = max(0.0, abs(s) - 1) / math.sqrt(variance)
    reach = Z95 * math.sqrt(variance)
    ends = max(0, round((len(steps) - reach) / 2) - 1), min(len(steps) - 1, round((len(steps) + reach) / 2))
    # Two of eighty thousand are wanted: to sort them all would take five times as long.
    low, high = np.partition(steps, ends)[list(ends)]
    start = float(np.median(y - middle * np.arange(n)))
    return Slope(middle, float(low), float(high), 2 * normal_sf(z), start)


def _inflation(rest: Numbers) -> float:
    """How much less neighbours say that resemble each other: Hamed and Rao's factor, of the ranks, where it is significant."""
    n = len(rest)
    if n < 10:  # noqa: PLR2004 - too few to tell
        return 1.0
    ranks = np.argsort(np.argsort(rest)).astype(float)
    ranks -= ranks.mean()
    power = float(ranks @ ranks)
    if power == 0:
        return 1.0
    total = 0.0
    for lag in range(1, min(n - 3, 30)):
        r = float(ranks[:-lag] @ ranks[lag:]) / power
        if abs(r) > Z95 / math.sqrt(n):
            total += (n - lag) * (n - lag - 1) * (n - lag - 2) * r
    return max(1.0, 1 + 2 * total / (n * (n - 1) * (n - 2)))


class Period(NamedTuple):
    """A rhythm: how many steps long, what share of the variation it is, how likely by chance."""

    steps: float
    share: float
    p: float


def period(counts: Numbers) -> Period | None:
    """The strongest rhythm of a series, by Fisher's exact test on its periodogram; None where there is no variation."""
    y = stable(counts)
    n = len(y)
    x = np.arange(n)
    y = y - np.polyval(np.polyfit(x, y, 1), x)
    power = np.abs(np.fft.rfft(y))[1 : (n - 1) // 2 + 1] ** 2
    # A rhythm is seen three times at least; slower ones are trends.
    if power.sum() <= 1e-9 * n or len(power) < 8:  # noqa: PLR2004
        return None
    whole, many = float(power.sum()), len(power)
    power[:2] = 0
    peak = int(np.argmax(power))
    g = float(power[peak]) / whole
    return Period(n / (peak + 1), g, min(1.0, many * (1 - g) ** (many - 1)))


class Table(NamedTuple):
    """What a table of counts says: strength 0 to 1, how likely by chance, and how far each cell is from what independence would give."""

    v: float
    chi2: float
    p: float
    z: Numbers
    expected: Numbers


def table(counts: Numbers) -> Table:
    """Cramér's V without its bias (Bergsma), the chi-square test, and adjusted residuals."""
    n = counts.sum()
    rows, columns = counts.sum(1, keepdims=True), counts.sum(0, keepdims=True)
    expected = rows @ columns / n
    with np.errstate(divide="ignore", invalid="ignore"):
        chi2 = float(np.nansum((counts - expected) ** 2 / expected))
        z = (counts - expected) / np.sqrt(expected * (1 - rows / n) * (1 - columns / n))
    r, k = counts.shape
    freedom = (r - 1) * (k - 1)
    phi2 = max(0.0, chi2 / n - freedom / (n - 1))
    small = min(r - (r - 1) ** 2 / (n - 1), k - (k - 1) ** 2 / (n - 1)) - 1
    v = math.sqrt(min(1.0, phi2 / small)) if small > 0 else 0.0
    return Table(v, chi2, chi2_sf(chi2, freedom), np.nan_to_num(z), expected)


def wilson(k: int, n: int) -> tuple[float, float]:
    """A share of k in n: within these lies it, 95 %."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = k / n, Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def fisher_z(r: float, n: float) -> float:
    """How likely a correlation of n pairs is by chance."""
    if n <= 3:  # noqa: PLR2004
        return 1.0
    return 2 * normal_sf(abs(math.atanh(max(-0.999999, min(0.999999, r)))) * math.sqrt(n - 3))


def shown(value: float, digits: int = 4) -> float:
    """A number with as many digits as mean something."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else 0.0
