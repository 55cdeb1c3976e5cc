"""Row rules, against a plain Python reading of each row; the transforms; the summary, merged and unmerged."""

import math
import re
from datetime import UTC, date, datetime
from decimal import Decimal

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st

from schemas.blocks import Block
from schemas.errors import InputError
from schemas.interactions import VALID
from schemas.rejected import REJECTED
from transforms.ingest.rejects import MergeSummaries, check_rejected, merge_summaries, rejected_block, summarise_rejected
from transforms.ingest.validate import RatingRules, RawBlocks, ValidateItems, ValidateRatings, validate_items, validate_ratings
from transforms.ingest.values import LAST_SECOND, as_text


def raw(source: str = "ratings.csv", start: int = 0, **columns) -> Block:
    """A raw block; user_id and item_id are made up where they are not given."""
    arrays = {name: values if isinstance(values, pa.Array) else pa.array(values) for name, values in columns.items()}
    rows = len(next(iter(arrays.values())))
    for name in ("user_id", "item_id"):
        arrays.setdefault(name, pa.array([f"{name[0]}{row}" for row in range(rows)]))
    arrays["position"] = pa.array(range(start, start + rows), pa.int64())
    arrays["source"] = pa.array([source] * rows).dictionary_encode()
    return pa.RecordBatch.from_pydict(arrays)


def verdicts(block: Block, rules: RatingRules | None = None) -> list[str | None]:
    """The reason of each row, None where it is valid; checks that every row is in one of the two blocks, in order."""
    valid, rejected = validate_ratings(block, rules or RatingRules())
    assert valid.schema.equals(VALID, check_metadata=True)
    assert rejected.schema.equals(REJECTED, check_metadata=True)
    for part in (valid, rejected):
        part.validate(full=True)
        assert part["position"].to_pylist() == sorted(part["position"].to_pylist())
    reasons = dict.fromkeys(valid["position"].to_pylist())
    reasons |= dict(zip(rejected["position"].to_pylist(), rejected["reason"].to_pylist(), strict=True))
    assert len(reasons) == block.num_rows == valid.num_rows + rejected.num_rows
    return [reasons[position] for position in block["position"].to_pylist()]


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (["007", " a ", "é😀\n", None], ["007", " a ", "é😀\n", None]),
        (pa.array([2**63, 0, None], pa.uint64()), ["9223372036854775808", "0", None]),
        (pa.array([-(2**63), 9007199254740993]), ["-9223372036854775808", "9007199254740993"]),
        ([1.0, -0.0, 4.5, 2.0**53, None], ["1", "0", "4.5", "9007199254740992", None]),
        (pa.array([3.0, None], pa.float32()), ["3", None]),
        (pa.array(np.array([2.0], np.float16)), ["2"]),
        ([Decimal("12"), None], ["12", None]),
        (pa.array(["x"], pa.large_string()), ["x"]),
        (pa.array(["x"], pa.string_view()), ["x"]),
        ([date(2020, 1, 2)], ["2020-01-02"]),
        ([True], ["true"]),
        (pa.nulls(2), [None, None]),
        ([[1, 2]], ["[1, 2]"]),
    ],
)
def test_ids_of_any_type_become_the_text_a_person_would_write(values, texts):
    assert as_text(values if isinstance(values, pa.Array) else pa.array(values)).to_pylist() == texts


def test_floats_that_are_no_integers_stay_what_they_are():
    texts = as_text(pa.array([1e300, math.inf, math.nan])).to_pylist()
    assert [float(text) for text in texts[:2]] == [1e300, math.inf]
    assert texts[2] == "nan"


def test_ids_survive_and_missing_ones_are_rejected():
    ids = ["0002844", "x" * 10_000, " a", "a\nb", '"q"', "😀", None, "", "  ", "\t\n", "\u00a0\u2003"]
    block = raw(user_id=ids)
    assert verdicts(block) == [None] * 6 + ["user_id is missing"] * 5
    assert validate_ratings(block, RatingRules())[0]["user_id"].to_pylist() == ids[:6]
    assert verdicts(raw(item_id=["", "i"])) == ["item_id is missing", None]
    assert verdicts(raw(user_id=[1.0, math.nan, None])) == [None, "user_id is missing", "user_id is missing"]
    assert verdicts(raw(user_id=pa.nulls(1))) == ["user_id is missing"]
    assert verdicts(raw(user_id=pa.array(["a", " "]).slice(1))) == ["user_id is missing"]


