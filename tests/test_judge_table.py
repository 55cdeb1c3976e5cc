"""Each way in which a table can be wrong is found and named; comparisons equal what loops over Python lists say."""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that
from hypothesis import given
from hypothesis import strategies as st

from schemas.blocks import Block
from schemas.embeddings import SHARD_ITEMS
from schemas.items import ITEMS
from schemas.topk import LONG, LONG_TOPK, RECOMMENDATION, TOPK
from schemas.users import USERS
from tests.made_index import item_lists
from transforms.evaluate.findings import FAULTS, LAST_LISTS, Findings
from transforms.evaluate.judge import BucketFiles, JudgeTable, last_lists, report
from transforms.evaluate.judge_bucket import Bucket, EligibleItems, KnownItems, TableRules, judge_bucket, num_left, rated
from transforms.io.partition import bucket_of, hash_ids
from transforms.io.write import write_part

K = 4
COUNTS = {"a": 9, "b": 7, "c": 7, "d": 5, "e": 3, "f": 1, "g": 1}
"""Training positives of the eligible items; 'unindexed' is in the catalogue, too."""
CATALOGUE = [*COUNTS, "unindexed"]

Row = dict[str, Any]


def user(user_id: str, history: str = "", excluded: str = "", below: str = "", holdout: str = "") -> Row:
    lists = {"history": history, "excluded": excluded, "below_min_rating": below, "holdout": holdout}
    return {"user_id": user_id} | {name: list(items) for name, items in lists.items()}


PEOPLE = [
    user("u0", history="ab", holdout="d"),
    user("u1", history="c", excluded="d", below="e", holdout="af"),
    user("u2"),
    user("u3", history="abcde", holdout="f"),
    user("u4", history="g", excluded="g", holdout="c"),
]


def items() -> KnownItems:
    ids = list(COUNTS)
    found = EligibleItems(hash_ids(pa.array(ids)), np.arange(len(ids)), np.array([COUNTS[each] for each in ids]))
    return KnownItems.of([hash_ids(pa.array(CATALOGUE))], [found])


def row(user_id: str, chosen: str, source: str = "personalised", first: float = 9.0) -> Row:
    pairs = [{"item_id": item, "score": first - at} for at, item in enumerate(chosen)]
    return {"user_id": user_id, "source": source, "history_length": 1, "recommendations": pairs}


def right_table() -> list[Row]:
    return [row("u0", "cdef"), row("u1", "abfg"), row("u2", "abcd", "popular"), row("u3", "fg"), row("u4", "fedc")]


def block_of(rows: list[Row]) -> Block:
    """Returns rows of TOPK, or what looks like it but for nulls."""
    pairs = pa.list_(pa.struct([field.with_nullable(True) for field in RECOMMENDATION]))
    types = {"user_id": pa.string(), "source": pa.string(), "history_length": pa.int32(), "recommendations": pairs}
    return pa.RecordBatch.from_arrays([pa.array([each[name] for each in rows], kind) for name, kind in types.items()], [*types])


def judged(rows: list[Row], people: list[Row] = PEOPLE, rules: TableRules | None = None, last: Block | None = None) -> Findings:
    empty = pa.RecordBatch.from_pylist([], LAST_LISTS)
    bucket = Bucket(0, pa.RecordBatch.from_pylist(people, USERS), empty if last is None else last)
    return judge_bucket(bucket, [[block_of(rows)]], items(), rules or TableRules(K, False, 1))


def test_a_right_table_has_no_faults_whatever_its_blocks_and_files() -> None:
    rows = right_table()
    whole = judged(rows)
    assert set(whole.faults.values()) == {0}
    assert whole.examples == {}
    assert whole.numbers == {"users": 5, "users_expected": 5, "pairs": 18, "lists_empty": 0, "lists_short": 0}
    bucket = Bucket(0, pa.RecordBatch.from_pylist(PEOPLE, USERS), pa.RecordBatch.from_pylist([], LAST_LISTS))
    files = [[block_of(rows[:1]), block_of(rows[1:3])], [block_of(rows[3:])]]
    assert judge_bucket(bucket, files, items(), TableRules(K, False, 1)).numbers == whole.numbers


