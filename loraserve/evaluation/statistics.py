"""How sure a difference of paired scores is, and how many rows would make it so. All of it needs the standard library only.

A test is one-sided at an error rate: its interval has that much outside at each end (5%: the 90% interval).
"""

import math
import random
from collections.abc import Callable, Sequence
from statistics import NormalDist, fmean

POWER = 0.8
RESAMPLES = 2000
USUAL_DISCORDANT = (0.05, 0.10)
"""On this share of rows two versions are usually not equally right; what is planned with before there are enough rows."""
USUAL_DEVIATION = 0.3
"""Likewise, the standard deviation of a graded score's difference."""


def quantile(error_rate: float) -> float:
    """Of the standard normal distribution: 1.645 for 5%."""
    return NormalDist().inv_cdf(1 - error_rate)


def tango_interval(wins: float, losses: float, rows: float, error_rate: float) -> tuple[float, float]:
    """Tango's score interval of a difference of paired proportions (Statistics in Medicine 17:891, 1998).

    `wins`: rows on which only the candidate is right; `losses`: only the other. Its width is never 0.
    """
    z = quantile(error_rate)

    def statistic(difference: float) -> float:
        b = (2 * rows - wins + losses) * difference - wins - losses
        c = -losses * difference * (1 - difference)
        only_other = (math.sqrt(max(b * b - 8 * rows * c, 0)) - b) / (4 * rows)
        variance = rows * (2 * only_other + difference * (1 - difference))
        if variance <= 0:  # no row differs, and the difference is 0
            return 0.0
        return (wins - losses - rows * difference) / math.sqrt(variance)

    return _root(statistic, z), _root(statistic, -z)


def bootstrap_interval(
    clusters: Sequence[Sequence[float]], error_rate: float, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Percentile interval of the mean difference; whole clusters are drawn. Equal input gives the equal interval.

    It is at least as wide as Tango's is for as many rows without one that differs: rows that all differ by the same
    amount prove nothing of the next.
    """
    rows = sum(map(len, clusters))
    mean = math.fsum(map(math.fsum, clusters)) / rows
    drawn = random.Random(0)
    sums = [complex(math.fsum(cluster), len(cluster)) for cluster in clusters]  # the imaginary part counts the rows
    draws = (sum(drawn.choices(sums, k=len(sums))) for _ in range(resamples))
    means = sorted(draw.real / draw.imag for draw in draws)
    tail = int(error_rate * resamples)
    least = no_difference_bound(rows / design_effect(clusters), error_rate)
    return max(min(means[tail], mean - least), -1.0), min(max(means[-1 - tail], mean + least), 1.0)


def design_effect(clusters: Sequence[Sequence[float]]) -> float:
    """By how much rows of one document count for less than as many of their own (Rao and Scott 1992); at least 1.

    Where all rows differ by the same amount nothing shows it, and each cluster counts as one row.
    """
    rows, groups = sum(map(len, clusters)), len(clusters)
    mean = math.fsum(map(math.fsum, clusters)) / rows
    between = math.fsum(math.fsum(each - mean for each in cluster) ** 2 for cluster in clusters)
    within = math.fsum((each - mean) ** 2 for cluster in clusters for each in cluster)
    if groups == rows:
        return 1.0
    if groups == 1 or within == 0:
        return rows / groups
    return max(1.0, (between * groups / (groups - 1)) / (within * rows / (rows - 1)))


def no_difference_bound(rows: float, error_rate: float) -> float:
    """Where not one of so many rows differs, the difference may still be this large."""
    z_squared = quantile(error_rate) ** 2
    return z_squared / (rows + z_squared)


def smallest_rows(margin: float, error_rate: float) -> int:
    """With fewer rows than this nothing is shown, even if no row differs: 133 for 2 points at 5%."""
    return math.ceil(quantile(error_rate) ** 2 * (1 - margin) / margin)


def required_rows(variance: float, margin: float, error_rate: float, power: float = POWER) -> int:
    """Rows that show a candidate to be no worse by the margin, where in truth it is as good (Connor 1987).

    `variance` of a row's difference; of right and wrong it is the share of rows that differ.
    """
    needed = math.ceil((quantile(error_rate) + quantile(1 - power)) ** 2 * variance / margin**2)
    return max(needed, smallest_rows(margin, error_rate))


def detectable(rows: float, variance: float, error_rate: float, power: float = POWER) -> float:
    """The smallest true difference that so many rows show with that power."""
    return (quantile(error_rate) + quantile(1 - power)) * math.sqrt(variance / rows)


def least_share(part: float, whole: float, error_rate: float) -> float:
    """Lower end of Wilson's interval of a proportion."""
    z, share = quantile(error_rate), part / whole
    spread = z * math.sqrt(share * (1 - share) / whole + z * z / (4 * whole * whole))
    return (share + z * z / (2 * whole) - spread) / (1 + z * z / whole)


def cohens_kappa(pairs: Sequence[tuple[str, str]]) -> float:
    """Agreement of two raters beyond chance; 0 where chance alone explains all of it."""
    labels = {label for pair in pairs for label in pair}
    observed = fmean(one == other for one, other in pairs)
    shares = [[fmean(pair[side] == label for pair in pairs) for side in (0, 1)] for label in labels]
    chance = math.fsum(one * other for one, other in shares)
    return 0.0 if chance == 1 else (observed - chance) / (1 - chance)


def _root(falling: Callable[[float], float], target: float) -> float:
    low, high = -1.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > target else (low, middle)
    return (low + high) / 2