RATINGS = [
    ("4.5", 4.5),
    (" 4.5 ", 4.5),
    ("+1e1", 10.0),
    ("-0", 0.0),
    ("five", "rating is not a number"),
    ("4,5", "rating is not a number"),
    ("1_0", "rating is not a number"),
    ("", "rating is not a number"),
    (None, "rating is missing"),
    ("nan", "rating is NaN or infinite"),
    ("-inf", "rating is NaN or infinite"),
    ("1e39", "rating is NaN or infinite"),
    ("11", "rating is out of range"),
    ("-0.5", "rating is out of range"),
]


def test_ratings_in_text():
    rules = RatingRules(rating_range=(0, 10))
    texts = [text for text, _ in RATINGS]
    expected = [reason if isinstance(reason, str) else None for _, reason in RATINGS]
    assert verdicts(raw(rating=texts), rules) == expected
    for text, reason in RATINGS:  # Alone, where no value sends the others down the slow path.
        assert verdicts(raw(rating=pa.array([text], pa.string())), rules) == [reason if isinstance(reason, str) else None]
    valid, rejected = validate_ratings(raw(rating=texts), rules)
    assert valid["rating"].to_pylist() == [value for _, value in RATINGS if not isinstance(value, str)]
    assert rejected["rating"].to_pylist() == [text for text, value in RATINGS if isinstance(value, str)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([1, None], pa.uint8()), [None, "rating is missing"]),
        (pa.array([1.5, math.nan, math.inf, None]), [None, *["rating is NaN or infinite"] * 2, "rating is missing"]),
        (pa.array([True, False]), [None, None]),
        (pa.array([Decimal("4.5"), None]), [None, "rating is missing"]),
        (pa.array([date(2020, 1, 1), None]), ["rating is not a number", "rating is missing"]),
        (pa.nulls(1), ["rating is missing"]),
    ],
)
def test_ratings_of_other_types(values, expected):
    assert verdicts(raw(rating=values)) == expected


def test_a_range_includes_its_ends():
    block = raw(rating=["0.1", "0.0999", "5", "5.0001"])
    out = "rating is out of range"
    assert verdicts(block, RatingRules(rating_range=(0.1, 5))) == [None, out, None, out]


TIMES = [
    ("881250949", 881250949),
    ("0", 0),
    (" 881250949.9 ", 881250949),
    ("8.8e8", 880000000),
    (str(LAST_SECOND), LAST_SECOND),
    ("1997-12-04T15:55:49", 881250949),
    ("1997-12-04 15:55:49.5", 881250949),
    ("1997-12-04T15:55:49Z", 881250949),
    ("1997-12-04T17:55:49+02:00", 881250949),
    ("1997-12-04", 881193600),
    (None, "timestamp is missing"),
    ("yesterday", "timestamp is not a time"),
    ("nan", "timestamp is not a time"),
    ("inf", "timestamp is not a time"),
    ("", "timestamp is not a time"),
    ("-1", "timestamp is out of range"),
    ("1969-12-31", "timestamp is out of range"),
    ("2100-01-01T00:00:01", "timestamp is out of range"),
    ("0001-01-01", "timestamp is out of range"),
    ("9" * 30, "timestamp is out of range"),
    ("881250949000", "timestamp looks like milliseconds"),
    (str(LAST_SECOND + 1), "timestamp looks like milliseconds"),
    ("881250949000000", "timestamp looks like microseconds"),
    ("881250949000000000", "timestamp looks like nanoseconds"),
]


def test_times_in_text():
    texts = [text for text, _ in TIMES]
    expected = [value if isinstance(value, str) else None for _, value in TIMES]
    assert verdicts(raw(timestamp=texts)) == expected
    valid, rejected = validate_ratings(raw(timestamp=texts), RatingRules())
    assert valid["timestamp"].to_pylist() == [value for _, value in TIMES if not isinstance(value, str)]
    assert rejected["timestamp"].to_pylist() == [text for text, value in TIMES if isinstance(value, str)]
    for text, value in TIMES:
        block = raw(timestamp=pa.array([text], pa.string()))
        assert verdicts(block) == [value if isinstance(value, str) else None], text
        if isinstance(value, int):
            assert validate_ratings(block, RatingRules())[0]["timestamp"].to_pylist() == [value]


