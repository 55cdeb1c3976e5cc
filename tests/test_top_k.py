import itertools
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from transforms.search import top_k
from transforms.search.top_k import (
    NO_MORE,
    PAD,
    Lists,
    codes_of,
    contains,
    exclude,
    is_certain,
    merge,
    pack,
    pack_counts,
    unpack,
    width_per_shard,
)

CODES = st.integers(0, 2**31 - 1)
SCORES = st.floats(width=32, allow_nan=False)


@given(st.lists(st.tuples(SCORES, CODES), min_size=1, max_size=30))
@example([(0.0, 1), (-0.0, 0), (float("inf"), 2**31 - 1), (float("-inf"), 0), (2.0**-149, 3), (-(2.0**-149), 3)])
def test_keys_sort_by_score_and_then_by_code(pairs):
    keys = pack(np.array([score for score, _ in pairs], np.float32), np.array([code for _, code in pairs]))

    scores, codes = unpack(np.sort(keys))

    assert list(zip(scores.tolist(), codes.tolist(), strict=True)) == sorted(pairs, key=lambda pair: (-pair[0], pair[1]))
    assert keys.max() < NO_MORE


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), CODES), min_size=1, max_size=30))
def test_keys_of_counts_sort_exactly(pairs):
    keys = np.sort(pack_counts(np.array([count for count, _ in pairs]), np.array([code for _, code in pairs])))

    best = sorted(pairs, key=lambda pair: (-pair[0], pair[1]))
    assert codes_of(keys).tolist() == [code for _, code in best]
    assert keys.max() < NO_MORE


def test_pad_is_no_item():
    scores, codes = unpack(np.array([PAD]))

    assert (scores[0], codes[0]) == (-np.inf, -1)


@given(
    keys=hnp.arrays(np.uint64, st.tuples(st.integers(0, 5), st.integers(0, 12)), elements=st.integers(0, 40)),
    k=st.integers(1, 15),
    data=st.data(),
)
def test_merge_ignores_how_keys_are_sharded(keys, k, data):
    order = data.draw(st.permutations(range(keys.shape[1])))

    merged = merge(keys[:, order], k)

    expected = [(sorted(row) + [int(PAD)] * k)[:k] for row in keys.tolist()]
    assert merged.tolist() == expected


def lists_and_codes():
    """Rows of very different lengths, codes from a small range so that many are met, or from all."""
    row = st.one_of(st.lists(st.integers(0, 50), max_size=60), st.lists(CODES, max_size=5))
    return st.lists(st.tuples(row, st.lists(st.integers(0, 50) | CODES, min_size=4, max_size=4)), max_size=12)


@given(lists_and_codes(), st.sampled_from([64, 1 << 20]))
def test_contains_agrees_with_python_sets(rows, table_bytes):
    lists = Lists.of([row for row, _ in rows])
    codes = np.array([codes for _, codes in rows], np.int64).reshape(-1, 4)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(top_k, "_TABLE_BYTES", table_bytes)
        found = contains(lists, codes)

    assert found.tolist() == [[code in set(row) for code in codes] for row, codes in rows]


def test_contains_is_exact_where_every_code_hashes_to_one_slot():
    # Codes that the multiplication sends to multiples of 2^0..2^7 share the top bits, and so the slot.
    inverse = pow(int(top_k._GOLDEN), -1, 2**32)
    crowd = sorted(code for low in range(256) if (code := low * inverse % 2**32) < 2**31)
    held, others = crowd[:-1:2], [*crowd[1:-1:2], crowd[-1]]

    found = contains(Lists.of([held]), np.array([held + others]))

    assert found.tolist() == [[True] * len(held) + [False] * len(others)]


def test_contains_knows_no_missing_item():
    assert not contains(Lists.of([[0, 7, 2**31 - 1], []]), np.array([[-1], [-1]])).any()


def test_contains_with_one_very_long_list_among_short_ones():
    rng = np.random.default_rng(0)
    rows = [rng.choice(100_000, 20_000 if r == 7 else r % 3, replace=False).tolist() for r in range(50)]
    codes = rng.integers(0, 100_000, (50, 100))

    assert contains(Lists.of(rows), codes).tolist() == [
        [c in set(row) for c in line] for row, line in zip(rows, codes, strict=True)
    ]


def test_exclude_removes_listed_items_and_keeps_the_rest():
    keys = np.concatenate([pack(np.array([[3, 2, 1]], np.float32), np.array([4, 5, 6])), [[PAD]]], axis=1)

    assert exclude(keys, Lists.of([[5, 9]])).tolist() == [[keys[0, 0], PAD, keys[0, 2], PAD]]


def test_lists_take_rows_in_any_order():
    lists = Lists.of([[1, 2], [], [3], [4, 5, 6]])

    taken = lists.take(np.array([3, 1, 0, 3]))

    assert np.split(taken.values, taken.offsets[1:-1])[0].tolist() == [4, 5, 6]
    assert taken.counts.tolist() == [3, 0, 2, 3]
    assert taken.values.tolist() == [4, 5, 6, 1, 2, 4, 5, 6]
    assert len(Lists.none(3)) == 3


@given(
    shards=st.lists(st.lists(st.integers(0, 60), max_size=12, unique=True), min_size=1, max_size=4),
    width=st.integers(1, 6),
    k=st.integers(1, 6),
)
def test_a_certain_row_is_what_longer_answers_would_give(shards, width, k):
    """Each shard returns its best `width` keys; the oracle merges all keys of all shards."""
    keys = [np.sort(np.array(shard, np.uint64)) for shard in shards]
    bounds = np.array([[shard[width - 1] if len(shard) > width else PAD for shard in keys]], np.uint64)

    merged = merge(np.concatenate([shard[:width] for shard in keys])[None], k)

    full = merge(np.concatenate(keys)[None], k)
    if is_certain(merged, bounds)[0]:
        assert merged.tolist() == full.tolist()
    # And no doubt without cause: a row is uncertain only where some shard kept back something that could still belong.
    elif width >= k:
        pytest.fail("a list of k from each shard is all that k need")


def test_a_short_row_is_certain_only_if_every_shard_is_empty():
    short, full = merge(np.array([[5]], np.uint64), 2), merge(np.array([[5, 9]], np.uint64), 2)

    assert is_certain(short, np.array([[PAD, PAD]])).all()
    assert not is_certain(short, np.array([[PAD, NO_MORE]])).any()
    assert is_certain(full, np.array([[PAD, NO_MORE]])).all()
    assert is_certain(full, np.array([[PAD, 9]], np.uint64)).all()
    assert not is_certain(full, np.array([[PAD, 8]], np.uint64)).any()


@pytest.mark.parametrize(("width", "num_shards", "miss"), itertools.product([1, 5, 100, 300], [1, 2, 7, 16], [1e-4, 0.05]))
def test_width_per_shard_is_the_least_that_holds_with_the_chance_asked_for(width, num_shards, miss):
    """The oracle sums the binomial distribution in whole numbers."""

    def chance_above(w: int) -> Fraction:
        ways = sum(comb(width, i) * (num_shards - 1) ** (width - i) for i in range(w + 1, width + 1))
        return Fraction(ways, num_shards**width)

    w = width_per_shard(width, num_shards, miss)

    allowed = Fraction(miss) / num_shards
    assert chance_above(w) <= allowed
    assert w == 1 or chance_above(w - 1) > allowed


def test_width_per_shard_of_a_long_list_among_many_shards():
    assert 20_000 / 1000 < width_per_shard(20_000, 1000) < 60
