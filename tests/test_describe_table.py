"""A table is described as plain Python counts it, however it is cut, and the same table always alike."""

from collections import Counter
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.items import ITEMS
from schemas.topk import LONG_TOPK, TOPK
from schemas.users import USERS
from transforms.evaluate import describe_table
from transforms.evaluate.describe_table import DATASETS, NUM_SHOWN, NUM_TOP_ITEMS, DescribeTable
from transforms.io.partition import bucket_of, hash_ids
from transforms.io.write import write_part
from transforms.lists.table import one_row_a_rank

ITEM_IDS = [f"i{number:03d}" for number in range(60)]
USER_IDS = [f"u{number}" for number in range(150)]
NUM_BUCKETS = 3


class Made:
    """A table of random lists, its users and its catalogue, in memory and in files."""

    def __init__(self, root: Path, rows_a_block: int) -> None:
        rng = np.random.default_rng(5)
        self.counts = {item: int(rng.integers(0, 9)) for item in ITEM_IDS}
        self.titles = {item: None if rng.random() < 0.2 else f"title of {item}" for item in ITEM_IDS}
        self.rows: dict[str, dict] = {}
        self.users: dict[str, dict] = {}
        for user in USER_IDS:
            # The last ten items are in no list.
            listed = rng.choice(ITEM_IDS[:50], int(rng.integers(0, 15)), replace=False).tolist()
            history = rng.choice(ITEM_IDS, int(rng.integers(0, 20)), replace=False).tolist()
            source = "personalised" if history else "popular"
            pairs = [{"item_id": item, "score": float(-rank)} for rank, item in enumerate(listed)]
            row = {"user_id": user, "source": source, "history_length": len(history), "recommendations": pairs}
            known = {"user_id": user, "history": history, "holdout": listed[::3], "excluded": [], "below_min_rating": []}
            self.rows[user], self.users[user] = row, known
        items = [
            {
                "item_id": item,
                "code": code,
                "title": self.titles[item],
                "train_count": self.counts[item],
                "recent_count": 0.0,
                "holdout_count": 0,
            }
            for code, item in enumerate(ITEM_IDS)
        ]
        self.table, self.by_bucket = [], {}
        for bucket in range(NUM_BUCKETS):
            mine = sorted(user for user in USER_IDS if bucket_of(pa.array([user]), NUM_BUCKETS)[0] == bucket)
            self.table.append(write(root, "topk", TOPK, bucket, [self.rows[user] for user in mine], rows_a_block))
            self.by_bucket[bucket] = [write(root, "users", USERS, bucket, [self.users[user] for user in mine], rows_a_block)]
        self.items = [write(root, "items", ITEMS, 0, items, 7 * rows_a_block)]

    def describe(self, root: Path, num_examples: int) -> dict[str, list[dict]]:
        """Returns the rows of each dataset."""
        with beam.Pipeline("FnApiRunner") as p:
            _ = p | DescribeTable(str(root), self.table, self.items, len(ITEM_IDS), self.by_bucket, NUM_BUCKETS, num_examples)
        return {name: pq.read_table(root / name / "part-000000.parquet").to_pylist() for name in DATASETS}