def changed(at: int, **columns: Any) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [*rows[:at], rows[at] | columns, *rows[at + 1 :]]


def listed(at: int, rank: int, **fields: Any) -> Callable[[list[Row]], list[Row]]:
    def change(rows: list[Row]) -> list[Row]:
        pairs = rows[at]["recommendations"]
        return changed(at, recommendations=[*pairs[:rank], pairs[rank] | fields, *pairs[rank + 1 :]])(rows)

    return change


@pytest.mark.parametrize(
    ("damage", "faults", "example"),
    [
        (lambda rows: rows[:2] + rows[3:], {"users_once"}, "user 'u2'"),
        (lambda rows: [*rows[:3], *rows[2:]], {"users_once"}, "user 'u2'"),
        (lambda rows: [*rows, row("u9", "abcd")], {"users_once"}, "user 'u9'"),
        (changed(0, recommendations=right_table()[0]["recommendations"][:3]), {"list_length"}, "user 'u0'"),
        (changed(0, recommendations=row("u0", "cdefg")["recommendations"]), {"list_length"}, "user 'u0'"),
        (listed(0, 1, item_id="a"), {"seen"}, "user 'u0', item 'a'"),
        (listed(1, 1, item_id="e"), {"seen"}, "user 'u1', item 'e'"),
        (listed(1, 1, item_id="d"), {"excluded"}, "user 'u1', item 'd'"),
        (listed(2, 0, item_id="unindexed"), {"blocked"}, "user 'u2', item 'unindexed'"),
        (listed(2, 0, item_id="elsewhere"), {"catalogue"}, "user 'u2', item 'elsewhere'"),
        (listed(0, 3, item_id="c"), {"repeated_items"}, "user 'u0', item 'c'"),
        (listed(0, 3, score=math.nan), {"values"}, "user 'u0'"),
        (listed(0, 0, score=math.inf), {"values"}, "user 'u0'"),
        (listed(0, 1, score=None), {"values"}, "user 'u0'"),
        (listed(0, 1, item_id=None), {"values", "catalogue"}, "user 'u0'"),
        (changed(0, recommendations=None), {"values", "list_length"}, "user 'u0'"),
        (changed(0, source=None), {"values"}, "user 'u0'"),
        (changed(0, source="guessed"), {"values"}, "user 'u0'"),
        (changed(2, user_id=None), {"users_once", "values", "layout"}, "user ''"),
        (listed(0, 3, score=9.5), {"order"}, "user 'u0', item 'e'"),
        (listed(4, 1, score=9.0), {"order"}, "user 'u4', item 'f'"),
        (lambda rows: [rows[1], rows[0], *rows[2:]], {"layout"}, "user 'u0'"),
    ],
)
def test_each_fault_is_named_with_an_example(damage: Callable[[list[Row]], list[Row]], faults: set[str], example: str) -> None:
    found = judged(damage(right_table()))
    assert {name for name, count in found.faults.items() if count} == faults
    assert set(found.examples) == faults
    assert example in found.examples.values()
    assert faults <= FAULTS.keys()


def test_faults_count_users_and_of_two_examples_one_stays_whatever_the_order() -> None:
    first, second = (
        judged(listed(0, 0, item_id="a")(listed(0, 1, item_id="b")(right_table()))),
        judged(listed(4, 0, item_id="g")(right_table())),
    )
    assert first.faults["seen"] == second.faults["seen"] == 1
    sums = []
    for one, other in ((first, second), (second, first)):
        total = Findings.none(len(CATALOGUE))
        total.add(one)
        total.add(other)
        sums.append((total.faults["seen"], total.examples["seen"], total.numbers["pairs"]))
    assert sums == [(2, "user 'u0', item 'a'", 36)] * 2


