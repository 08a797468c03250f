"""Figures of the gate against published and independently computed ones."""

from __future__ import annotations

import random
from itertools import chain
from statistics import fmean

import pytest

from loraserve.contract.evaluation import Comparison, Result
from loraserve.evaluation.gate import Test
from loraserve.evaluation.statistics import (
    bootstrap_interval,
    cohens_kappa,
    design_effect,
    detectable,
    least_share,
    no_difference_bound,
    required_rows,
    smallest_rows,
    tango_interval,
)

MARGIN, ERROR_RATE = 0.02, 0.05
DATA = "sha256:" + "d" * 64


def compare(candidate: list[float], other: list[float], clusters: list[str] | None = None) -> Comparison:
    clusters = clusters or [str(number) for number in range(len(candidate))]
    return Test(MARGIN, ERROR_RATE).compare(candidate, other, clusters, DATA, None)


def right(first: int, count: int, of: int) -> list[float]:
    """`count` right answers from the row `first` on."""
    return [float(first <= number < first + count) for number in range(of)]


@pytest.mark.parametrize(
    ("wins", "losses", "rows", "interval"),
    [
        (150, 86, 1600, (0.0214, 0.0590)),  # Agresti's ratings of a prime minister
        (1, 7, 21, (-0.517, -0.026)),  # Bentur 2009, in Fagerland 2013
        (0, 0, 15, (-0.204, 0.204)),
    ],
)
def test_tangos_interval_is_the_published_one(wins: int, losses: int, rows: int, interval: tuple[float, float]) -> None:
    assert tango_interval(wins, losses, rows, 0.025) == pytest.approx(interval, abs=5e-4)


@pytest.mark.parametrize(
    ("discordant", "power", "rows"),
    [
        (0.02, 0.8, 310),
        (0.05, 0.8, 773),
        (0.10, 0.8, 1546),
        (0.20, 0.8, 3092),
        (0.02, 0.9, 429),
        (0.05, 0.9, 1071),
        (0.10, 0.9, 2141),
        (0.20, 0.9, 4282),
    ],
)
def test_rows_for_two_points(discordant: float, power: float, rows: int) -> None:
    assert required_rows(discordant, MARGIN, ERROR_RATE, power) == rows


def test_rows_for_two_points_of_a_graded_score_and_without_a_row_that_differs() -> None:
    assert required_rows(0.3**2, MARGIN, ERROR_RATE) == 1392
    assert required_rows(0, MARGIN, ERROR_RATE) == smallest_rows(MARGIN, ERROR_RATE) == 133


def test_what_so_many_rows_can_show() -> None:
    assert 100 * detectable(200, 0.1, ERROR_RATE) == pytest.approx(5.6, abs=0.05)
    assert 100 * detectable(1000, 0.1, ERROR_RATE) == pytest.approx(2.5, abs=0.05)


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_15_rows_with_no_clear_difference_are_inconclusive_and_773_to_1546_would_do(shift: int) -> None:
    found = compare(right(shift, 8, 15), right(0, 8, 15))
    assert found.result(MARGIN) is Result.INCONCLUSIVE
    assert found.required_rows == (773, 1546)


def test_15_rows_that_differ_again_and_again_show_that_more_are_needed() -> None:
    found = compare(right(6, 6, 15), right(0, 6, 15))
    assert found.result(MARGIN) is Result.INCONCLUSIVE
    assert found.required_rows[1] > 5000


def test_6_to_14_of_15_passes_and_is_marked_as_small() -> None:
    found = compare(right(0, 14, 15), right(0, 6, 15))
    assert found.result(MARGIN) is Result.PASS
    assert found.small
    assert (found.candidate_score, found.score) == pytest.approx((14 / 15, 6 / 15))


def test_3_wins_without_a_loss_in_15_exclude_two_points_worse() -> None:
    assert compare(right(0, 9, 15), right(0, 6, 15)).result(MARGIN) is Result.PASS
    assert compare(right(0, 8, 15), right(0, 6, 15)).result(MARGIN) is Result.INCONCLUSIVE


def test_a_worse_version_fails_however_few_the_rows() -> None:
    assert compare(right(0, 6, 15), right(0, 14, 15)).result(MARGIN) is Result.FAIL


@pytest.mark.parametrize("score", [1.0, 0.5])
def test_no_row_that_differs_passes_from_133_rows_on_never_by_an_interval_of_width_0(score: float) -> None:
    """Right or wrong, and graded alike."""
    assert compare([score] * 132, [score] * 132).result(MARGIN) is Result.INCONCLUSIVE
    found = compare([score] * 133, [score] * 133)
    assert found.result(MARGIN) is Result.PASS
    assert not found.small
    assert found.interval == pytest.approx((-0.0199, 0.0199), abs=1e-4)


def test_enough_rows_say_by_themselves_how_many_would_do() -> None:
    worse, better = right(0, 10, 1000), right(10, 50, 1000)
    found = compare(worse, better)
    assert not found.small
    assert found.required_rows[0] == found.required_rows[1] == required_rows(0.06 - 0.04**2, MARGIN, ERROR_RATE)