def write(root: Path, folder: str, schema: pa.Schema, part: int, rows: list[dict], rows_a_block: int) -> str:
    blocks = [pa.RecordBatch.from_pylist(rows[at : at + rows_a_block], schema) for at in range(0, len(rows), rows_a_block)]
    return str(root / write_part(str(root), folder, schema, part, blocks).path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made"), rows_a_block=11)


@pytest.fixture(scope="module")
def described(made: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(describe_table, "_ITEMS_A_PARTITION", 13)  # Several partitions.
        return made.describe(tmp_path_factory.mktemp("described"), num_examples=4)


def listings_of(made: Made) -> Counter[str]:
    return Counter(pair["item_id"] for row in made.rows.values() for pair in row["recommendations"])


def test_items_are_counted_by_popularity_and_by_listings(made: Made, described: dict[str, list[dict]]) -> None:
    listings = listings_of(made)
    by_popularity = [
        {
            "train_count": count,
            "items": sum(each == count for each in made.counts.values()),
            "listings": sum(listings[item] for item in ITEM_IDS if made.counts[item] == count),
        }
        for count in sorted(set(made.counts.values()))
    ]
    assert described["items_by_popularity"] == by_popularity
    spread = Counter(listings[item] for item in ITEM_IDS)
    assert spread[0] >= 10
    assert described["items_by_listings"] == [{"listings": each, "items": spread[each]} for each in sorted(spread)]


def test_the_top_items_have_their_titles(made: Made, described: dict[str, list[dict]]) -> None:
    listings = listings_of(made)
    first = sorted(listings, key=lambda item: (-listings[item], item))[:NUM_TOP_ITEMS]
    assert described["top_items"] == [
        {"item_id": item, "title": made.titles[item], "train_count": made.counts[item], "listings": listings[item]}
        for item in first
    ]


def test_users_are_counted_by_history(made: Made, described: dict[str, list[dict]]) -> None:
    counted = Counter((row["history_length"], row["source"]) for row in made.rows.values())
    assert described["users_by_history"] == [
        {"history_length": length, "source": source, "users": counted[length, source]} for length, source in sorted(counted)
    ]


def test_examples_are_the_users_with_the_lowest_hashes(made: Made, described: dict[str, list[dict]]) -> None:
    hashes = dict(zip(USER_IDS, hash_ids(pa.array(USER_IDS), seed=5).tolist(), strict=True))
    chosen = sorted(USER_IDS, key=hashes.__getitem__)[:4]
    assert [row["user_id"] for row in described["example_users"]] == chosen
    for row in described["example_users"]:
        user, listed = made.users[row["user_id"]], made.rows[row["user_id"]]["recommendations"]
        assert row["history_length"] == len(user["history"])
        assert row["held_out"] == len(user["holdout"])
        assert row["history"] == [{"item_id": item, "title": made.titles[item]} for item in user["history"][::-1][:NUM_SHOWN]]
        assert row["recommendations"] == [
            {**pair, "title": made.titles[pair["item_id"]], "is_held_out": pair["item_id"] in user["holdout"]}
            for pair in listed[:NUM_SHOWN]
        ]


def test_how_the_table_is_cut_changes_no_byte(made: Made, tmp_path: Path, described: dict[str, list[dict]]) -> None:
    other = Made(tmp_path / "other", rows_a_block=64)
    assert other.describe(tmp_path / "one", 4) == described
    made.describe(tmp_path / "two", 4)
    for name in DATASETS:
        files = [tmp_path / folder / name / "part-000000.parquet" for folder in ("one", "two")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_long_table_is_described_like_a_nested_one(made: Made, tmp_path: Path, described: dict[str, list[dict]]) -> None:
    long = Made(tmp_path / "made", rows_a_block=64)
    for part, path in enumerate(long.table):
        blocks = [one_row_a_rank(block) for block in pq.ParquetFile(path).iter_batches()]
        long.table[part] = str(tmp_path / write_part(str(tmp_path), "long", LONG_TOPK, part, blocks).path)
    found = long.describe(tmp_path / "found", 4)
    for name in ("items_by_popularity", "items_by_listings", "top_items"):
        assert found[name] == described[name]
    # A user with an empty list has no row.
    assert sum(row["users"] for row in found["users_by_history"]) == sum(
        bool(row["recommendations"]) for row in made.rows.values()
    )


def test_no_examples_and_no_table_are_described_too(made: Made, tmp_path: Path) -> None:
    assert made.describe(tmp_path / "none", 0)["example_users"] == []
    made = Made(tmp_path / "made", rows_a_block=64)
    made.table = []
    found = made.describe(tmp_path / "empty", 3)
    assert (found["top_items"], found["users_by_history"], found["example_users"]) == ([], [], [])
    assert found["items_by_listings"] == [{"listings": 0, "items": len(ITEM_IDS)}]


def test_a_damaged_table_is_described_as_far_as_it_goes(made: Made, tmp_path: Path) -> None:
    """What a failed gate leaves behind is what the report is read for."""
    schema = pa.schema([each.with_nullable(True) for each in TOPK])
    pair = pa.struct([each.with_nullable(True) for each in TOPK.field("recommendations").type.value_type])
    schema = schema.set(3, pa.field("recommendations", pa.list_(pair)))
    rows: list[dict] = [
        {"user_id": None, "source": None, "history_length": None, "recommendations": None},
        {
            "user_id": "stranger",
            "source": "elsewhere",
            "history_length": 3,
            "recommendations": [{"item_id": None, "score": None}, {"item_id": "unknown", "score": 1.0}],
        },
    ]
    damaged = Made(tmp_path / "made", rows_a_block=64)
    damaged.table = [write(tmp_path, "damaged", schema, 0, rows, 10)]
    found = damaged.describe(tmp_path / "found", 2)
    assert sorted(row["user_id"] for row in found["example_users"]) == ["", "stranger"]
    assert sum(row["users"] for row in found["users_by_history"]) == 2
    assert sum(row["listings"] for row in found["items_by_popularity"]) == 0
