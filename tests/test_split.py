"""Splits are checked row by row against rules written in plain Python."""

from collections import defaultdict

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import InputError
from schemas.interactions import VALID
from transforms.ingest.histories import MILLION, SplitTimes, latest_of_each_pair, sorted_unique, split_bucket
from transforms.ingest.split import FindCut, FindLatest, SplitSettings, split_rows, user_rows

ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "0", "00", "é"]),
        st.sampled_from(["x", "y", "z", "1", "01", "🙂"]),
        st.one_of(st.none(), st.integers(1, 5).map(float)),
        st.integers(0, 6),
    ),
    min_size=1,
    max_size=40,
)
Row = tuple[str, str, float | None, int]
NOW = SplitTimes(None, 10, 1.0)


def block_of(rows: list[Row]) -> pa.RecordBatch:
    users, items, ratings, times = zip(*rows, strict=True)
    return pa.RecordBatch.from_arrays([users, items, pa.array(ratings, pa.float32()), times, range(len(rows))], schema=VALID)


def deduplicated(rows: list[Row], cut: int | None = None) -> dict[str, list[Row]]:
    """The latest row of each pair, before the cut where there is one, by user, oldest first."""
    latest: dict[tuple[str, str], tuple[int, int, Row]] = {}
    for position, row in enumerate(rows):
        key = row[0], row[1]
        known_before = cut is not None and key in latest and latest[key][0] < cut <= row[3]
        unknown_before = cut is not None and key in latest and row[3] < cut <= latest[key][0]
        if key not in latest or unknown_before or ((row[3], position) > latest[key][:2] and not known_before):
            latest[key] = row[3], position, row
    users = defaultdict(list)
    for _, _, row in sorted(latest.values()):
        users[row[0]].append(row)
    return dict(sorted(users.items(), key=lambda each: each[0].encode()))


@given(ROWS)
def test_the_latest_of_each_pair_stays_sorted_by_user_then_time(rows: list[Row]) -> None:
    found = block_of(rows)
    block, user = latest_of_each_pair(found, sorted_unique(found["user_id"]))
    expected = deduplicated(rows)
    found = [(r["user_id"], r["item_id"], r["rating"], r["timestamp"]) for r in block.to_pylist()]
    assert found == [row for user_rows_ in expected.values() for row in user_rows_]
    assert user.tolist() == [rank for rank, user_rows_ in enumerate(expected.values()) for _ in user_rows_]


def is_positive(row: Row, minimum: float | None) -> bool:
    return minimum is None or row[2] is None or row[2] >= minimum


@given(ROWS, st.sampled_from([None, 3.0]), st.integers(1, 3))
def test_last_holds_out_the_last_positives_and_nothing_later_leaks(rows: list[Row], minimum: float | None, held: int) -> None:
    bucket = split_bucket([block_of(rows)], SplitSettings("last", held, minimum), NOW)
    for user, row in zip(deduplicated(rows).items(), [r for b in bucket.users for r in b.to_pylist()], strict=True):
        name, history = user
        positives = [each for each in history if is_positive(each, minimum)]
        kept = positives[:-held] if len(positives) > held else positives
        held_out = positives[len(kept) :]
        first_held = history.index(held_out[0]) if held_out else len(history)
        assert row["user_id"] == name
        assert row["history"] == [each[1] for each in kept]
        assert row["holdout"] == [each[1] for each in held_out]
        assert row["below_min_rating"] == [each[1] for each in history[:first_held] if not is_positive(each, minimum)]


@given(ROWS, st.integers(0, 7), st.sampled_from([None, 3.0]))
def test_temporal_holds_out_everything_from_the_cut_on(rows: list[Row], cut: int, minimum: float | None) -> None:
    bucket = split_bucket([block_of(rows)], SplitSettings("temporal", 0.1, minimum), SplitTimes(cut, 0, 1.0))
    expected = [row for history in deduplicated(rows, cut).values() for row in history]
    train = [(r["user_id"], r["item_id"]) for b in bucket.train for r in b.to_pylist()]
    holdout = [(r["user_id"], r["item_id"]) for b in bucket.holdout for r in b.to_pylist()]
    assert train == [row[:2] for row in expected if row[3] < cut and is_positive(row, minimum)]
    assert holdout == [row[:2] for row in expected if row[3] >= cut and is_positive(row, minimum)]


@given(ROWS)
def test_none_keeps_everything(rows: list[Row]) -> None:
    bucket = split_bucket([block_of(rows)], SplitSettings("none", 0), NOW)
    assert [r["history"] for b in bucket.users for r in b.to_pylist()] == [
        [row[1] for row in history] for history in deduplicated(rows).values()
    ]
    assert not bucket.holdout


def test_random_is_about_the_fraction_and_does_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(0)
    rows: list[Row] = [(f"u{u}", f"i{i}", 1.0, 0) for u in range(100) for i in range(100)]
    shuffled = [rows[i] for i in rng.permutation(len(rows))]
    whole, other = (split_bucket([block_of(each)], SplitSettings("random", 0.2), NOW) for each in (rows, shuffled))
    held = {(r["user_id"], r["item_id"]) for b in whole.holdout for r in b.to_pylist()}
    assert held == {(r["user_id"], r["item_id"]) for b in other.holdout for r in b.to_pylist()}
    assert abs(len(held) - 2000) < 5 * (10_000 * 0.2 * 0.8) ** 0.5
    seeded = split_bucket([block_of(rows)], SplitSettings("random", 0.2, seed=7), NOW)
    overlap = len(held & {(r["user_id"], r["item_id"]) for b in seeded.holdout for r in b.to_pylist()})
    assert abs(overlap - 400) < 5 * (10_000 * 0.04 * 0.96) ** 0.5


