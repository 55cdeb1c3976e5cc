"""A table of carried lists equals the table that a search for every user makes, and who keeps a list is not searched for."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.test_pipeline import TestPipeline

from schemas.blocks import Block
from schemas.parquet_files import parquet_writer
from schemas.stage_files import SUMMARY
from schemas.storage import join, read_json
from schemas.topk import TOPK
from schemas.users import USERS
from tests.made_index import MadeItems, make_items, make_users, write_index
from tests.test_recommend_by_shard import expected_list
from transforms.index.embed import embed_users
from transforms.index.item_lists import ItemLists
from transforms.index.load import load_index
from transforms.io.read import Place, PlacedBlock
from transforms.io.write import WritePlacedBlocks, WriteSummary, part_path
from transforms.lists.by_shard import RecommendByShard
from transforms.lists.carry_over import (
    LISTS,
    REASONS,
    BaseFiles,
    CarryOver,
    CarryRules,
    ItemCodes,
    KeptItems,
    SomeItems,
    carry_over,
    nothing_carried,
    report,
    same_lists,
)
from transforms.lists.fused import RecommendFused, recommend_block
from transforms.lists.table import dated
from transforms.search.list_settings import ListSettings
from transforms.search.search import SearchSettings

K = 6
DIM = 8


def settings_of(recommend_seen: bool = False, checked: float = 0.0) -> ListSettings:
    return ListSettings(K, recommend_seen, SearchSettings(exact=True), checked)


class MadeTower:
    """A tower that counts whom it embeds: a vector of the user's own, or the sum of the vectors of the history."""

    dim = DIM

    def __init__(self, items: MadeItems, own: dict[str, list[float] | None], by_history: bool) -> None:
        self._of_item = dict(zip(items.ids, items.vectors, strict=True))
        self._own = own
        self._by_history = by_history
        self.embedded: list[str] = []

    def vector_of(self, row: dict) -> np.ndarray | None:
        if not self._by_history:
            own = self._own.get(row["user_id"])
            return None if own is None else np.array(own, np.float32)
        known = [self._of_item[item] for item in row["history"] if item in self._of_item]
        return np.sum(known, axis=0) if known else None

    def embed(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        rows = block.to_pylist()
        self.embedded += [row["user_id"] for row in rows]
        vectors = [self.vector_of(row) for row in rows]
        known = np.array([vector is not None for vector in vectors])
        return np.stack([np.zeros(DIM, np.float32) if each is None else each for each in vectors]), known


def plain_users(rows: Iterable[dict]) -> Block:
    return pa.RecordBatch.from_pylist([{name: row[name] for name in USERS.names} for row in rows], USERS)


def only(items: MadeItems, kept: np.ndarray) -> MadeItems:
    """Returns some of the items; like in a new catalogue, their codes are others."""
    ids = [each for each, keep in zip(items.ids, kept, strict=True) if keep]
    return MadeItems(ids, items.vectors[kept], items.train_counts[kept], items.recent_counts[kept])


def table_of(folder: Path, users: Block, items: MadeItems, tower: MadeTower, settings: ListSettings) -> Block:
    """Returns the rows of TOPK of users, of whom some may carry their lists over."""
    index = load_index(write_index(str(folder), items, num_shards=3))
    return recommend_block(embed_users(users, tower), index, settings).topk


def some_changes(rng: np.random.Generator, items: MadeItems, rows: list[dict]) -> list[dict]:
    """Changes a few users in all ways that a day can."""
    changed = []
    for row in rows:
        row = {name: list(value) if isinstance(value, list) else value for name, value in row.items()}
        unseen = [item for item in items.ids if item not in row["history"]]
        match int(rng.integers(14)):
            case 0 if unseen:
                row["history"].append(unseen[int(rng.integers(len(unseen)))])
            case 1:
                row["excluded"].append(items.ids[int(rng.integers(len(items.ids)))])
            case 2:
                row["excluded"] = []
            case 3 if row["history"]:
                row["history"].pop(int(rng.integers(len(row["history"]))))
            case 4:
                row["below_min_rating"].append(items.ids[int(rng.integers(len(items.ids)))])
            case 5:
                continue
            case 6:
                row["history"].reverse()
        changed.append(row)
    return changed


@pytest.mark.parametrize("seed", range(24))
def test_any_change_gives_the_table_of_a_search_for_everyone(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    by_history, recommend_seen = bool(seed & 1), bool(seed & 2)
    every = make_items(40, DIM, seed)
    whole = np.ones(40, bool)
    # Items leave in half of the cases, come in a quarter of them; vectors change in an eighth.
    before_items = only(every, whole if seed % 4 else rng.random(40) < 0.9)
    now_items = only(every, rng.random(40) < 0.9) if seed % 8 in (1, 2, 3) else every
    if seed % 8 == 5:
        vectors = every.vectors.copy()
        vectors[3] += 1
        now_items = replace(every, vectors=vectors)

    rows = make_users(every, 50, seed)
    own = {row["user_id"]: row["vector"] for row in rows}
    settings = settings_of(recommend_seen)
    before = table_of(tmp_path / "before", plain_users(rows[:45]), before_items, MadeTower(every, own, by_history), settings)
    now_rows = some_changes(rng, every, rows)
    users = dated(plain_users(now_rows), None)
    kept = KeptItems.of(
        [SomeItems.of(before_items.block, ItemLists())],
        [SomeItems.of(now_items.block, ItemLists())],
        [ItemCodes.of(now_items.known)],
    )
    made, counts = carry_over(
        users, plain_users(rows[:45]), before.select(LISTS.names), kept, CarryRules(by_history, recommend_seen, 0.0)
    )
    tower, everyone = (MadeTower(every, own, by_history) for _ in range(2))
    found = table_of(tmp_path / "now", made, now_items, tower, settings)
    assert found.to_pylist() == table_of(tmp_path / "full", users, now_items, everyone, settings).to_pylist()
    for row, listed in zip(now_rows, found.to_pylist(), strict=True):
        vector = everyone.vector_of(row)
        source, expected = expected_list(row | {"vector": vector}, now_items, K, recommend_seen)
        assert (listed["source"], [tuple(each.values()) for each in listed["recommendations"]]) == (source, expected)

    assert len(tower.embedded) == len(now_rows) - counts["carried"] == sum(counts[name] for name in REASONS)
    gained = set(now_items.ids) - set(before_items.ids)
    assert kept.gained == len(gained) + (seed % 8 == 5)
    assert (counts["carried"] == 0) == (kept.gained > 0)
    assert counts["carried"] == 0 or counts["carried"] > 5


def one_user(**changes: Any) -> dict:
    return {"user_id": "u", "history": ["a", "b"], "excluded": ["c"], "below_min_rating": [], "holdout": []} | changes


def kept_items(*ids: str, gained: int = 0) -> KeptItems:
    items = MadeItems(list(ids), np.zeros((len(ids), 2), np.float32), np.zeros(len(ids), int), np.zeros(len(ids)))
    some = [SomeItems.of(items.block, ItemLists())] if ids else []
    return KeptItems.of(some, some, [ItemCodes.of(items.known)])._replace(gained=gained)


def carried(row: dict, items: KeptItems, source: str = "personalised", **rules: Any) -> tuple[Block, dict[str, int]]:
    """Carries one user's list, of x and then y, over."""
    listed = [{"item_id": "x", "score": 2.0}, {"item_id": "y", "score": 1.0}]
    lists = pa.RecordBatch.from_pylist(
        [{"user_id": "u", "source": source, "recommendations": listed, "scored_at": None}], LISTS
    )
    given = {"by_history": True, "recommend_seen": False, "checked_fraction": 0.0} | rules
    users = dated(plain_users([row]), None)
    block, counts = carry_over(users, plain_users([one_user()]), lists, items, CarryRules(**given))
    return block, {name: count for name, count in counts.items() if count}


@pytest.mark.parametrize(
    ("row", "more", "expected"),
    [
        (one_user(), {}, "carried"),
        (one_user(holdout=["z"]), {}, "carried"),
        (one_user(excluded=["c", "z"]), {}, "carried"),
        (one_user(history=["a", "b", "z"]), {"by_history": False}, "carried"),
        (one_user(history=["a", "b", "z"]), {}, "history"),
        (one_user(history=["b", "a"]), {}, "history"),
        (one_user(excluded=["c", "y"]), {}, "unwanted"),
        (one_user(below_min_rating=["x"]), {}, "unwanted"),
        (one_user(below_min_rating=["x"]), {"recommend_seen": True}, "carried"),
        (one_user(excluded=[]), {}, "unwanted"),
        (one_user(history=["a"]), {"by_history": False}, "unwanted"),
        (one_user(user_id="v"), {}, "new_user"),
        (one_user(), {"items": kept_items("x", "z")}, "lost_item"),
        (one_user(), {"items": kept_items()}, "lost_item"),
        (one_user(), {"items": kept_items("x", "y", gained=1)}, "new_items"),
        (one_user(user_id="v"), {"items": kept_items("x", "y", gained=1)}, "new_user"),
        (one_user(), {"source": "popular"}, "popular"),
    ],
)
def test_each_change_has_its_reason(row: dict, more: dict, expected: str) -> None:
    block, counts = carried(row, **{"items": kept_items("x", "y")} | more)
    assert counts == {expected: 1}
    assert block["carried"].is_valid().to_pylist() == [expected == "carried"]
    assert block["embed"].to_pylist() == [expected != "carried"]


def test_who_is_compared_with_exact_search_needs_a_vector_and_keeps_the_list() -> None:
    block, counts = carried(one_user(), kept_items("x", "y"), checked_fraction=1.0)
    assert counts == {"carried": 1, "compared": 1}
    assert block["embed"].to_pylist() == [True]
    assert block["carried_codes"].to_pylist() == [[0, 1]]


def test_what_was_blocked_comes_in_and_what_is_blocked_goes() -> None:
    items = make_items(10, DIM)
    every = SomeItems.of(items.block, ItemLists())
    then = SomeItems(*(np.delete(column, [2, 3]) for column in every))
    now = SomeItems(*(column[1:] for column in every))
    found = KeptItems.of([then], [now], [ItemCodes.of(items.known)])
    assert (found.gained, found.lost, len(found.hashes)) == (2, 1, 7)
    ids = pa.array(items.ids)
    assert found.codes_of(ids).tolist() == [-1, 1, -1, -1, *range(4, 10)]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([["a"], [], ["a", "b"], ["b"]], [["a"], [], ["b", "a"], ["b", "b"]], [True, True, False, False]),
        ([[], []], [[], ["x"]], [True, False]),
        ([], [], []),
    ],
)
def test_lists_are_the_same_with_the_same_items_in_the_same_order(one: list, other: list, expected: list[bool]) -> None:
    kind = pa.list_(pa.string())
    assert same_lists(pa.array(one, kind), pa.array(other, kind)).tolist() == expected


