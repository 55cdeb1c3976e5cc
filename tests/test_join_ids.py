"""Joins of ids against sets."""

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that
from hypothesis import given
from hypothesis import strategies as st

from schemas.blocks import Block
from transforms.ingest.join_ids import (
    JOINED,
    OTHERS,
    SAMPLE_IDS,
    JoinIds,
    MergeJoined,
    find_spellings,
    in_words,
    join_ids,
    nothing_joins,
    plain_spelling,
    repair_of,
)

IDS = st.lists(st.sampled_from(["1", "1.0", " 1", "01", "a", "A", "é", "", "x" * 200]))


def array_of(ids: list[str]) -> pa.Array:
    return pa.array(ids, pa.string())


@given(IDS, IDS)
def test_counts_are_those_of_sets(ids: list[str], others: list[str]) -> None:
    found = join_ids(array_of(ids), array_of(others))
    assert (found.ids, found.known) == (len({*ids}), len({*ids} & {*others}))
    assert {*found.unknown} == {*ids} - {*others}
    assert {*found.others} <= {*others} - {*ids}


@given(st.sets(st.integers(0, 400), max_size=300), st.sets(st.integers(0, 400), max_size=300), st.integers(1, 5))
def test_disjoint_parts_add_up_in_any_order(ids: set[int], others: set[int], num_parts: int) -> None:
    parts = [
        {"x": join_ids(*(array_of([str(each) for each in side if each % num_parts == part]) for side in (ids, others)))}
        for part in range(num_parts)
    ]
    combine = MergeJoined()
    merged = combine.merge_accumulators([combine.add_input(combine.create_accumulator(), part) for part in parts])
    assert combine.extract_output(merged) == combine.merge_accumulators(parts[::-1])
    whole = join_ids(array_of([*map(str, ids)]), array_of([*map(str, others)]))
    assert merged["x"] == whole
    assert len(whole.unknown) == min(SAMPLE_IDS, len(ids - others))


@pytest.mark.parametrize(
    ("one", "other", "repair"),
    [
        ("1.0", "1", "write whole numbers without .0"),
        (" 1", "1", "remove the spaces"),
        ("ab\u00a0", "ab", "remove the spaces"),
        ("SKU-1", "sku-1", "in the same case"),
        ("0007", "7", "the same way in both"),
        ("0.0", "0", "write whole numbers without .0"),
    ],
)
def test_two_spellings_of_an_id_are_seen_as_such(one: str, other: str, repair: str) -> None:
    assert plain_spelling(array_of([one])) == plain_spelling(array_of([other]))
    assert find_spellings(array_of(["z", other]), ["q", one]) == [(one, other)]
    assert repair in repair_of(one, other)
    assert repair in repair_of(other, one)


def test_ids_that_are_others_are_not_taken_for_spellings() -> None:
    ids = ["1", "10", "100", "1.5", "a b", "ab", "é", "e", "v1.0x"]
    assert len(plain_spelling(array_of(ids)).unique()) == len(ids)


@pytest.mark.parametrize("num_partitions", [1, 3])
def test_sets_are_joined_by_name(num_partitions: int) -> None:
    sets = {
        "rated": ["1.0", "2.0", "1.0", "3"],
        "new": ["n", "1"],
        "pairs": ["n", "1", "1", "nobody"],
        "empty": [],
        OTHERS: ["1", "2", "3", "4"],
    }

    def check(found: list[dict]) -> None:
        (joined,) = [each[JOINED] for each in found]
        counts = {name: (each["ids"], each["known"], each["spelled_otherwise"]) for name, each in joined.items()}
        assert counts == {"rated": (3, 1, 2), "new": (2, 1, 0), "pairs": (3, 2, 0), "empty": (0, 0, 0)}
        assert joined["rated"]["spellings"] == [["1.0", "1"], ["2.0", "2"]]
        assert joined["rated"]["share"] == 1 / 3
        assert joined["empty"]["share"] is None
        words = in_words(joined["rated"])
        assert "1 of 3 ids is known (33.3 %)" in words
        assert "2 of 2 unknown ids that were looked at differ in spelling alone, such as '1.0' and '1'" in words

    with TestPipeline("FnApiRunner") as pipeline:
        blocks = {
            name: pipeline
            | name
            >> beam.Create(
                [pa.RecordBatch.from_pydict({"id": array_of(part), "more": part}) for part in (ids[:2], ids[2:]) if part]
            ).with_output_types(Block)
            for name, ids in sets.items()
        }
        found = blocks | JoinIds("id", num_partitions, {"pairs": "new"})
        assert_that(found, lambda found: check(list(found)))


def test_an_error_shows_an_id_of_either_side_and_the_likely_repair() -> None:
    spelled = join_ids(array_of(["1.0", "9.0"]), array_of(["1", "2"])).metric([("1.0", "1")])
    assert nothing_joins(spelled, "ids", "the catalogue", "look") == (
        "none of the 2 ids is in the catalogue: they are such as '1.0', the catalogue has '1': write whole numbers without .0 "
        "(pandas makes integers with gaps into floats: astype('Int64') or str)"
    )
    other = join_ids(array_of(["a\n\x1b[1m"]), array_of(["1"])).metric([])
    assert nothing_joins(other, "ids", "the catalogue", "look") == (
        "the only one of the ids, 'a\\n\\x1b[1m', is not in the catalogue, the catalogue has '1': look"
    )
