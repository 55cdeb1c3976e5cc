"""Popular lists against a sort in Python, and rankings cut short against whole ones."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from schemas.blocks import Block
from schemas.embeddings import SHARD_ITEMS
from transforms.index.popular import OVERALL, RANKINGS, RECENT, PopularItems, most_popular
from transforms.search.top_k import PAD, Lists, codes_of, unpack


def items_of(codes: np.ndarray, counts: np.ndarray) -> Block:
    ids = pa.array([f"item {code}" for code in codes], pa.string())
    columns = [ids, pa.array(codes, pa.int32()), pa.array(counts, pa.int64()), pa.array(counts % 7 / 2, pa.float64())]
    return pa.RecordBatch.from_arrays(columns, schema=SHARD_ITEMS)


def scores_of(counts: np.ndarray, by: str) -> np.ndarray:
    return counts if by == OVERALL else counts % 7 / 2


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[np.ndarray, list[list[int]], int]:
    """Training counts, with ties and above what float32 can tell apart; histories; k."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    counts = rng.integers(0, 5, draw(st.integers(1, 100))) + draw(st.sampled_from([0, 2**30]))
    shares = rng.choice([0.0, 0.02, 0.3, 0.95, 1.0], draw(st.integers(1, 12)))
    seen = [[*rng.permutation(len(counts))[: int(share * len(counts))].tolist(), -1] for share in shares]
    return counts, seen, draw(st.sampled_from([1, 2, 10, 150]))


@given(catalogues(), st.sampled_from(RANKINGS))
def test_every_list_is_the_most_popular_there_is(catalogue: tuple[np.ndarray, list[list[int]], int], by: str) -> None:
    counts, seen, k = catalogue
    keys = PopularItems.of(items_of(np.arange(len(counts)), counts), by).top_k(Lists.of(seen), k)
    assert keys.shape == (len(seen), k)
    counts = scores_of(counts, by)
    for row, codes in zip(keys, seen, strict=True):
        eligible = [code for code in range(len(counts)) if code not in codes]
        best = sorted(eligible, key=lambda code: (-counts[code], code))[:k]
        assert codes_of(row).tolist() == best + [-1] * (k - len(best))
        if by == RECENT:
            assert unpack(row)[0][: len(best)].tolist() == counts[best].tolist()


@given(catalogues(), st.integers(1, 7), st.integers(1, 120), st.sampled_from(RANKINGS))
def test_a_ranking_begins_with_the_most_popular_of_the_shards(
    catalogue: tuple[np.ndarray, list[list[int]], int], num_shards: int, count: int, by: str
) -> None:
    counts, _, _ = catalogue
    shards = [items_of(np.arange(at, len(counts), num_shards), counts[at::num_shards]) for at in range(num_shards)]
    ranking = most_popular([most_popular([shard], count, by) for shard in shards], count, by)
    counts = scores_of(counts, by)
    expected = sorted(range(len(counts)), key=lambda code: (-counts[code], code))[:count]
    assert ranking["code"].to_pylist() == expected
    assert ranking["item_id"].to_pylist() == [f"item {code}" for code in expected]


def test_rows_end_in_pad_where_the_ranking_is_too_short() -> None:
    popular = PopularItems.of(items_of(np.arange(5), np.arange(5)), OVERALL)
    keys = popular.top_k(Lists.of([[4], [4, 3], []]), 4)
    assert (keys[:, -1] == PAD).tolist() == [False, True, False]


def test_no_items() -> None:
    assert most_popular([], 3, RECENT).num_rows == 0
    assert codes_of(PopularItems.of(most_popular([], 3, RECENT), RECENT).top_k(Lists.none(2), 2)).tolist() == [[-1, -1]] * 2


def test_blocks_are_split_so_that_keys_fit_memory(monkeypatch) -> None:
    counts = np.random.default_rng(0).integers(0, 9, 50)
    popular, seen = PopularItems.of(items_of(np.arange(50), counts), RECENT), Lists.of([[row % 50] for row in range(90)])
    expected = popular.top_k(seen, 4)
    monkeypatch.setattr("transforms.search.search._MAX_KEYS", 30)
    np.testing.assert_array_equal(popular.top_k(seen, 4), expected)
