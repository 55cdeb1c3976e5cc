"""Both plans side by side: the same files, byte for byte, the same reports, and lists that a sort in Python confirms."""

import weakref
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.coders.coders import IterableCoder, TupleCoder
from apache_beam.testing.test_pipeline import TestPipeline

from schemas.blocks import BlockCoder
from schemas.stage_files import SUMMARY
from schemas.storage import WrittenFile, join, read_json
from schemas.topk import TOPK
from tests.made_index import MadeItems, item_lists, make_items, make_users, users_block, with_vectors, write_index, write_users
from transforms.index.load import EVERY_ITEM, BuiltIndex, IndexFiles, LoadedShard
from transforms.index.popular import OVERALL, most_popular
from transforms.io.read import PlacedBlock, ReadParts
from transforms.io.write import WritePlacedBlocks, WriteSummary
from transforms.lists import by_shard as by_shard_plan
from transforms.lists import requests
from transforms.lists.by_shard import RecommendByShard, finish_pieces, popular_lists
from transforms.lists.fused import RecommendFused
from transforms.lists.requests import codes_in, request_block, request_of
from transforms.search.list_settings import ListSettings
from transforms.search.search import Request, SearchSettings
from transforms.search.top_k import PAD, codes_of, pack

PARTS = {0: 25, 3: 17, 4: 1}
NUM_USERS = sum(PARTS.values())


def run(plan: beam.PTransform, users: dict[int, str], output: str) -> dict[str, Any]:
    """Runs a plan to files, and returns its summary."""
    with TestPipeline("FnApiRunner") as pipeline:
        blocks = pipeline | ReadParts(users)
        made = blocks | beam.MapTuple(lambda place, block: (place, with_vectors(block))).with_output_types(PlacedBlock) | plan
        files = made.topk | WritePlacedBlocks(output, "topk", TOPK)
        exact = made.exact | beam.Map(lambda block: {"exact": {row["user_id"]: row["exact"] for row in block.to_pylist()}})
        _ = (files, made.reports, exact) | beam.Flatten() | WriteSummary(output)
    summary = read_json(join(output, SUMMARY))
    exact_lists = summary["metrics"]["exact"].items()
    summary["metrics"]["exact"] = [{"user_id": user, "exact": found} for user, found in sorted(exact_lists)]
    return summary


def rows_of(output: str, summary: dict) -> dict[str, dict]:
    return {row["user_id"]: row for file in summary["files"] for row in pq.read_table(join(output, file["path"])).to_pylist()}


def expected_list(
    user: dict, items: MadeItems, k: int, recommend_seen: bool = False, blocked: Iterable[str] = ()
) -> tuple[str, list[tuple[str, float]]]:
    """The oracle: one user's list, by sorting everything in Python."""
    unwanted = {*user["excluded"], *blocked} | (set() if recommend_seen else {*user["history"], *user["below_min_rating"]})
    personalised = user["vector"] is not None
    scores = items.vectors @ np.float32(user["vector"]) if personalised else items.recent_counts
    eligible = [code for code in range(len(items.ids)) if items.ids[code] not in unwanted]
    best = sorted(eligible, key=lambda code: (-scores[code], code))[:k]
    return "personalised" if personalised else "popular", [(items.ids[code], float(scores[code])) for code in best]


