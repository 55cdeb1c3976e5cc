"""Users that lists add, and what they exclude, against dicts."""

from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that
from hypothesis import given
from hypothesis import strategies as st

from schemas.blocks import Block
from schemas.interactions import EXCLUSIONS, SERVED_USERS
from schemas.users import USERS
from transforms.ingest.served_users import AddLists, add_lists
from transforms.io.partition import bucket_of
from transforms.io.write import write_part

NAMES = ["a", "b", "c", "0", "00", "é", "🙂"]


def rated_users(names: set[str]) -> list[dict]:
    return [
        {"user_id": name, "history": [f"{name}1"], "excluded": [], "below_min_rating": [f"{name}2"], "holdout": ["h"] * at}
        for at, name in enumerate(sorted(names, key=str.encode))
    ]


def served_block(served: list[str]) -> Block:
    return pa.RecordBatch.from_arrays([pa.array(served, pa.string())], schema=SERVED_USERS)


def pairs_block(pairs: list[tuple[str, str]]) -> Block:
    return pa.RecordBatch.from_arrays([pa.array([pair[at] for pair in pairs], pa.string()) for at in (0, 1)], schema=EXCLUSIONS)


def expected(rated: list[dict], served: list[str], pairs: list[tuple[str, str]]) -> list[dict]:
    nobody: dict[str, list[str]] = {"history": [], "below_min_rating": [], "holdout": []}
    every = {name: {"user_id": name, **nobody} for name in served} | {row["user_id"]: row for row in rated}
    return [
        {**row, "excluded": sorted(item for user, item in pairs if user == name)}
        for name, row in sorted(every.items(), key=lambda each: each[0].encode())
    ]


PAIRS = st.lists(st.tuples(st.sampled_from([*NAMES, "x"]), st.text("xyz")))


@given(st.sets(st.sampled_from(NAMES)), st.lists(st.sampled_from(NAMES)), PAIRS)
def test_served_users_and_exclusions_join_the_users(names: set[str], served: list[str], pairs: list[tuple[str, str]]) -> None:
    rated = rated_users(names)
    blocks = [pairs_block(pairs[1:]), served_block(served), pairs_block(pairs[:1])]
    users, counts = add_lists(pa.RecordBatch.from_pylist(rated, USERS), blocks)
    wanted = expected(rated, served, pairs)
    assert [{name: row[name] for name in wanted[at]} for at, row in enumerate(users.to_pylist())] == wanted
    assert users.num_rows == len(wanted)
    assert counts["users_without_ratings"] == len({*served} - names)
    assert counts["exclusions_of_unknown_users"] == sum(user not in {*served, *names} for user, _ in pairs)


@pytest.mark.parametrize("num_buckets", [1, 4])
def test_every_bucket_is_written_whoever_is_named(tmp_path: Path, num_buckets: int) -> None:
    rated, served, pairs = rated_users({"a", "b", "é"}), ["new", "a", "newer"], [("b", "y"), ("new", "x"), ("b", "x")]
    buckets = bucket_of(pa.array([row["user_id"] for row in rated]), num_buckets).tolist()
    paths = {}
    for bucket in set(buckets):
        rows = [row for row, its in zip(rated, buckets, strict=True) if its == bucket]
        written = write_part(str(tmp_path), "users", USERS, bucket, [pa.RecordBatch.from_pylist(rows, USERS)])
        paths[bucket] = f"{tmp_path}/{written.path}"

    def check(parts: list) -> None:
        rows = []
        for part, blocks in parts:
            users = [row for block in blocks for row in block.to_pylist()]
            ids = [row["user_id"] for row in users]
            assert ids == sorted(ids, key=str.encode)
            assert set(bucket_of(pa.array(ids), num_buckets).tolist()) == {part}
            rows += users
        assert sorted(rows, key=lambda row: row["user_id"].encode()) == expected(rated, served, pairs)

    with TestPipeline("FnApiRunner") as pipeline:
        lists = pipeline | beam.Create([served_block(served), pairs_block(pairs)]).with_output_types(Block)
        assert_that((lists | AddLists(paths, num_buckets)).users, lambda parts: check(list(parts)))