def test_a_user_in_the_wrong_bucket_is_out_of_place() -> None:
    buckets = bucket_of(pa.array([each["user_id"] for each in PEOPLE]), 2)
    found = judged(right_table(), rules=TableRules(K, False, 2))
    assert found.faults["layout"] == int((buckets != 0).sum()) > 0


def test_what_was_seen_may_be_recommended_if_that_is_asked_for_but_not_what_is_excluded() -> None:
    rows = [row(each["user_id"], "abce" if each["user_id"] == "u1" else "abcd") for each in PEOPLE]
    found = judged(rows, rules=TableRules(K, True, 1))
    assert set(found.faults.values()) == {0}
    assert judged(listed(1, 3, item_id="d")(rows), rules=TableRules(K, True, 1)).faults["excluded"] == 1


LONG_RULES = TableRules(K, False, 1, layout=LONG)


def long_rows(rows: list[Row]) -> list[Row]:
    return [
        {**row, "rank": rank, **pair, "scored_at": None} for row in rows for rank, pair in enumerate(row["recommendations"], 1)
    ]


def judged_long(rows: list[Row], people: list[Row] = PEOPLE, rules: TableRules = LONG_RULES) -> Findings:
    columns = [pa.array([row[field.name] for row in rows], field.type) for field in LONG_TOPK]
    block = pa.RecordBatch.from_arrays(columns, LONG_TOPK.names)
    bucket = Bucket(0, pa.RecordBatch.from_pylist(people, USERS), pa.RecordBatch.from_pylist([], LAST_LISTS))
    return judge_bucket(bucket, [[block]] if rows else [[]], items(), rules)


def test_a_long_table_is_judged_like_a_nested_one() -> None:
    long, nested = judged_long(long_rows(right_table())), judged(right_table())
    assert long.faults == nested.faults
    assert long.numbers == nested.numbers
    assert long.gains.tolist() == nested.gains.tolist()
    assert long.listed.tolist() == nested.listed.tolist()


def test_in_a_long_table_only_a_user_for_whom_nothing_is_left_may_be_missing() -> None:
    people = [
        user("v0", history="abcd", excluded="e", below="fg"),
        user("v1", history="abcd", excluded="de", below="f"),
        user("v2", history="aabbccdd", below="efg"),
    ]
    found = judged_long([], people)
    assert (found.faults["users_once"], found.examples["users_once"]) == (1, "user 'v1'")
    assert (found.numbers["users"], found.numbers["users_expected"]) == (2, 3)
    seen_is_fine = judged_long([], people, TableRules(K, True, 1, layout=LONG))
    assert seen_is_fine.faults["users_once"] == 3


def test_missing_users_have_as_many_eligible_items_as_sets_say() -> None:
    eligible, people = set(COUNTS), pa.RecordBatch.from_pylist(PEOPLE, USERS)
    for seen in (False, True):
        names = ["excluded"] if seen else ["excluded", "history", "below_min_rating"]
        expected = [len(eligible - {item for name in names for item in each[name]}) for each in PEOPLE]
        assert num_left(people, items(), TableRules(K, seen, 1)).tolist() == expected


@pytest.mark.parametrize(
    ("at", "columns", "faults", "example"),
    [
        (1, {"rank": 3}, {"order"}, "user 'u0'"),
        (1, {"rank": None}, {"order"}, "user 'u0'"),
        (1, {"rank": 1}, {"order", "users_once", "list_length"}, "user 'u0'"),
        (5, {"source": "popular"}, {"values"}, "user 'u1'"),
        (5, {"history_length": 7}, {"values"}, "user 'u1'"),
        (5, {"scored_at": datetime(2026, 11, 24, tzinfo=UTC)}, {"values"}, "user 'u1'"),
        (5, {"item_id": None}, {"values", "catalogue"}, "user 'u1'"),
        (5, {"score": None}, {"values"}, "user 'u1'"),
        (1, {"item_id": "a"}, {"seen"}, "user 'u0', item 'a'"),
    ],
)
def test_each_fault_of_a_long_table_is_named(at: int, columns: Row, faults: set[str], example: str) -> None:
    rows = long_rows(right_table())
    found = judged_long([*rows[:at], rows[at] | columns, *rows[at + 1 :]])
    assert {name for name, count in found.faults.items() if count} >= faults
    assert {name for name, count in found.faults.items() if count} <= faults | {"list_length", "order"}
    assert example in found.examples.values()


