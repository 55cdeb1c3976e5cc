import itertools
import math

import numpy as np
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that
from apache_beam.transforms import CombineGlobally, Create
from hypothesis import given
from hypothesis import strategies as st

from transforms.search.ranking_metrics import Estimate, JudgeRankings, metrics_of_users, recall_against
from transforms.search.top_k import Lists

NUM_ITEMS = 20


def metrics_of_user(ranked: list[int], held_out: list[int], k: int) -> list[float]:
    """The definitions, for one user, in plain Python."""
    hits = [item in held_out for item in ranked]
    gain = sum(1 / math.log2(rank + 1) for rank, hit in enumerate(hits[:k], start=1) if hit)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(held_out)) + 1))
    return [sum(hits[:k]) / len(held_out), gain / ideal, float(any(hits[:k]))]


def reciprocal_rank(ranked: list[int], held_out: list[int]) -> float:
    return next((1 / rank for rank, item in enumerate(ranked, start=1) if item in held_out), 0.0)


# Held-out items outside the catalogue are -1: any number of them.
ITEMS = st.builds(
    lambda known, unknown: known + [-1] * unknown, st.lists(st.integers(0, NUM_ITEMS - 1), unique=True), st.integers(0, 2)
)
USERS = st.lists(st.tuples(st.permutations(range(NUM_ITEMS)), st.integers(0, 8), ITEMS), max_size=8)


def judged(users):
    codes = np.array([order[:length] + [-1] * (8 - length) for order, length, _ in users], np.int64).reshape(-1, 8)
    return codes, Lists.of([held_out for *_, held_out in users])


@given(USERS)
def test_metrics_agree_with_their_definitions(users):
    with_holdout = [(order[:length], held_out) for order, length, held_out in users if held_out]

    codes, holdout = judged(users)
    found = metrics_of_users(codes, holdout, [1, 3, 8])

    expected = [
        [value for k in (1, 3, 8) for value in metrics_of_user(ranked, held_out, k)] + [reciprocal_rank(ranked, held_out)]
        for ranked, held_out in with_holdout
    ]
    np.testing.assert_allclose(found, np.array(expected).reshape(-1, 10), atol=1e-12)


@given(USERS, st.lists(st.integers(0, 8), max_size=3))
def test_merged_and_unmerged_sums_give_the_same(users, cuts):
    judge = JudgeRankings([8, 1], NUM_ITEMS)
    edges = [0, *sorted(min(cut, len(users)) for cut in cuts), len(users)]
    parts = [judge.add_input(judge.create_accumulator(), judged(users[a:b])) for a, b in itertools.pairwise(edges)]
    one_by_one = judge.create_accumulator()
    for user in users:
        one_by_one = judge.add_input(one_by_one, judged([user]))

    merged = judge.extract_output(judge.merge_accumulators(parts))
    unmerged = judge.extract_output(one_by_one)

    assert merged.users == unmerged.users == sum(bool(held_out) for *_, held_out in users)
    assert merged.means == pytest.approx(unmerged.means)
    assert merged.standard_errors == pytest.approx(unmerged.standard_errors, abs=1e-7)


@given(USERS)
def test_coverage_counts_the_items_in_any_list(users):
    judge = JudgeRankings([2, 8], NUM_ITEMS)

    means = judge.extract_output(judge.add_input(judge.create_accumulator(), judged(users))).means

    for k in (2, 8):
        listed = {item for order, length, _ in users for item in order[: min(k, length)]}
        assert means[f"coverage@{k}"] == pytest.approx(len(listed) / NUM_ITEMS)


def test_standard_error_is_that_of_the_mean_over_users():
    ranks = [0, 1, 2, 3, 3]
    codes = np.array([np.roll([9, 8, 7, 6], rank) for rank in ranks])
    judge = JudgeRankings([4], 10)

    metrics = judge.extract_output(judge.add_input(judge.create_accumulator(), (codes, Lists.of([[9]] * 5))))

    reciprocal_ranks = np.array([1, 1 / 2, 1 / 3, 1 / 4, 1 / 4])
    assert metrics.means["mrr"] == pytest.approx(reciprocal_ranks.mean())
    assert metrics.standard_errors["mrr"] == pytest.approx(reciprocal_ranks.std(ddof=1) / math.sqrt(5))
    assert metrics.standard_errors["recall@4"] == 0


def test_nobody_to_judge():
    judge = JudgeRankings([1], 0)

    metrics = judge.extract_output(judge.create_accumulator())

    assert metrics.users == 0
    assert set(metrics.means.values()) == {0.0}
    assert metrics.standard_errors == {}


def test_judging_in_a_pipeline():
    blocks = [(np.array([[0, 1], [2, 3]]), Lists.of([[1], [2, 5]])), (np.array([[1, 0]]), Lists.of([[]]))]

    def check(found):
        (metrics,) = found
        assert metrics.users == 2
        assert metrics.means == pytest.approx(
            {
                "recall@1": 0.25,
                "ndcg@1": 0.5,
                "hit_rate@1": 0.5,
                "recall@2": 0.75,
                "ndcg@2": (1 / math.log2(3) + 1 / (1 + 1 / math.log2(3))) / 2,
                "hit_rate@2": 1.0,
                "mrr": 0.75,
                "coverage@1": 3 / 8,
                "coverage@2": 0.5,
            }
        )

    with TestPipeline("FnApiRunner") as p:
        metrics = p | Create(blocks) | CombineGlobally(JudgeRankings([1, 2], 8))
        assert_that(metrics, check)


def test_a_cutoff_beyond_the_lists_is_refused():
    with pytest.raises(ValueError, match="cutoffs must be at most the length of the lists, 2, got 5"):
        metrics_of_users(np.array([[0, 1]]), Lists.of([[1]]), [1, 5])


@pytest.mark.parametrize("cutoffs", [[], [0, 10]])
def test_cutoffs_must_be_numbers_from_one_on(cutoffs):
    with pytest.raises(ValueError, match="cutoffs must be one or more numbers from 1 on"):
        JudgeRankings(cutoffs, 10)


def test_recall_against_exact_lists():
    exact = np.array([[0, 1, 2, 3], [4, 5, -1, -1], [-1, -1, -1, -1]])
    found = np.array([[3, 9, 0, 2], [5, 4, -1, -1], [7, -1, -1, -1]])

    estimate = recall_against(found, exact)

    assert estimate.mean == pytest.approx((3 / 4 + 1) / 2)
    assert estimate.standard_error == pytest.approx(np.std([0.75, 1.0], ddof=1) / math.sqrt(2))


def test_recall_of_hardly_anything_is_uncertain():
    assert recall_against(np.array([[1]]), np.array([[1]])) == Estimate(1.0, math.inf)
    assert recall_against(np.zeros((0, 1), np.int64), np.zeros((0, 1), np.int64)) == Estimate(0.0, math.inf)
