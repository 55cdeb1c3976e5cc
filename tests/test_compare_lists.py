"""Lists are compared as the definitions say, written out here rank by rank."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InputError
from transforms.evaluate.compare import add_counts, compare_lists, count_items

ITEMS = "abcdefghij"
LISTS = st.lists(st.sampled_from(ITEMS), unique=True, max_size=len(ITEMS))
PAIRS = st.lists(st.tuples(LISTS, LISTS), max_size=5)


def lists(rows: list[list[str]]) -> pa.ListArray:
    return pa.array(rows, pa.list_(pa.string()))


def rbo_by_hand(one: list[str], other: list[str], p: float) -> float:
    """Equation 32 of Webber, Moffat and Zobel (2010), as it stands there: the shorter list S of s items, the longer L of l."""
    short, long = sorted((one, other), key=len)
    s, size = len(short), len(long)
    if not size:
        return 1.0
    if not s:
        return 0.0

    def overlap(depth: int) -> int:
        return len(set(short[:depth]) & set(long[:depth]))

    whole = sum(overlap(d) / d * p**d for d in range(1, size + 1))
    guessed = sum(overlap(s) * (d - s) / (s * d) * p**d for d in range(s + 1, size + 1))
    return (1 - p) / p * (whole + guessed) + ((overlap(size) - overlap(s)) / size + overlap(s) / s) * p**size


@given(PAIRS, st.sampled_from([0.5, 0.9, 0.98]))
def test_every_measure_is_its_definition(pairs: list[tuple[list[str], list[str]]], p: float) -> None:
    found = compare_lists(lists([one for one, _ in pairs]), lists([other for _, other in pairs]), p)
    assert found.changed.tolist() == [one != other for one, other in pairs]
    jaccard = [len({*one} & {*other}) / len({*one} | {*other}) if one or other else 1.0 for one, other in pairs]
    np.testing.assert_allclose(found.jaccard, jaccard)
    np.testing.assert_allclose(found.rbo, [rbo_by_hand(one, other, p) for one, other in pairs], atol=1e-12)


def test_rbo_is_the_limit_that_it_extrapolates() -> None:
    """Ten ranks alike, and a thousand more alike after them, are wholly alike; the head counts most."""
    head_changed = compare_lists(lists([list("abcd")]), lists([list("xbcd")]))
    tail_changed = compare_lists(lists([list("abcd")]), lists([list("abcx")]))
    assert head_changed.jaccard == tail_changed.jaccard
    assert head_changed.rbo[0] < tail_changed.rbo[0] < 1
    # Of infinite lists that agree in the first ten ranks alone, RBO is the weight of those ranks and a share of what follows.
    long = [f"{at}" for at in range(400)]
    other = long[:10] + [f"x{at}" for at in range(390)]
    expected = 0.1 * (sum(0.9 ** (d - 1) for d in range(1, 11)) + sum(10 / d * 0.9 ** (d - 1) for d in range(11, 5_000)))
    assert compare_lists(lists([long]), lists([other])).rbo[0] == pytest.approx(expected)


def test_ids_are_compared_as_text_and_sliced_columns_are_read_right() -> None:
    before, after = lists([["x"], ["7", "é"], []]), lists([["y"], ["007", "é"], []])
    found = compare_lists(before.slice(1), after.slice(1))
    assert found.changed.tolist() == [True, False]
    np.testing.assert_allclose(found.jaccard, [1 / 3, 1])
    counted = {row["item_id"]: (row["before"], row["after"]) for row in count_items(before.slice(1), after).to_pylist()}
    assert counted == {"7": (1, 0), "é": (1, 1), "007": (0, 1), "y": (0, 1)}


@given(PAIRS, st.integers(0, 5))
def test_counts_of_pieces_add_up(pairs: list[tuple[list[str], list[str]]], cut: int) -> None:
    before, after = lists([one for one, _ in pairs]), lists([other for _, other in pairs])
    pieces = [count_items(before.slice(0, cut), after.slice(0, cut)), count_items(before.slice(cut), after.slice(cut))]
    found = {row["item_id"]: (row["before"], row["after"]) for row in add_counts(pieces).to_pylist()}
    listed = [[item for pair in pairs for item in pair[side]] for side in (0, 1)]
    assert found == {item: (listed[0].count(item), listed[1].count(item)) for item in {*listed[0], *listed[1]}}


@pytest.mark.parametrize("p", [0.0, 1.0, -1.0, float("nan")])
def test_a_parameter_that_is_none_is_refused(p: float) -> None:
    with pytest.raises(InputError, match=r"rbo_p must be above 0 and below 1, got .*: change --rbo_p"):
        compare_lists(lists([]), lists([]), p)