def test_an_empty_catalogue_and_an_empty_table_are_no_faults() -> None:
    nothing = KnownItems.of([], [])
    bucket = Bucket(0, pa.RecordBatch.from_pylist([user("u")], USERS), pa.RecordBatch.from_pylist([], LAST_LISTS))
    found = judge_bucket(bucket, [[block_of([row("u", "")])]], nothing, TableRules(K, False, 1))
    assert set(found.faults.values()) == {0}
    made = report(None, nothing, TableRules(K, False, 1))["table"]
    assert (made["users"], made["overlap"], made["against_popularity"]["recall@4"]["mean"]) == (0, None, None)


def metrics_by_hand(chosen: list[str], holdout: set[str], k: int) -> tuple[float, float]:
    hits = [item in holdout for item in chosen]
    gain = sum(hit / math.log2(rank + 2) for rank, hit in enumerate(hits[:10]))
    return sum(hits) / len(holdout), gain / sum(1 / math.log2(rank + 2) for rank in range(min(10, k, len(holdout))))


@pytest.mark.parametrize("seed", range(5))
def test_popularity_is_compared_on_users_with_lists_of_their_own_user_by_user(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = [f"i{n:03d}" for n in range(60)]
    counts = rng.integers(0, 20, 60)
    indexed = [at for at in range(60) if at % 7]
    catalogue = KnownItems.of(
        [hash_ids(pa.array(ids))],
        [
            EligibleItems(hash_ids(pa.array([ids[at] for at in part])), np.array(part), counts[part])
            for part in (indexed[:20], indexed[20:])
        ],
    )
    by_popularity = [ids[at] for at in sorted(indexed, key=lambda at: (-counts[at], ids[at]))]
    people, rows, expected = [], [], []
    for n in range(40):
        mine = rng.permutation(ids).tolist()
        person = {"user_id": f"u{n:02d}", "history": mine[:9], "excluded": mine[7:12], "below_min_rating": mine[12:14]}
        people.append(person | {"holdout": mine[13 : 13 + int(rng.integers(0, 16))]})  # One that was seen before among them.
        unwanted = set(mine[:14])
        eligible = [each for each in by_popularity if each not in unwanted]
        chosen = rng.permutation(eligible)[:12].tolist()
        source = "personalised" if n % 5 else "popular"
        rows.append(
            row(person["user_id"], "", source)
            | {"recommendations": [{"item_id": each, "score": 1.0 - at} for at, each in enumerate(chosen)]}
        )
        if people[-1]["holdout"] and source == "personalised":
            holdout = set(people[-1]["holdout"])
            expected.append([metrics_by_hand(chosen, holdout, 12), metrics_by_hand(eligible[:12], holdout, 12)])
    rules = TableRules(12, False, 1)
    bucket = Bucket(0, pa.RecordBatch.from_pylist(people, USERS), pa.RecordBatch.from_pylist([], LAST_LISTS))
    findings = judge_bucket(bucket, [[block_of(rows[:25]), block_of(rows[25:])]], catalogue, rules)
    made = report(findings, catalogue, rules)["table"]
    assert set(made["faults"].values()) == {0}
    values = np.array(expected)  # [num_users, 2 (list, popularity), 2 (recall, NDCG)]
    for at, name in enumerate(("recall@12", "ndcg@10")):
        found = made["against_popularity"][name]
        assert found["users"] == len(values)
        assert found["mean"] == pytest.approx(values[:, 0, at].mean())
        assert found["popularity"] == pytest.approx(values[:, 1, at].mean())
        difference = values[:, 0, at] - values[:, 1, at]
        assert found["standard_error"] == pytest.approx(difference.std(ddof=1) / math.sqrt(len(values)))


@pytest.mark.parametrize("last_k", [2, K, 9])
def test_overlap_is_the_mean_jaccard_index_at_the_shorter_k(last_k: int) -> None:
    rows = right_table()
    before = [row("u0", "cdgf"), row("u1", "gfba"), row("u3", ""), row("gone", "abcd")]
    m = min(K, last_k)
    expected = []
    for old in before[:3]:
        now = next(each for each in rows if each["user_id"] == old["user_id"])
        one, other = ({pair["item_id"] for pair in each["recommendations"][:m]} for each in (now, old))
        expected.append(len(one & other) / len(one | other))
    rules = TableRules(K, False, 1, last_k)
    made = report(judged(rows, rules=rules, last=last_lists(block_of(before))), items(), rules)["table"]["overlap"]
    assert made["k"] == m
    assert made["users_in_both"] == 3
    assert made["users_changed"] == sum(value < 1 for value in expected)
    assert made["mean_jaccard"] == pytest.approx(np.mean(expected))


def write_buckets(root: Path, name: str, rows: list[Row], schema: pa.Schema, num_buckets: int) -> list[str]:
    block = pa.RecordBatch.from_pylist(rows, schema)
    buckets = bucket_of(block["user_id"], num_buckets)
    paths = []
    for bucket in np.unique(buckets):
        written = write_part(str(root), name, schema, int(bucket), [block.filter(pa.array(buckets == bucket))])
        paths.append(str(root / written.path))
    return paths


@pytest.mark.parametrize("last_buckets", [3, 2])
def test_a_whole_table_is_judged_from_its_files(tmp_path: Path, last_buckets: int) -> None:
    people = [user(f"u{n:02d}", history="ab"[: n % 3], holdout="cd"[: n % 2]) for n in range(30)]
    table = [row(each["user_id"], "".join(item for item in "abcdef" if item not in each["history"])[:K]) for each in people]
    table[7]["recommendations"][3]["item_id"] = "blocked"
    before = [row(f"u{n:02d}", "cdef") for n in range(10, 40)]
    catalogue = [
        {"item_id": each, "code": code, "train_count": 1, "recent_count": 1.0, "holdout_count": 0}
        for code, each in enumerate([*COUNTS, "blocked"])
    ]
    write_part(
        str(tmp_path), "items", ITEMS, 0, [pa.RecordBatch.from_pylist([each | {"title": None} for each in catalogue], ITEMS)]
    )
    indexed = pa.RecordBatch.from_pylist([{name: each[name] for name in SHARD_ITEMS.names} for each in catalogue], SHARD_ITEMS)
    write_part(str(tmp_path), "shard_items", SHARD_ITEMS, 0, [indexed])
    paths = {
        name: write_buckets(tmp_path, name, rows, kind, 3)
        for name, rows, kind in (("users", people, USERS), ("topk", table, TOPK))
    }
    last = write_buckets(tmp_path, "last", before, TOPK, last_buckets)
    people_then = [user(f"u{n:02d}", history="abc", below="d", holdout="b") for n in range(25, 40)] + [user("u00")]
    last_users = write_buckets(tmp_path, "last_users", people_then, USERS, last_buckets)
    same = last_buckets == 3
    buckets = {
        n: BucketFiles((users,), (topk,), (last[n],) if same else (), (last_users[n],) if same else ())
        for n, (users, topk) in enumerate(zip(paths["users"], paths["topk"], strict=True))
    }

    def check(made: list[dict[str, Any]]) -> None:
        (found,) = [each["table"] for each in made]
        assert {name for name, count in found["faults"].items() if count} == {"blocked"}
        assert found["examples"] == {"blocked": "user 'u07', item 'blocked'"}
        assert (found["users"], found["users_expected"], found["pairs"]) == (30, 30, 120)
        assert (found["items"], found["items_eligible"], found["items_listed"]) == (8, 7, 7)
        assert (found["overlap"]["users_in_both"], found["overlap"]["k"]) == (20, 4)
        sets = {each["user_id"]: {pair["item_id"] for pair in each["recommendations"]} for each in table[10:]}
        jaccards = [len(mine & set("cdef")) / len(mine | set("cdef")) for mine in sets.values()]
        assert found["overlap"]["mean_jaccard"] == pytest.approx(np.mean(jaccards))
        kept = [len({*each["history"], *each["holdout"]} & set("abcd")) / 4 for each in people[25:]]
        assert (found["histories"]["users_then"], found["histories"]["users_in_both"]) == (15, 5)
        assert found["histories"]["mean_kept"] == pytest.approx(np.mean(kept))

    with TestPipeline("FnApiRunner") as pipeline:
        made = pipeline | JudgeTable(
            buckets,
            [f"{tmp_path}/items/part-000000.parquet"],
            [f"{tmp_path}/shard_items/part-000000.parquet"],
            item_lists(tmp_path, [*COUNTS, "blocked"], block=["blocked"]),
            TableRules(K, False, 3, K, has_last_users=True),
            [] if same else last,
            [] if same else last_users,
        )
        assert_that(made, lambda found: check(list(found)))
    assert isinstance(made, beam.PCollection)


@given(
    st.lists(st.tuples(st.text("ab", max_size=3), st.text("ab", max_size=3), st.text("cd", max_size=3)), max_size=6),
    st.lists(st.tuples(st.text("abcd", max_size=4), st.text("ef", max_size=2)), max_size=6),
)
def test_what_is_kept_of_histories_is_what_sets_say(then: list[tuple[str, str, str]], now: list[tuple[str, str]]) -> None:
    before = [user(f"u{at}", *lists) for at, lists in enumerate(then)]
    people = [user(f"u{at + 2}", history=history, holdout=holdout) for at, (history, holdout) in enumerate(now)]
    users = pa.RecordBatch.from_pylist(people, USERS)
    empty = pa.RecordBatch.from_pylist([], LAST_LISTS)
    bucket = Bucket(0, users, empty, rated(pa.RecordBatch.from_pylist(before, USERS)))
    rules = TableRules(K, False, 1, has_last_users=True)
    found = report(judge_bucket(bucket, [], items(), rules), items(), rules)["table"]["histories"]

    def all_of(each: Row) -> set[str]:
        return {*each["history"], *each["below_min_rating"], *each["holdout"]}

    had = {each["user_id"]: all_of(each) for each in before if all_of(each)}
    have = {each["user_id"]: all_of(each) for each in people}
    shares = [len(rated_then & have[name]) / len(rated_then) for name, rated_then in had.items() if name in have]
    assert (found["users_then"], found["users_in_both"]) == (len(had), len(shares))
    assert found["mean_kept"] == pytest.approx(np.mean(shares) if shares else 0.0)


@pytest.mark.parametrize("layout", ["nested", "long"])
def test_empty_and_short_lists_are_counted_in_either_layout(layout: str) -> None:
    people = [*PEOPLE, user("u5", history="abcdefg"), user("u6", excluded="abcdefg")]
    people += [user("u7", history="abcdef"), user("u8", history="abcde")]
    rows = [*right_table(), row("u5", ""), row("u6", ""), row("u7", "g"), row("u8", "fg")]
    findings = judged_long(long_rows(rows), people) if layout == LONG else judged(rows, people)
    found = report(findings, items(), TableRules(K, False, 1, layout=layout))["table"]
    assert {name for name, count in found["faults"].items() if count} == set()
    assert (found["users"], found["lists_empty"], found["lists_short"]) == (9, 2, 3)