CASES = {
    "one shard": {"num_shards": 1},
    "four, most rows asked for again": {"num_shards": 4, "narrow": True, "block_rows": 7, "num_slices": 3},
    "sixteen, some empty": {"num_shards": 16, "num_items": 30, "block_rows": 100},
    "seen items kept, few popular ones known": {"num_shards": 4, "recommend_seen": True, "few_popular": True},
    "few popular ones known": {"num_shards": 3, "few_popular": True, "block_rows": 20},
    "trees": {"num_shards": 3, "num_items": 400, "num_leaves": 20, "k": 5, "search": SearchSettings(4, 1.0), "block_rows": 9},
    "blocked items": {"num_shards": 5, "blocked": range(0, 120, 2), "few_popular": True},
    "all items of a shard blocked": {"num_shards": 40, "num_items": 30, "blocked": range(5, 30)},
    "everything blocked": {"num_shards": 2, "num_items": 30, "blocked": range(30)},
    "trees with blocked items": {
        "num_shards": 2,
        "num_items": 400,
        "num_leaves": 20,
        "k": 5,
        "search": SearchSettings(4, 1.0),
        "blocked": range(0, 400, 5),
    },
    "trees, searched exactly": {"num_shards": 2, "num_items": 300, "num_leaves": 9, "search": SearchSettings(1, exact=True)},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_both_plans_make_the_same(case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transforms.search.search._EXACT_SHARE", 0)
    monkeypatch.setattr("transforms.search.search.EXACT_BELOW", 0)
    if case.get("narrow"):
        monkeypatch.setattr(
            "transforms.search.search.width_per_shard", lambda width, num_shards: max(1, width // num_shards - 2)
        )
    if case.get("few_popular"):
        monkeypatch.setattr(by_shard_plan, "POPULAR_ITEMS", 1)
    items = make_items(case.get("num_items", 120))
    num_shards, k = case["num_shards"], case.get("k", 12)
    made_users = make_users(items, NUM_USERS)
    users = write_users(str(tmp_path), made_users, PARTS, case.get("block_rows", 10))
    settings = ListSettings(k, case.get("recommend_seen", False), case.get("search", SearchSettings()), checked_fraction=0.5)
    blocked = [items.ids[code] for code in case.get("blocked", [])]
    lists = item_lists(tmp_path, items.ids, block=blocked) if blocked else EVERY_ITEM
    index = write_index(str(tmp_path), items, num_shards, case.get("num_leaves"), lists)
    job = (index, len(items.ids), settings)

    outputs = {name: str(tmp_path / name) for name in ("fused", "by_shard")}
    fused = run(RecommendFused(*job), users, outputs["fused"])
    by_shard = run(RecommendByShard(*job, max_worker_bytes=1, num_slices=case.get("num_slices", 1)), users, outputs["by_shard"])

    assert by_shard["files"] == fused["files"]
    assert [file["path"] for file in fused["files"]] == [f"topk/part-{part:06d}.parquet" for part in PARTS]
    assert set(by_shard["metrics"]) == set(fused["metrics"])
    for name, found in fused["metrics"].items():
        for each, value in found.items() if isinstance(found, dict) else [(name, found)]:
            # Which order a runner adds floats in is its own affair.
            same = by_shard["metrics"][name][each] if isinstance(found, dict) else by_shard["metrics"][name]
            assert same == (pytest.approx(value, rel=1e-12) if isinstance(value, dict | float) else value), (name, each)

    # The case is what its name says.
    counts = by_shard["metrics"]
    assert counts["users"] == NUM_USERS
    assert (len(index.of_shards) < num_shards) == (num_shards >= 16)
    assert (counts["rows_researched"] > 20) == bool(case.get("narrow"))
    assert (counts["rows_exact"] > 0) == ("num_leaves" in case)
    rows = rows_of(outputs["by_shard"], by_shard)
    assert len(rows) == NUM_USERS
    if settings.search.leaves_to_search is None or settings.search.exact:
        assert counts["recall_against_exact"]["mean"] == (0 if len(blocked) == len(items.ids) else 1)
        for user in made_users:
            source, best = expected_list(user, items, k, settings.recommend_seen, blocked)
            row = rows[user["user_id"]]
            assert row["source"] == source
            assert row["history_length"] == len(user["history"])
            assert [(each["item_id"], each["score"]) for each in row["recommendations"]] == best
    else:
        assert 0.2 < counts["recall_against_exact"]["mean"] < 1


def test_held_out_items_are_judged(tmp_path: Path) -> None:
    """A metric computed by hand; an item outside the index counts as missed."""
    items = make_items(60)
    made_users = make_users(items, NUM_USERS)
    users = write_users(str(tmp_path), made_users, PARTS, 10)
    files = write_index(str(tmp_path), items, 3)
    settings = ListSettings(20, False, SearchSettings(), checked_fraction=1.0)

    summary = run(RecommendByShard(files, 60, settings), users, str(tmp_path / "out"))

    for report, vectors in (("quality", True), ("recent_popularity", False)):
        recalls = []
        for user in made_users:
            if user["holdout"]:
                _, best = expected_list(user if vectors else user | {"vector": None}, items, 20)
                recalls.append(len({each for each, _ in best} & set(user["holdout"])) / len(user["holdout"]))
        assert summary["metrics"][report]["users"] == len(recalls)
        assert summary["metrics"][report]["means"]["recall@20"] == pytest.approx(np.mean(recalls))
        assert 0 < np.mean(recalls) < 1


def test_a_worker_holds_one_shard_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = make_items(90)
    files = write_index(str(tmp_path), items, 4)
    users = write_users(str(tmp_path), make_users(items, NUM_USERS), PARTS, 10)
    held: list[weakref.ref] = []
    others_held = []

    load = IndexFiles.load

    def load_and_look(index: IndexFiles, shard: int) -> LoadedShard:
        others_held.append(sum(each() is not None for each in held))
        loaded = load(index, shard)
        held.append(weakref.ref(loaded))
        return loaded

    monkeypatch.setattr(IndexFiles, "load", load_and_look)
    monkeypatch.setattr("transforms.search.search.width_per_shard", lambda width, num_shards: max(1, width // num_shards - 2))
    settings = ListSettings(5, False, SearchSettings(), 0.1)
    for number, (max_worker_bytes, loads, most_others) in enumerate([(1, 8, 0), (1 << 30, 4, 3)]):
        held.clear()
        others_held.clear()
        plan = RecommendByShard(files, 90, settings, max_worker_bytes=max_worker_bytes)
        run(plan, users, str(tmp_path / str(number)))
        assert len(others_held) == loads
        assert max(others_held) == most_others


def test_an_altered_shard_is_refused(tmp_path: Path) -> None:
    items = make_items(60)
    files = write_index(str(tmp_path), items, 2)
    users = write_users(str(tmp_path), make_users(items, 5), {0: 5}, 5)
    path = tmp_path / next(file.path for file in files.of_shards[0] if file.path.endswith("dataset.npy"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    plan = RecommendByShard(files, 60, ListSettings(5, False, SearchSettings(), 0.1))
    with pytest.raises(Exception, match=r"dataset.npy is not what was written"):
        run(plan, users, str(tmp_path / "out"))


def test_what_is_shuffled_travels_as_blocks() -> None:
    """Neither pickled nor a row at a time."""
    plan = RecommendByShard(ONE_SHARD, 1, settings_of(1))
    pipeline = beam.Pipeline("FnApiRunner")
    _ = pipeline | beam.Create([]).with_output_types(PlacedBlock) | "Plan" >> plan
    proto, context = pipeline.to_runner_api(return_context=True)
    shuffled = {
        transform.unique_name: context.coders.get_by_id(proto.components.pcollections[transform.outputs["None"]].coder_id)
        for transform in proto.components.transforms.values()
        if transform.unique_name.startswith("Plan/GroupBy") and not transform.subtransforms
    }
    assert len(shuffled) == 7

    def leaves(coder: Any) -> list[Any]:
        if isinstance(coder, TupleCoder):
            return [leaf for each in coder.coders() for leaf in leaves(each)]
        return leaves(coder._elem_coder) if isinstance(coder, IterableCoder) else [coder]

    for name, coder in shuffled.items():
        kinds = {type(leaf).__name__ for leaf in leaves(coder)}
        assert BlockCoder.__name__ in kinds, name
        assert kinds <= {"BlockCoder", "VarIntCoder", "BooleanCoder"}, name


ONE_SHARD = BuiltIndex.of("root", [WrittenFile("shards/00000/items.arrow", 0, 1, "")], 1).with_items(
    "root", [WrittenFile("shard_items/part-000000.parquet", 1, 1, "")]
)


def settings_of(k: int) -> ListSettings:
    return ListSettings(k, False, SearchSettings(), 0.1)


def test_slices_must_be() -> None:
    with pytest.raises(ValueError, match="num_slices must be at least 1, got 0"):
        RecommendByShard(replace(ONE_SHARD, of_shards={}), 1, settings_of(1), num_slices=0)


def test_a_request_is_unpacked_as_it_was() -> None:
    request = Request(np.array([3, 5]), np.array([[1, 2, 3], [4, 5, 6]], np.float32), 40, 7, exact=True)
    found = request_of(BlockCoder().decode(BlockCoder().encode(request_block(request, 1))))
    np.testing.assert_array_equal(found.rows, request.rows)
    np.testing.assert_array_equal(found.queries, request.queries)
    assert (found.width, found.shard_width, found.exact) == (40, 7, True)


@pytest.mark.parametrize("codes", [[], [5], [2**31 - 1, 0, 7, 7, 0]])
def test_codes_in_keys(codes: list[int]) -> None:
    keys = pack(np.arange(len(codes), dtype=np.float32), np.array(codes, np.int64))
    keys = np.concatenate([keys, np.full(2, PAD)]).reshape(1, -1)
    assert codes_in(keys).tolist() == sorted(set(codes))


def test_popular_lists_ask_for_as_much_of_the_ranking_as_they_need() -> None:
    items = make_items(100)
    block = items.known
    ranked = most_popular([block], 100, OVERALL)["item_id"].to_pylist()
    asked_for: list[int] = []

    def rank(count: int, by: str) -> pa.RecordBatch:
        asked_for.append(count)
        return most_popular([block], count, by)

    def lists(*seen: list[str]) -> list[list[str]]:
        unwanted = pa.RecordBatch.from_arrays([pa.array(list(seen), pa.list_(pa.string()))], ["seen"])
        keys, id_map, _ = popular_lists(unwanted, 3, rank(10, OVERALL), 100, rank, OVERALL)
        return [id_map.ids_of(codes[codes >= 0]).to_pylist() for codes in codes_of(keys)]

    assert lists(ranked[:7], ["unknown"] * 20, ranked[50:]) == [ranked[7:10], ranked[:3], ranked[:3]]
    assert asked_for == [10]
    assert lists(ranked[:8], []) == [ranked[8:11], ranked[:3]]
    assert asked_for == [10, 10, 11]
    assert lists(ranked[:98]) == [ranked[98:]]
    assert asked_for == [10, 10, 11, 10, 100]


def test_a_block_with_a_list_missing_is_a_fault() -> None:
    block = users_block(make_users(make_items(5), 2))
    user_rows = by_shard_plan.user_rows_of(block, np.array([True, True]))
    lists = requests.lists_block(np.array([1]), np.full((1, 3), PAD))
    nothing = pa.RecordBatch.from_pylist([], requests.ITEMS)
    with pytest.raises(RuntimeError, match="2 users must have a list each, got 1 lists"):
        finish_pieces([(0, user_rows, nothing), (1, lists, nothing)], 3)