@given(ROWS, st.sampled_from(["random", "temporal", "last", "none"]), st.integers(2, 5))
@settings(deadline=None)
def test_a_split_ignores_how_users_fall_into_buckets(rows: list[Row], split: str, parts: int) -> None:
    how = SplitSettings(split, 1 if split == "last" else 0.3)
    whole = split_bucket([block_of(rows)], how, SplitTimes(3, 0, 1.0))
    pieces = [
        split_bucket([block_of([row for row in rows if hash(row[0]) % parts == part])], how, SplitTimes(3, 0, 1.0))
        for part in range(parts)
        if any(hash(row[0]) % parts == part for row in rows)
    ]
    by_user = {r["user_id"]: r for piece in pieces for b in piece.users for r in b.to_pylist()}
    assert by_user == {r["user_id"]: r for b in whole.users for r in b.to_pylist()}


def test_no_row_is_in_both_parts() -> None:
    found = block_of([("a", "x", 5.0, 1), ("a", "y", 1.0, 2), ("b", "x", 2.0, 3)])
    block, user = latest_of_each_pair(found, sorted_unique(found["user_id"]))
    for how in (SplitSettings(min_rating=3.0), SplitSettings("temporal", 0.5), SplitSettings("last", 1)):
        parts = split_rows(user_rows(block, user, how), how, 2)
        assert not (parts.train & parts.holdout).any()


def blocks_of_times(times: np.ndarray) -> list[pa.RecordBatch]:
    return [
        block_of([(f"u{start + i}", "x", 1.0, int(t)) for i, t in enumerate(times[start : start + 50])])
        for start in range(0, len(times), 50)
    ]


@pytest.mark.parametrize("sample_rows", [10_000, 2_000])
def test_find_cut_is_the_quantile_however_it_is_merged(sample_rows: int) -> None:
    times = np.random.default_rng(3).permutation(8_000)
    combine = FindCut(0.25, sample_rows)
    samples = [combine.add_input(combine.create_accumulator(), block) for block in blocks_of_times(times)]
    cut = combine.extract_output(combine.merge_accumulators(samples))
    one = combine.create_accumulator()
    for block in blocks_of_times(times):
        one = combine.add_input(one, block)
    assert cut == combine.extract_output(one)
    # The error of a quantile of a sample: sqrt(q (1 - q) / sample), five times over.
    assert cut == 6_000 if sample_rows >= len(times) else abs(cut - 6_000) < 5 * 8_000 * (0.1875 / sample_rows) ** 0.5


def test_find_cut_runs_in_a_pipeline() -> None:
    with TestPipeline("FnApiRunner") as pipeline:
        blocks = pipeline | beam.Create(blocks_of_times(np.arange(500)))
        assert_that(blocks | beam.CombineGlobally(FindCut(0.2)), equal_to([400]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "weekly"}, "split must be one of random, temporal, last, given, none, got 'weekly'"),
        ({"split": "random", "holdout": 1.0}, r"holdout must be between 0 and 1 .* got 1"),
        ({"split": "last", "holdout": 0.2}, r"whole number of items for --split last, got 0\.2"),
    ],
)
def test_bad_settings_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SplitSettings(**arguments)


@given(ROWS, st.sampled_from([None, 3, 9]))
def test_recent_counts_halve_with_every_half_life_before_the_end(rows: list[Row], cut: int | None) -> None:
    how = SplitSettings("none", 0) if cut is None else SplitSettings("temporal", 0.5)
    bucket = split_bucket([block_of(rows)], how, SplitTimes(cut, 6, 2.0))
    end = 6 if cut is None else cut
    expected: dict[str, float] = defaultdict(float)
    for history in deduplicated(rows, cut).values():
        for _, item, _, time in history:
            expected[item] += 0.5 ** ((end - time) / 2.0) if cut is None or time < cut else 0.0
    found = {r["item_id"]: r["recent_millionths"] / MILLION for b in bucket.item_counts for r in b.to_pylist()}
    assert found == pytest.approx(expected, abs=1e-4)


@given(st.lists(ROWS, max_size=3))
def test_find_latest_is_the_maximum_however_merged(blocks: list[list[Row]]) -> None:
    combine = FindLatest()
    merged = combine.merge_accumulators([combine.add_input(combine.create_accumulator(), block_of(rows)) for rows in blocks])
    assert combine.extract_output(merged) == max((row[3] for rows in blocks for row in rows), default=0)


def test_what_is_bought_again_after_the_cut_stays_in_training_and_is_nothing_to_find() -> None:
    rows: list[Row] = [("a", "x", 1.0, 1), ("a", "x", 5.0, 2), ("a", "x", 3.0, 9), ("a", "y", 4.0, 8), ("a", "y", 5.0, 9)]
    bucket = split_bucket([block_of(rows)], SplitSettings("temporal", 0.5), SplitTimes(5, 9, 1.0))
    assert [(r["item_id"], r["rating"]) for b in bucket.train for r in b.to_pylist()] == [("x", 5.0)]
    assert [(r["item_id"], r["rating"]) for b in bucket.holdout for r in b.to_pylist()] == [("y", 5.0)]