def test_a_graded_scores_interval_is_that_of_its_mean_and_the_same_again() -> None:
    drawn = random.Random(1)
    differences = [[drawn.gauss(0.05, 0.3)] for _ in range(400)]
    low, high = bootstrap_interval(differences, ERROR_RATE)
    mean = fmean(chain.from_iterable(differences))
    assert (low, high) == pytest.approx((mean - 1.645 * 0.015, mean + 1.645 * 0.015), abs=0.004)
    assert bootstrap_interval(differences[:50], ERROR_RATE) == bootstrap_interval(differences[:50], ERROR_RATE)


def test_a_graded_interval_mirrors_when_the_versions_are_swapped_and_stays_between_minus_1_and_1() -> None:
    drawn = random.Random(4)
    differences = [[drawn.uniform(-1, 1)] for _ in range(30)]
    low, high = bootstrap_interval(differences, ERROR_RATE, resamples=100)
    mirrored = bootstrap_interval([[-value] for [value] in differences], ERROR_RATE, resamples=100)
    assert mirrored == pytest.approx((-high, -low))
    assert bootstrap_interval([[0.9]] * 5, ERROR_RATE)[1] == 1
    assert bootstrap_interval([[-0.9]] * 5, ERROR_RATE)[0] == -1


def test_rows_of_documents_that_all_differ_alike_are_as_sure_as_so_many_documents() -> None:
    bound = no_difference_bound(40, ERROR_RATE)
    assert bootstrap_interval([[0.1] * 5] * 40, ERROR_RATE) == pytest.approx((0.1 - bound, 0.1 + bound))


def test_graded_scores_of_few_rows_are_planned_with_what_is_usual() -> None:
    assert compare([0.5] * 15, [0.4] * 15).required_rows == (1392, 1392)
    little = compare([0.5, 0.6] * 8, [0.5] * 16)
    assert little.required_rows == (smallest_rows(MARGIN, ERROR_RATE), 1392)


def test_the_lower_end_of_wilsons_interval_is_the_published_one() -> None:
    """Newcombe 1998, table I."""
    ends = [least_share(part, whole, 0.025) for part, whole in ((81, 263), (15, 148), (0, 20), (1, 29))]
    assert ends == pytest.approx([0.2553, 0.0624, 0, 0.0061], abs=5e-5)


def test_rows_of_one_document_count_for_less() -> None:
    drawn = random.Random(2)
    documents = [float(drawn.random() < 0.5) for _ in range(40)]
    candidate = [value for value in documents for _ in range(10)]
    other = [1 - value for value in candidate]
    clusters = [str(number) for number in range(40) for _ in range(10)]
    alone, together = compare(candidate, other), compare(candidate, other, clusters)
    assert (together.rows, together.clusters) == (400, 40)
    assert (together.small, alone.small) == (True, False)
    widths = [high - low for low, high in (alone.interval, together.interval)]
    assert widths[1] / widths[0] == pytest.approx(10**0.5, rel=0.1)
    assert together.required_rows[1] > 9 * alone.required_rows[1]


def test_the_design_effect_is_1_for_rows_of_their_own_and_the_clusters_size_where_nothing_shows_it() -> None:
    assert design_effect([[0.0], [1.0], [-1.0]]) == 1
    assert design_effect([[0.0] * 5] * 4) == 5
    assert design_effect([[0.0, 1.0, -1.0]]) == 3
    assert compare([1.0] * 400, [1.0] * 400, ["one"] * 400).result(MARGIN) is Result.INCONCLUSIVE
    unlike = [1.0, 0.0, 0.0, 0.0]
    assert compare(unlike, [0.0] * 4, ["one", "one", "two", "two"]).clusters == 2


def test_the_design_effect_is_the_variance_of_clusters_over_that_of_rows() -> None:
    # By hand: mean 5/7; the documents' sums are 4/7, 4/7 and -8/7 beside their share of it.
    assert design_effect([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0, 1.0]]) == pytest.approx((96 * 3 / 2) / (70 * 7 / 6))
    assert design_effect([[0.0, 1.0, 1.0], [1.0, 1.0], [0.0], [0.0, 1.0]]) == 1, "never less than rows of their own"


def test_the_gates_error_rate_is_what_it_says() -> None:
    """A version that is worse by just the margin passes in 5 of 100; 200 evaluations of 800 rows, 10% discordant."""
    drawn = random.Random(3)
    passed = 0
    for _ in range(200):
        rows = drawn.choices((1, -1, 0), weights=(0.04, 0.06, 0.90), k=800)
        low, _ = tango_interval(rows.count(1), rows.count(-1), 800, ERROR_RATE)
        passed += low > -MARGIN
    assert 0.02 <= passed / 200 <= 0.09


def test_kappa_is_agreement_beyond_chance() -> None:
    # Cohen 1960: 88% and 12% of chance
    table = {("a", "a"): 20, ("a", "b"): 5, ("b", "a"): 10, ("b", "b"): 15}
    pairs = [pair for pair, count in table.items() for _ in range(count)]
    assert cohens_kappa(pairs) == pytest.approx(0.4)
    assert cohens_kappa([("a", "a")] * 5) == 0
