"""The choice of L2 and of the dimensions, on made-up qualities: which are tried, in which order, and which is taken."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.train.choose_settings import (
    L2_TRIED,
    ROWS_FOR_TWICE,
    WORTH_LESS_L2,
    WORTH_TWICE,
    Candidate,
    CandidateResult,
    best_result,
    next_candidate,
)
from transforms.train.settings import DIM, L2_OF, USER_TOWERS, TrainingSettings

OPEN = TrainingSettings()
FEW, MANY = ROWS_FOR_TWICE - 1, ROWS_FOR_TWICE
QualityOf = Callable[[Candidate], float]


def search(settings: TrainingSettings, quality_of: QualityOf, num_rows: int) -> list[CandidateResult]:
    """Tries whatever is next, until nothing is."""
    results: list[CandidateResult] = []
    while candidate := next_candidate(settings, results, num_rows):
        assert candidate not in [each.candidate for each in results]
        results.append(CandidateResult(candidate, quality_of(candidate), 0.0))
        assert len(results) < 20
    return results


def tried(settings: TrainingSettings, quality_of: QualityOf, num_rows: int = FEW) -> list[tuple[int, float]]:
    return [(each.candidate.dim, each.candidate.l2) for each in search(settings, quality_of, num_rows)]


def peak_at(best: float, worth_of_twice: float = 0.0) -> QualityOf:
    """Returns a quality that falls with the distance from an L2, and is more by a share with twice the dimensions."""
    return lambda each: (1 - abs(math.log(each.l2 / best)) / 10) * (1 + worth_of_twice * (each.dim > DIM))


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        (0.12, [0.12, 0.2, 0.08]),
        (0.2, [0.12, 0.2, 0.3]),
        (0.3, [0.12, 0.2, 0.3, 0.45]),
        (0.45, [0.12, 0.2, 0.3, 0.45]),
        (9.0, [0.12, 0.2, 0.3, 0.45]),
        (0.08, [0.12, 0.2, 0.08, 0.05]),
        (0.05, [0.12, 0.2, 0.08, 0.05, 0.03]),
        (0.001, [0.12, 0.2, 0.08, 0.05, 0.03]),
    ],
)
def test_l2_is_walked_uphill_from_the_usual_one_until_it_gets_worse_or_the_list_ends(
    best: float, expected: list[float]
) -> None:
    assert tried(OPEN, peak_at(best)) == [(DIM, l2) for l2 in expected]
    chosen = best_result(search(OPEN, peak_at(best), FEW)).candidate
    assert chosen == Candidate(DIM, min(L2_TRIED, key=lambda l2: abs(math.log(l2 / best))))


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        (0.05, [0.05, 0.08, 0.03]),
        (0.03, [0.05, 0.08, 0.03]),
        (0.08, [0.05, 0.08, 0.12]),
        (9.0, [0.05, 0.08, 0.12, 0.2, 0.3, 0.45]),
    ],
)
def test_the_walk_begins_at_what_is_usual_for_the_user_tower(best: float, expected: list[float]) -> None:
    assert tried(replace(OPEN, user_tower="history"), peak_at(best)) == [(DIM, l2) for l2 in expected]


def test_the_usual_weights_are_among_those_that_are_tried() -> None:
    assert set(L2_OF) == set(USER_TOWERS)
    assert set(L2_OF.values()) <= set(L2_TRIED)
    assert list(L2_TRIED) == sorted(L2_TRIED)


def test_what_is_no_better_ends_the_walk() -> None:
    assert tried(OPEN, lambda each: 0.5) == [(DIM, 0.12), (DIM, 0.2), (DIM, 0.08)]
    assert best_result(search(OPEN, lambda each: 0.5, FEW)).candidate == Candidate(DIM, 0.12)
    assert tried(OPEN, lambda each: 0.0) == [(DIM, 0.12), (DIM, 0.2), (DIM, 0.08)]


@pytest.mark.parametrize(("worth", "l2"), [(0.5 * WORTH_LESS_L2, 0.12), (2 * WORTH_LESS_L2, 0.08)])
def test_less_l2_must_be_clearly_better(worth: float, l2: float) -> None:
    results = search(OPEN, lambda each: {0.12: 1.0, 0.08: 1 + worth}.get(each.l2, 0.5), FEW)
    assert best_result(results).candidate == Candidate(DIM, l2)
    assert [each.candidate.l2 for each in results] == [0.12, 0.2, 0.08, *([0.05] if l2 == 0.08 else [])]


def test_more_l2_need_not_be_clearly_better() -> None:
    results = search(OPEN, lambda each: {0.12: 1.0, 0.2: 1 + 1e-6}.get(each.l2, 0.5), FEW)
    assert best_result(results).candidate == Candidate(DIM, 0.2)


@pytest.mark.parametrize("l2", [0.0, 0.07, 0.12])
def test_a_weight_that_is_given_is_the_only_one(l2: float) -> None:
    given_l2 = replace(OPEN, l2=l2)
    assert tried(given_l2, lambda each: 1.0) == [(DIM, l2)]
    assert tried(replace(given_l2, dim=24), lambda each: 1.0, MANY) == [(24, l2)]


def test_dimensions_that_are_given_are_the_only_ones() -> None:
    settings = replace(OPEN, dim=24)
    assert tried(settings, peak_at(0.12), MANY) == [(24, 0.12), (24, 0.2), (24, 0.08)]


def test_twice_the_dimensions_are_tried_where_there_are_ratings_enough_with_the_best_weight() -> None:
    assert tried(OPEN, peak_at(0.3), FEW)[-1] == (DIM, 0.45)
    assert tried(OPEN, peak_at(0.3), MANY)[4:] == [(2 * DIM, 0.3)]
    assert tried(replace(OPEN, l2=0.07), lambda each: 1.0, MANY) == [(DIM, 0.07), (2 * DIM, 0.07)]


def test_where_they_are_worth_it_the_next_weight_is_tried_with_them_too() -> None:
    worth = 2 * WORTH_TWICE
    assert tried(OPEN, peak_at(0.2, worth), MANY)[3:] == [(2 * DIM, 0.2), (2 * DIM, 0.3)]
    assert tried(OPEN, peak_at(9.0, worth), MANY)[4:] == [(2 * DIM, 0.45)], "there is no next one"
    assert tried(replace(OPEN, l2=0.2), peak_at(0.2, worth), MANY) == [(DIM, 0.2), (2 * DIM, 0.2)], "it is given"


@pytest.mark.parametrize(
    ("worth", "dim"), [(-0.5, DIM), (0.0, DIM), (0.9 * WORTH_TWICE, DIM), (1.1 * WORTH_TWICE, 2 * DIM), (0.5, 2 * DIM)]
)
def test_twice_the_dimensions_are_taken_only_where_they_are_clearly_better(worth: float, dim: int) -> None:
    assert best_result(search(OPEN, peak_at(0.12, worth), MANY)).candidate == Candidate(dim, 0.12)


def test_of_twice_the_dimensions_the_better_weight_is_taken() -> None:
    def quality(each: Candidate) -> float:
        return (1.0 if each.l2 == 0.12 else 0.9) if each.dim == DIM else (1.1 if each.l2 == 0.12 else 1.2)

    assert best_result(search(OPEN, quality, MANY)).candidate == Candidate(2 * DIM, 0.2)


QUALITIES = st.dictionaries(
    st.tuples(st.sampled_from([DIM, 2 * DIM]), st.sampled_from(L2_TRIED)), st.floats(0, 2), min_size=0, max_size=14
)


@given(QUALITIES, st.sampled_from(USER_TOWERS), st.sampled_from([FEW, MANY]))
def test_whatever_the_qualities_a_choice_ends_takes_the_best_and_is_made_alike(
    qualities: dict[tuple[int, float], float], user_tower: str, num_rows: int
) -> None:
    settings = replace(OPEN, user_tower=user_tower)

    def quality_of(each: Candidate) -> float:
        return qualities.get((each.dim, each.l2), 0.5)

    results = search(settings, quality_of, num_rows)
    assert results == search(settings, quality_of, num_rows)
    # A search that goes on from a checkpoint asks for what it would have asked for.
    for done in range(len(results)):
        again = [CandidateResult.of(each.to_json()) for each in results[:done]]
        assert next_candidate(settings, again, num_rows) == results[done].candidate
    best = best_result(results)
    assert best in results
    of_few = [each.quality for each in results if each.candidate.dim == DIM]
    # Nothing that was tried is better by more than what is asked of less L2, and of more dimensions.
    assert max(of_few) <= best.quality * (1 + WORTH_LESS_L2)
    assert max(each.quality for each in results) <= best.quality * (1 + max(WORTH_TWICE, WORTH_LESS_L2))
    if best.candidate.dim > DIM:
        assert best.quality > max(of_few) / (1 + WORTH_LESS_L2) * (1 + WORTH_TWICE)
    # The best was the best when it was tried: its weights were kept then.
    tried_before = results[: results.index(best) + 1]
    assert best_result(tried_before) == best
    assert all(best_result(results[:number]) == best for number in range(len(tried_before), len(results)))


def test_quality_is_the_sum_of_both_measures() -> None:
    result = CandidateResult(Candidate(8, 0.1), 0.25, 0.125)
    assert result.quality == 0.375
    assert result.to_json() == {"dim": 8, "l2": 0.1, "recall_at_100": 0.25, "ndcg_at_10": 0.125}
    assert CandidateResult.of(result.to_json()) == result
