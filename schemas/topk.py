"""The table: the top-k items of every user, best first."""

import pyarrow as pa

from schemas.fields import dataset_schema, documented

SOURCES = ("personalised", "popular")
"""Where a list came from: the user's own vector, or the fallback for users without one."""

RECOMMENDATION = pa.struct(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
    ]
)

TOPK = dataset_schema(
    "topk",
    1,
    [
        documented("user_id", pa.string(), "the user; one row each; files are hash buckets of users, sorted by user_id"),
        documented(
            "source",
            pa.string(),
            "'personalised': score is the inner product of the user's and the item's vectors; "
            "'popular': the user has no vector, score is the item's training positives, recent ones counting more",
        ),
        documented("history_length", pa.int32(), "how many training positives the user has"),
        documented(
            "recommendations",
            pa.list_(RECOMMENDATION),
            "min(k, eligible items) items, best first (score descending, then item_id ascending); none twice, none seen",
        ),
    ],
)
