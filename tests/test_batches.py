"""Groups of rows: every row once an epoch, groups of one user each, and steps against a plain loop."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.train import batches
from transforms.train.batches import Groups, group_starts, shuffled_groups, steps_of

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=30)


def user_of(lengths: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)


def groups_of(lengths: list[int], most: int, fewest: int = 1, seed: int = 0) -> Groups:
    starts = group_starts(np.array(lengths), most, fewest)
    return shuffled_groups(user_of(lengths), starts, np.random.default_rng(seed))


def pieces_of(groups: Groups) -> list[list[int]]:
    """Returns the rows of each group, by number."""
    return [groups.rows[begin:end].tolist() for begin, end in zip(groups.starts[:-1], groups.starts[1:], strict=True)]


@given(LENGTHS, st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_an_epoch_takes_every_row_once_in_groups_of_one_user_each(
    lengths: list[int], most: int, fewest: int, seed: int
) -> None:
    groups = groups_of(lengths, most, fewest, seed)
    assert groups.rows.dtype == np.int32
    assert sorted(groups.rows.tolist()) == list(range(sum(lengths)))
    assert sorted(groups.turn.tolist()) == list(range(len(groups.starts) - 1))
    user = user_of(lengths)
    assert all(len(set(user[piece].tolist())) == 1 for piece in pieces_of(groups))


@given(LENGTHS, st.integers(1, 12), st.integers(1, 6))
def test_groups_are_no_larger_than_asked_for_as_equal_as_can_be_and_no_more_than_needed(
    lengths: list[int], most: int, fewest: int
) -> None:
    starts = group_starts(np.array(lengths), most, fewest)
    assert starts[0] == 0
    assert starts[-1] == sum(lengths)
    user = user_of(lengths)
    sizes: dict[int, list[int]] = {}
    for begin, end in itertools.pairwise(starts):
        sizes.setdefault(int(user[begin]), []).append(int(end - begin))
    assert set(sizes) == {at for at, length in enumerate(lengths) if length}
    for at, its in sizes.items():
        assert sum(its) == lengths[at]
        assert max(its) <= most
        assert max(its) - min(its) <= 1
        assert len(its) == min(lengths[at], max(fewest, math.ceil(lengths[at] / most)))


@pytest.mark.parametrize(
    ("lengths", "most", "fewest", "sizes"),
    [
        ([6, 1, 2], 4, 1, [3, 3, 1, 2]),
        ([6, 1, 2], 4, 4, [1, 2, 1, 2, 1, 1, 1]),
        ([0, 3, 0, 0, 5, 0], 3, 1, [3, 2, 3]),
        ([10], 3, 2, [2, 3, 2, 3]),
        ([0], 4, 1, []),
        ([0, 0], 4, 4, []),
    ],
)
def test_groups_of_a_few_users(lengths: list[int], most: int, fewest: int, sizes: list[int]) -> None:
    starts = group_starts(np.array(lengths), most, fewest)
    assert starts.tolist() == [0, *np.cumsum(sizes)]
    assert starts.dtype == np.int64


def test_there_may_be_no_users_at_all() -> None:
    assert group_starts(np.array([], int), 4).tolist() == [0]


def test_the_order_follows_from_the_generator_alone() -> None:
    lengths = [12] * 120
    first, again, second = (groups_of(lengths, 5, seed=seed) for seed in (0, 0, 1))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(first.starts, second.starts)
    assert (first.rows != second.rows).mean() > 0.8
    assert (first.turn != second.turn).mean() > 0.8


def test_which_rows_of_a_user_are_together_is_by_chance() -> None:
    """Of four rows in two groups each pair is together in a third of the epochs; and each row is first in a quarter."""
    together: Counter[tuple[int, ...]] = Counter()
    first: Counter[int] = Counter()
    for seed in range(600):
        for piece in pieces_of(groups_of([4], 2, seed=seed)):
            together[tuple(sorted(piece))] += 1
            first[piece[0]] += 1
    assert len(together) == 6
    assert all(150 < count < 250 for count in together.values())
    assert all(240 < count < 360 for count in first.values())


@pytest.mark.parametrize("at_once", [1, 2, 7, 20, 1000])
@pytest.mark.parametrize("lengths", [[3, 50, 0, 4, 1, 1, 30, 2], [100], [1] * 40, [0, 0, 90, 1], [1, 90]])
def test_sorting_in_blocks_loses_no_row_and_mixes_no_users(
    lengths: list[int], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a user has more rows than a block."""
    monkeypatch.setattr(batches, "_ROWS_AT_ONCE", at_once)
    groups = groups_of(lengths, 4)
    user = user_of(lengths)
    np.testing.assert_array_equal(user[groups.rows], user)
    np.testing.assert_array_equal(np.sort(groups.rows), np.arange(len(user)))


def test_a_user_of_very_many_rows_is_shuffled_as_a_whole() -> None:
    lengths = [2, batches._ROWS_AT_ONCE + 5, 3]
    groups = groups_of(lengths, 32)
    user = user_of(lengths)
    np.testing.assert_array_equal(user[groups.rows], user)
    np.testing.assert_array_equal(np.sort(groups.rows), np.arange(len(user)))
    moved = np.abs(groups.rows[2:-3].astype(float) - np.arange(2, len(user) - 3))
    # Two random places of a row are a third of its length apart, on average.
    assert moved.mean() == pytest.approx(lengths[1] / 3, rel=0.05)
    assert np.diff(groups.starts).max() <= 32


def steps_by_hand(groups: Groups, batch: int, first_step: int, num_steps: int) -> list[list[list[int]]]:
    """Returns the rows of each group of each step."""
    pieces = pieces_of(groups)
    return [
        [pieces[number] for number in groups.turn[step * batch : (step + 1) * batch]]
        for step in range(first_step, first_step + num_steps)
    ]


@given(LENGTHS.filter(lambda lengths: sum(lengths) > 2), st.integers(1, 9), st.data())
def test_steps_equal_a_plain_loop(lengths: list[int], most: int, data: st.DataObject) -> None:
    groups = groups_of(lengths, most)
    num_groups = len(groups.turn)
    batch = data.draw(st.integers(1, num_groups))
    first = data.draw(st.integers(0, num_groups // batch - 1))
    count = data.draw(st.integers(1, num_groups // batch - first))
    steps = steps_of(groups, batch, first, count)
    assert {steps.rows.dtype, steps.group.dtype, steps.bounds.dtype, steps.first.dtype} == {np.dtype(np.int32)}
    expected = steps_by_hand(groups, batch, first, count)
    assert steps.bounds.tolist() == [0, *np.cumsum([sum(map(len, step)) for step in expected])]
    assert steps.rows.tolist() == [row for step in expected for piece in step for row in piece]
    assert steps.group.tolist() == [at for step in expected for at, piece in enumerate(step) for _ in piece]
    assert steps.first.tolist() == [[piece[0] for piece in step] for step in expected]
    user = user_of(lengths)
    for step in range(count):
        here = slice(steps.bounds[step], steps.bounds[step + 1])
        np.testing.assert_array_equal(user[steps.first[step]][steps.group[here]], user[steps.rows[here]])


def test_all_steps_of_an_epoch_take_every_group_but_those_that_fill_no_batch() -> None:
    groups = groups_of([7, 0, 3, 12, 5, 9], 4)
    num_steps = len(groups.turn) // 3
    steps = steps_of(groups, 3, 0, num_steps)
    left = [row for number in groups.turn[num_steps * 3 :] for row in pieces_of(groups)[number]]
    assert sorted([*steps.rows.tolist(), *left]) == list(range(36))
