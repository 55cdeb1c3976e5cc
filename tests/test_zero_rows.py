"""A block may be left with no row: what a block function makes of none is what it makes of none of a block's rows."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.stages.ingest import key_rejected
from schemas.blocks import Block, in_blocks, one_block, text_lengths
from schemas.embeddings import SHARD_ITEMS, embeddings_schema
from schemas.interactions import EXCLUSIONS, SERVED_USERS, VALID
from schemas.items import BLOCKED_ITEMS, with_features
from schemas.rejected import REJECTED
from schemas.topk import LONG, LONG_TOPK, NESTED, TOPK
from schemas.users import USERS
from transforms.evaluate import describe_table
from transforms.evaluate.judge import last_lists
from transforms.evaluate.judge_bucket import Bucket, EligibleItems, KnownItems, TableRules, judge_bucket, num_left
from transforms.index.build import vectors_of
from transforms.index.calibrate import SampleUsers, sample_of, wanted_rows
from transforms.index.calibration import CalibrationSettings
from transforms.index.embed import embed_items, embed_users
from transforms.index.item_lists import ItemLists, blocked_items
from transforms.index.popular import OVERALL, PopularItems, most_popular
from transforms.ingest import catalogue, histories
from transforms.ingest.id_forms import forms_of_block
from transforms.ingest.join_ids import find_spellings, join_ids
from transforms.ingest.leave_out import Unwanted
from transforms.ingest.served_users import add_lists
from transforms.ingest.split import FindCut, FindLatest, SplitSettings
from transforms.ingest.validate import RatingRules, validate_ids, validate_items, validate_ratings
from transforms.io import partition
from transforms.lists import canaries, recall_segments, requests, table
from transforms.lists.carry_over import LISTS, CarryRules, KeptItems, SomeItems, carried_keys, carry_over
from transforms.lists.fused import asked_of
from transforms.search.id_map import IdMap, list_lengths
from transforms.search.list_settings import ListSettings, unwanted_of
from transforms.search.ranking_metrics import metrics_of_users, recall_of_rows
from transforms.search.search import SearchSettings
from transforms.search.top_k import Lists

DIM = 3


def none_of(schema: pa.Schema) -> Block:
    return one_block([], schema)


def no_rows_left(schema: pa.Schema) -> Block:
    """Returns a block that has lost its rows to a filter: its buffers are not those of one that never had any."""
    nulls = pa.RecordBatch.from_arrays([_some(field.type) for field in schema], schema=schema)
    return nulls.filter(pa.array([False, False]))


def _some(kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        return pa.array([[0] * kind.list_size] * 2, kind)
    if pa.types.is_list(kind):
        return pa.array([[], []], kind)
    if pa.types.is_boolean(kind):
        return pa.array([True, False], kind)
    if pa.types.is_timestamp(kind):
        return pa.array([datetime(2020, 1, 1, tzinfo=UTC)] * 2, kind)
    if pa.types.is_dictionary(kind):
        return pa.array(["a", "b"], kind.value_type).dictionary_encode().cast(kind)
    return pa.array(["a", "b"] if pa.types.is_string(kind) else [1, 2], kind)


class KnowsNobody:
    """A tower for which every row is unknown."""

    dim = DIM

    def embed(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(block), DIM), np.float32), np.zeros(len(block), bool)


EMBEDDINGS = embeddings_schema(DIM)
WITH_VECTORS = USERS.append(pa.field("vector", pa.list_(pa.float32(), DIM)))
DATED = WITH_VECTORS.append(TOPK.field("scored_at"))
RAW = pa.schema([(name, pa.string()) for name in ("user_id", "item_id", "source")] + [("position", pa.int64())])
RAW_ITEMS = pa.schema([(name, pa.string()) for name in ("item_id", "title", "source")] + [("position", pa.int64())])
SETTINGS = ListSettings(k=2, recommend_seen=False, search=SearchSettings(), checked_fraction=1.0)
ASK = CalibrationSettings(k=2)
KNOWN = KnownItems(np.array([1, 5], np.uint64), np.array([0, -1]))
NO_ITEMS = IdMap(pa.array([], pa.string()), np.zeros(0, np.int32))
RULES = TableRules(k=2, recommend_seen=False, num_buckets=3, last_k=2)
TEXTS = pa.list_(pa.string())


def split_as(split: str, holdout: float) -> Callable[[Block], Any]:
    """Returns what splits one block of ratings by user."""
    return lambda block: histories.split_bucket([block], SplitSettings(split, holdout), histories.SplitTimes(5, 9, 1.0))[:4]


FUNCTIONS: dict[str, tuple[pa.Schema, Callable[[Block], Any]]] = {
    "hash_ids": (SHARD_ITEMS, lambda block: partition.hash_ids(block["item_id"])),
    "hash_vectors": (EMBEDDINGS, lambda block: partition.hash_vectors(block["item_id"], block["embedding"])),
    "is_sampled": (USERS, lambda block: partition.is_sampled(block["user_id"], 0.5)),
    "key_by_user": (USERS, lambda block: list(partition.key_by_user(block, 3))),
    "key_by_shard": (EMBEDDINGS, lambda block: list(partition.key_by_shard(block, 3))),
    "key_rejected": (REJECTED, lambda block: list(key_rejected(block, 3))),
    "in_blocks": (USERS, lambda block: list(in_blocks(block))),
    "text_lengths": (USERS, lambda block: [text_lengths(column) for column in block.columns]),
    "vectors_of": (EMBEDDINGS, lambda block: vectors_of(block["embedding"])),
    "list_lengths": (USERS, lambda block: list_lengths(block["history"])),
    "validate_ratings": (RAW, lambda block: validate_ratings(block, RatingRules())[0]),
    "validate_items": (RAW_ITEMS, lambda block: validate_items(block)[0]),
    "validate_ids": (RAW, lambda block: validate_ids(block, SERVED_USERS, "served users")[0]),
    "leave_out": (RAW, lambda block: Unwanted(pa.array(["u"]), pa.array(["i"])).names(block)),
    "leave_out_of_texts": (REJECTED, lambda block: Unwanted(pa.array(["u"]), pa.array(["i"])).without_texts(block)),
    "find_latest": (VALID, lambda block: FindLatest().add_input(0, block)),
    "find_cut": (VALID, lambda block: FindCut(0.1).add_input(FindCut(0.1).create_accumulator(), block)),
    "find_ranges": (
        histories.ITEM_COUNTS,
        lambda block: catalogue.FindRanges().extract_output(
            catalogue.FindRanges().add_input(catalogue.FindRanges().create_accumulator(), block)
        ),
    ),
    "range_of": (SHARD_ITEMS, lambda block: catalogue.range_of(block["item_id"], ["a", "b"])),
    "merge_range": (histories.ITEM_COUNTS, lambda block: catalogue.merge_range([block], []).items),
    **{
        f"split_bucket_{split}": (VALID, split_as(split, holdout))
        for split, holdout in (("random", 0.5), ("temporal", 0.5), ("last", 1), ("none", 0))
    },
    **{
        f"add_lists_{kind}": (schema, lambda block: add_lists(none_of(USERS), [block])[0])
        for kind, schema in (("users", SERVED_USERS), ("exclusions", EXCLUSIONS))
    },
    "forms_of": (SHARD_ITEMS, forms_of_block),
    "join_ids": (SHARD_ITEMS, lambda block: join_ids(block["item_id"], block["item_id"])),
    "find_spellings": (SHARD_ITEMS, lambda block: find_spellings(block["item_id"], ["a"])),
    "blocked_items": (BLOCKED_ITEMS, lambda block: blocked_items(block, block["item_id"], block["item_id"])),
    "embed_items": (with_features([]), lambda block: embed_items(block, KnowsNobody(), DIM)),
    "embed_users": (USERS, lambda block: embed_users(block, KnowsNobody())),
    "some_items": (EMBEDDINGS, lambda block: SomeItems.of(block, ItemLists())),
    "kept_items": (
        EMBEDDINGS,
        lambda block: KeptItems.of([SomeItems.of(block, ItemLists())], [], []).codes_of(block["item_id"]),
    ),
    "carry_over": (
        DATED,
        lambda block: carry_over(block, none_of(USERS), none_of(LISTS), KeptItems.of([], [], []), CarryRules(True, False, 1.0))[
            0
        ],
    ),
    "carried_keys": (
        USERS,
        lambda block: carried_keys(block.append_column("carried", pa.array([], TOPK.field("recommendations").type)), 2),
    ),
    "asked_of": (WITH_VECTORS, lambda block: asked_of(block, SETTINGS)),
    "unwanted_of": (USERS, lambda block: unwanted_of(block, SETTINGS)),
    "most_popular": (SHARD_ITEMS, lambda block: most_popular([block], 3, OVERALL)),
    "popular_items": (SHARD_ITEMS, lambda block: PopularItems.of(block, OVERALL).top_k(Lists.none(0), 2)),
    "popular_lists": (SHARD_ITEMS, lambda block: PopularItems.of(block, OVERALL).top_k(Lists.of([[1], []]), 2)[:0]),
    "id_map_of": (requests.ITEMS, lambda block: requests.id_map_of([block]).codes_of(block["item_id"])),
    "sample_users": (
        WITH_VECTORS,
        lambda block: SampleUsers(3, DIM).add_input(SampleUsers(3, DIM).create_accumulator(), block),
    ),
    "sample_of": (WITH_VECTORS, lambda block: len(sample_of(block, [], ASK))),
    "wanted_rows": (SHARD_ITEMS, lambda block: list(wanted_rows(block, none_of(USERS).select(["excluded", "history"])))),
    "dated": (USERS, lambda block: table.dated(block, None)),
    "one_row_a_rank": (TOPK, table.one_row_a_rank),
    "one_row_a_user": (LONG_TOPK, table.one_row_a_user),
    "row_groups_nested": (TOPK, lambda block: list(table.row_groups(block, 2, NESTED))),
    "row_groups_long": (TOPK, lambda block: list(table.row_groups(block, 2, LONG))),
    "count_listings": (TOPK, describe_table.count_listings),
    "users_by_history": (TOPK, describe_table.users_by_history),
    "pick_users": (TOPK, lambda block: describe_table.pick_users(block, 3)),
    "eligible_items": (SHARD_ITEMS, lambda block: EligibleItems.of(block, ItemLists())),
    "known_items": (
        SHARD_ITEMS,
        lambda block: KnownItems.of([partition.hash_ids(block["item_id"])], [EligibleItems.of(block, ItemLists())]),
    ),
    "last_lists": (TOPK, last_lists),
    "num_left": (USERS, lambda block: num_left(block, KNOWN, RULES)),
    "judge_bucket": (TOPK, lambda block: judge_bucket(_empty_bucket(), [[block]], KNOWN, RULES).faults),
    "judge_bucket_of_no_users": (
        USERS,
        lambda block: judge_bucket(Bucket(0, block, _empty_bucket().last), [], KNOWN, RULES).faults,
    ),
    "judge_bucket_of_ranks": (
        LONG_TOPK,
        lambda block: judge_bucket(_empty_bucket(), [[block]], KNOWN, TableRules(2, False, 3, layout=LONG)).faults,
    ),
    "canary_users": (WITH_VECTORS, lambda block: canaries.canary_users(block, SETTINGS, 1.0)),
    "served_lists": (TOPK, lambda block: recall_segments.served_lists(block, 1.0)),
    "measure": (EMBEDDINGS, lambda block: canaries.measure(block, none_of(canaries.canaries_schema(DIM)), 2)[1:3]),
    "judge_canaries": (
        canaries.canaries_schema(DIM),
        lambda block: canaries.judge(canaries.measure(none_of(EMBEDDINGS), block, 2), block)["users"],
    ),
    "recall_segments": (
        SHARD_ITEMS,
        lambda block: recall_segments.sums_by_popularity(block, recall_segments.compare([], [])).sum(),
    ),
    "metrics_of_users": (
        USERS,
        lambda block: metrics_of_users(np.zeros((len(block), 2), np.int64), Lists.none(0), [1, 2]),
    ),
    "recall_of_rows": (SHARD_ITEMS, lambda block: recall_of_rows(*[np.zeros((len(block), 2), np.int64)] * 2)),
}


def _empty_bucket() -> Bucket:
    return Bucket(0, none_of(USERS), none_of(pa.schema([("user_id", pa.string()), ("items", TEXTS)])))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("make", [none_of, no_rows_left])
def test_no_rows_give_no_rows(name: str, make: Callable[[pa.Schema], Block]) -> None:
    schema, function = FUNCTIONS[name]
    assert _size(function(make(schema))) == 0


def _size(made: Any) -> int:
    """Returns how much there is in what a function made."""
    if isinstance(made, (pa.RecordBatch, pa.Table)):
        return made.num_rows
    if isinstance(made, np.ndarray):
        return made.size
    if isinstance(made, (int, np.integer)):
        return int(made)
    if isinstance(made, (dict, Lists)) or hasattr(made, "__dataclass_fields__"):
        return sum(map(_size, (made if isinstance(made, dict) else vars(made)).values()))
    if isinstance(made, pa.Array):
        return len(made)
    return sum(map(_size, made))