MOMENT = datetime(1997, 12, 4, 15, 55, 49, 999_999)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([881250949, None], pa.int32()), [881250949, "timestamp is missing"]),
        (pa.array([2**64 - 1, 5], pa.uint64()), ["timestamp is out of range", 5]),
        (pa.array([881250949.9, math.nan, math.inf]), [881250949, "timestamp is missing", "timestamp is out of range"]),
        (pa.array([Decimal("881250949.5")]), [881250949]),
        (pa.array([MOMENT, None], pa.timestamp("us")), [881250949, "timestamp is missing"]),
        (pa.array([MOMENT], pa.timestamp("ns", "Europe/Paris")), [881250949]),
        (pa.array([datetime(1969, 12, 31)], pa.timestamp("s")), ["timestamp is out of range"]),
        (pa.array([date(1997, 12, 4)], pa.date32()), [881193600]),
        (pa.array([date(1997, 12, 4)], pa.date64()), [881193600]),
        (pa.array([True]), ["timestamp is not a time"]),
        (pa.nulls(1), ["timestamp is missing"]),
    ],
)
def test_times_of_other_types(values, expected):
    block = raw(timestamp=values)
    assert verdicts(block) == [value if isinstance(value, str) else None for value in expected]
    valid, _ = validate_ratings(block, RatingRules())
    assert valid["timestamp"].to_pylist() == [value for value in expected if isinstance(value, int)]


