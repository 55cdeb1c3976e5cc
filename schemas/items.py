"""Items: the catalogue, one row an item, in the order of item_id; other columns of the source travel along."""

import pyarrow as pa

from schemas.fields import dataset_schema, documented

ITEMS = dataset_schema(
    "items",
    1,
    [
        documented("item_id", pa.string(), "the item; rows are in ascending order of it, across files too"),
        documented("code", pa.int32(), "0 to n - 1: the rank of item_id in the catalogue; ties between scores go to the lower"),
        documented("title", pa.string(), "what to show a person", nullable=True),
        documented("train_count", pa.int64(), "training positives of the item"),
        documented(
            "recent_count",
            pa.float64(),
            "training positives, each counted half for every --recency_half_life_days before the end of training; "
            "equal to train_count where there are no times",
        ),
        documented("holdout_count", pa.int64(), "held-out positives of the item"),
    ],
)


def with_features(features: list[pa.Field]) -> pa.Schema:
    """Returns ITEMS followed by the source's own columns."""
    schema = ITEMS
    for field in features:
        schema = schema.append(field.with_nullable(True))
    return schema


BLOCKED_ITEMS = dataset_schema(
    "blocked_items",
    1,
    [
        documented("item_id", pa.string(), "an item of the catalogue that must not be recommended to anyone"),
        documented("code", pa.int32(), "its code in the catalogue"),
    ],
)
"""What --block_items names, and what --allow_items does not, of the catalogue."""