def test_both_plans_serve_carried_lists_as_they_are(tmp_path: Path) -> None:
    items, root = make_items(120, DIM), str(tmp_path)
    rows = make_users(items, 40)
    own = {row["user_id"]: row["vector"] for row in rows}
    settings = settings_of(checked=0.3)
    files = write_index(join(root, "index"), items, 4)
    index = load_index(files)
    before = recommend_block(embed_users(plain_users(rows[:20]), MadeTower(items, own, False)), index, settings).topk
    # Scores that no search would find show that a list was kept.
    served = [
        row | {"recommendations": [each | {"score": each["score"] + 100} for each in row["recommendations"]]}
        for row in before.to_pylist()
    ]
    stored = {
        "users": plain_users(rows),
        "topk": pa.RecordBatch.from_pylist(served, TOPK),
        "embeddings": items.block,
        "items": items.known,
    }
    for name, block in stored.items():
        with parquet_writer(root, part_path(name, 0), block.schema, []) as writer:
            writer.write_batch(block)
    paths = {name: [join(root, part_path(name, 0))] for name in stored}
    last = BaseFiles({0: paths["users"]}, {0: paths["topk"]}, paths["embeddings"], ItemLists())
    rules = CarryRules(by_history=False, recommend_seen=False, checked_fraction=0.3)
    summaries = []
    for name, plan in (
        ("fused", RecommendFused(files, 120, settings)),
        ("by_shard", RecommendByShard(files, 120, settings)),
    ):
        tower = MadeTower(items, own, False)
        with TestPipeline("FnApiRunner") as pipeline:
            block = dated(plain_users(rows), None)
            users = pipeline | beam.Create([(Place(0, 0, True), block)]).with_output_types(PlacedBlock)
            over = users | CarryOver(last, paths["embeddings"], paths["items"], ItemLists(), rules)
            embed = beam.MapTuple(lambda place, block, tower=tower: (place, embed_users(block, tower)))
            found = over.users | embed.with_output_types(PlacedBlock) | plan
            written = found.topk | WritePlacedBlocks(join(root, name), "topk", TOPK)
            _ = (written, found.reports, over.reports) | beam.Flatten() | WriteSummary(join(root, name))
        summaries.append(read_json(join(root, name, SUMMARY)))
    assert summaries[0] == summaries[1]
    kept = [row for row in served if row["source"] == "personalised"]
    found = {row["user_id"]: row for path in Path(root, "fused").glob("topk/*") for row in pq.read_table(path).to_pylist()}
    assert len(found) == 40
    assert [found[row["user_id"]] for row in kept] == kept
    carried_over = summaries[0]["metrics"]["carried_over"]
    assert carried_over["carried"] == len(kept)
    assert carried_over["new_lists"] == dict.fromkeys(REASONS, 0) | {"popular": 20 - len(kept), "new_user": 20}


def test_the_report_says_how_much_was_saved() -> None:
    assert report({"carried": 3, "popular": 1, "compared": 2}, kept_items("x"))["carried_over"] == {
        "users": 4,
        "carried": 3,
        "share_carried": 0.75,
        "compared": 2,
        "new_lists": dict.fromkeys(REASONS, 0) | {"popular": 1},
        "items_gained": 0,
        "items_lost": 0,
        "why_nobody": "",
    }
    nobody = nothing_carried("k was 10", 4)["carried_over"]
    assert (nobody["share_carried"], nobody["why_nobody"]) == (0.0, "k was 10")