@pytest.mark.parametrize(("unit", "scale"), [("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_units(unit, scale):
    rules = RatingRules(timestamp_unit=unit)
    block = raw(timestamp=[881250949 * scale + scale - 1, -1])
    assert verdicts(block, rules) == [None, "timestamp is out of range"]
    assert validate_ratings(block, rules)[0]["timestamp"].to_pylist() == [881250949]
    mixed = raw(timestamp=[str(881250949 * scale + scale - 1), "1997-12-04T15:55:49Z"])
    assert validate_ratings(mixed, rules)[0]["timestamp"].to_pylist() == [881250949] * 2


def test_a_finer_unit_than_the_one_given_is_recognised():
    assert verdicts(raw(timestamp=[881250949 * 10**6]), RatingRules(timestamp_unit="ms")) == [
        "timestamp looks like microseconds"
    ]


def test_the_first_broken_rule_is_the_reason_and_a_source_may_lack_optional_columns():
    block = raw(user_id=["", "u"], rating=["x", "x"], timestamp=[None, "-1"])
    assert verdicts(block) == ["user_id is missing", "rating is not a number"]
    valid, rejected = validate_ratings(raw(user_id=["u"]), RatingRules())
    assert valid["rating"].to_pylist() == valid["timestamp"].to_pylist() == [None]
    assert rejected.num_rows == 0


TEXTS = st.one_of(st.none(), st.text(max_size=8), st.from_regex(r"[-+0-9.eEinfa:TZ]{0,25}", fullmatch=True))
VALUES = st.one_of(
    st.lists(TEXTS, min_size=1, max_size=6).map(lambda values: pa.array(values, pa.string())),
    st.lists(st.one_of(st.none(), st.floats()), min_size=1, max_size=6).map(lambda values: pa.array(values, pa.float64())),
    st.lists(st.one_of(st.none(), st.integers(0, 2**64 - 1)), min_size=1, max_size=6).map(lambda v: pa.array(v, pa.uint64())),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=6).map(
        lambda values: pa.array(values, pa.int64()).cast(pa.timestamp("ns"))
    ),
)


@given(VALUES, st.sampled_from(["user_id", "rating", "timestamp"]), st.sampled_from(["s", "ns"]))
def test_no_value_raises_and_rows_are_judged_alone(values, column, unit):
    rules = RatingRules(timestamp_unit=unit)
    together = verdicts(raw(**{column: values}), rules)
    assert [verdicts(raw(**{column: values.slice(row, 1)}), rules)[0] for row in range(len(values))] == together


@given(st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=8))
def test_numbers_in_text_are_what_python_reads(numbers):
    valid, _ = validate_ratings(raw(rating=[repr(number) for number in numbers]), RatingRules())
    assert valid["rating"].to_pylist() == [number for number in numbers if math.isfinite(number)]


@given(st.lists(st.datetimes(datetime(1970, 1, 1), datetime(2099, 12, 31)), min_size=1, max_size=5), st.booleans())
def test_iso_times_are_what_python_reads(times, spaced):
    texts = [time.isoformat(" " if spaced else "T") for time in times]
    valid, _ = validate_ratings(raw(timestamp=texts), RatingRules())
    assert valid["timestamp"].to_pylist() == [math.floor(time.replace(tzinfo=UTC).timestamp()) for time in times]


def test_items():
    block = raw(item_id=["i1", None, "i3"], title=["A", "B", None], genre=[["x"], [], None]).drop_columns(["user_id"])
    items, rejected = validate_items(block)
    assert items.to_pydict() == {"item_id": ["i1", "i3"], "title": ["A", None], "position": [0, 2], "genre": [["x"], None]}
    assert rejected.select(["dataset", "reason", "source", "position"]).to_pylist() == [
        {"dataset": "items", "reason": "item_id is missing", "source": "ratings.csv", "position": 1}
    ]
    untitled, _ = validate_items(raw(item_id=[7]).drop_columns(["user_id"]))
    assert untitled.to_pydict() == {"item_id": ["7"], "title": [None], "position": [0]}
    assert untitled.schema.field("title").type == pa.string()


def summaries() -> list:
    blocks = [
        raw(start=100, rating=["x", "2", "y"]),
        raw(start=0, user_id=["u", ""], rating=["z", "1"]),
        raw(start=50, rating=["1"]),
    ]
    return [summarise_rejected(block.num_rows, validate_ratings(block, RatingRules())[1]) for block in blocks]


def test_summaries_do_not_depend_on_grouping_or_order():
    one, two, three = summaries()
    expected = {
        "rows": 6,
        "reasons": {
            "rating is not a number": {
                "count": 3,
                "position": 0,
                "source": "ratings.csv",
                "example": {"user_id": "u", "item_id": "i0", "rating": "z"},
            },
            "user_id is missing": {
                "count": 1,
                "position": 1,
                "source": "ratings.csv",
                "example": {"user_id": "", "item_id": "i1", "rating": "1"},
            },
        },
    }
    combine = MergeSummaries()

    def combined(*parts):
        accumulator = combine.create_accumulator()
        for part in parts:
            accumulator = combine.add_input(accumulator, part)
        return accumulator

    assert combine.extract_output(combined(one, two, three)) == expected
    assert combine.extract_output(combine.merge_accumulators([combined(three), combined(), combined(two, one)])) == expected
    assert merge_summaries(summaries()) == expected
    assert summaries() == [one, two, three]  # Nothing was changed on the way.


def message(summary, fraction=0.01, dataset="ratings") -> str:
    with pytest.raises(InputError) as error:
        check_rejected(summary, fraction, dataset)
    return str(error.value)


def test_a_bearable_share_of_rejected_rows_is_borne():
    summary = merge_summaries(summaries())
    check_rejected(summary, 0.7)
    check_rejected({"rows": 1, "reasons": {}}, 0)
    text = message(summary, 0.6)
    assert text.startswith(
        "4 of 6 rows of the ratings were rejected: rating is not a number (3), user_id is missing (1); for example"
    )
    assert "user_id='u', item_id='i0', rating='z' in ratings.csv" in text
    assert "--columns rating=NAME" in text
    assert text.endswith("or raise --max_rejected_fraction (now 0.6)")


@pytest.mark.parametrize(
    ("reason", "repair"),
    [
        (
            "timestamp is not a time",
            "write times as Unix seconds, or as 2026-01-31 09:30:00, or name the right column with --columns",
        ),
        ("rating is not a number", "write numbers with a point, as 3.5, or name the right column with --columns rating=NAME"),
        ("user_id is missing", "check that --columns user_id=NAME names the right column"),
    ],
)
def test_the_repair_fits_the_commonest_reason(reason, repair):
    found = {"count": 9, "position": 0, "source": "r.csv", "example": {"timestamp": "03/01/2013"}}
    assert repair in message({"rows": 10, "reasons": {reason: found}})


def test_large_numbers_of_rejected_rows_are_grouped():
    reason = {"count": 135_080, "position": 0, "source": "r.csv", "example": {"item_id": "i"}}
    text = message({"rows": 541_909, "reasons": {"user_id is missing": reason}})
    assert text.startswith("135,080 of 541,909 rows of the ratings were rejected: user_id is missing (135,080); for example")


def test_nothing_left_is_refused_whatever_the_fraction():
    assert "hold no rows" in message({"rows": 0, "reasons": {}}, 1)
    block = raw(timestamp=[881250949000, 881250949001])
    text = message(summarise_rejected(2, validate_ratings(block, RatingRules())[1]), 1)
    assert "timestamp looks like milliseconds (2)" in text
    assert "pass --timestamp_unit ms" in text
    assert "max_rejected_fraction" not in text


@pytest.mark.parametrize(
    ("block", "repair"),
    [
        (raw(rating=[9]), "--rating_range"),
        (raw(timestamp=[10**15]), "--timestamp_unit us"),
        (raw(timestamp=[10**18]), "--timestamp_unit ns"),
        (raw(user_id=[None]), "--columns user_id=NAME"),
    ],
)
def test_each_reason_has_its_repair(block, repair):
    rejected = validate_ratings(block, RatingRules(rating_range=(1, 5)))[1]
    assert repair in message(summarise_rejected(1, rejected))


def test_repairs_of_items_and_of_lines():
    rows = {"source": pa.array(["f"]), "position": pa.array([3]), "text": pa.array(["x" * 1000])}
    text = message(
        summarise_rejected(1, rejected_block("items", pa.array(["line has the wrong number of columns"]), rows)), 0, "items"
    )
    assert "correct the lines" in text
    assert len(text) < 400
    bytes_ = rejected_block("ratings", pa.array(["id is not UTF-8 text"]), {**rows, "user_id": pa.array(["a\ufffd"])})
    assert "convert the file to UTF-8" in message(summarise_rejected(1, bytes_))
    missing = validate_items(raw(item_id=[None]).drop_columns(["user_id"]))[1]
    assert "--item_columns item_id=NAME" in message(summarise_rejected(1, missing), 0, "items")


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"timestamp_unit": "h"}, "--timestamp_unit must be one of s, ms, us, ns, got 'h'"),
        ({"rating_range": (5, 1)}, "--rating_range must be two finite numbers"),
        ({"rating_range": (math.nan, 1)}, "--rating_range must be two finite numbers"),
    ],
)
def test_rules_that_make_no_sense(arguments, rule):
    with pytest.raises(InputError, match=re.escape(rule)):
        RatingRules(**arguments)


def counted(result) -> dict[str, int]:
    return {counter.key.metric.name: counter.committed for counter in result.metrics().query()["counters"]}


def test_validate_ratings_keeps_every_row_and_counts_it():
    malformed = rejected_block(
        "ratings",
        pa.array(["line has the wrong number of columns"]),
        {"source": pa.array(["f"]), "position": pa.array([9]), "text": pa.array(["a,b,c"])},
    )
    pipeline = TestPipeline("FnApiRunner")
    blocks = pipeline | "Blocks" >> beam.Create([raw(rating=["1", "x"]), raw(start=2, rating=["2"])])
    lines = pipeline | "Lines" >> beam.Create([malformed])
    checked = RawBlocks(blocks, lines) | ValidateRatings(RatingRules())
    assert checked.valid.element_type == checked.rejected.element_type == Block
    assert_that(checked.valid | beam.FlatMap(lambda block: block["rating"].to_pylist()), equal_to([1.0, 2.0]), "Valid")
    reasons = checked.rejected | "Reasons" >> beam.FlatMap(lambda block: block["reason"].to_pylist())
    assert_that(reasons, equal_to(["rating is not a number", "line has the wrong number of columns"]), "Rejected")
    totals = checked.summary | beam.Map(lambda summary: (summary["rows"], len(summary["reasons"])))
    assert_that(totals, equal_to([(4, 2)]), "Summary")
    result = pipeline.run()
    result.wait_until_finish()
    assert counted(result) == {
        "valid": 2,
        "rejected: rating is not a number": 1,
        "rejected: line has the wrong number of columns": 1,
    }


def test_validate_items_of_nothing_still_has_a_summary():
    with TestPipeline("FnApiRunner") as pipeline:
        empty = pipeline | beam.Create([], reshuffle=False).with_output_types(Block)
        checked = RawBlocks(empty, empty) | ValidateItems()
        assert_that(checked.summary, equal_to([{"rows": 0, "reasons": {}}]))
