"""The table: the top-k items of every user, best first. Consumers read it; docs/reference/data-contract.md is their page.

Both layouts hold the same. The page's tables of columns are written from these schemas by `python -m schemas.contract`.
"""

from collections.abc import Mapping

import pyarrow as pa

from schemas.fields import dataset_schema, documented

HISTORY: Mapping[str, str] = {
    "1.0": "`user_id`, `source`, `history_length`, `recommendations`; its files call it `1`",
    "1.1": "`scored_at`; the long layout; `layout` in the files' metadata; smaller row groups",
}
"""What each version brought: a new column counts the second number up; whatever could break a reader, the first."""

VERSION = list(HISTORY)[-1]

NESTED, LONG = "nested", "long"
"""The layouts: one row a user, or one row a user and rank."""

SOURCES = ("personalised", "popular")
"""Where a list came from: the user's own vector, or the fallback for users without one."""

_ITEM_ID = documented("item_id", pa.string(), "the item; none is in a list twice, and none that its user has seen")
_SCORE = documented("score", pa.float32(), "finite; scores of one user's list can be compared, those of two users cannot")
RECOMMENDATION = pa.struct([_ITEM_ID, _SCORE])

_USER_ID = documented("user_id", pa.string(), "the user, as text; files are hash buckets of users, sorted by its UTF-8 bytes")
_SOURCE = documented(
    "source",
    pa.string(),
    "'personalised': score is the inner product of the user's and the item's vectors; "
    "'popular': the user has no vector, score is the item's training positives, recent ones counting more",
)
_HISTORY_LENGTH = documented("history_length", pa.int32(), "how many training positives the user has")
_SCORED_AT = documented(
    "scored_at",
    pa.timestamp("us", "UTC"),
    "how new what the list was made from is: --as_of of the run that scored it; by default the time of its newest rating, "
    "or, of ratings without times, when their newest file changed; null where nothing says so",
    nullable=True,
)

TOPK = dataset_schema(
    "topk",
    VERSION,
    [
        _USER_ID,
        _SOURCE,
        _HISTORY_LENGTH,
        documented(
            "recommendations",
            pa.list_(RECOMMENDATION),
            "min(k, eligible items) items, best first: score descending, then item_id ascending; never null, may be empty",
        ),
        _SCORED_AT,
    ],
    layout=NESTED,
)
"""The table as it is by default: one row a user."""

LONG_TOPK = dataset_schema(
    "topk",
    VERSION,
    [
        _USER_ID,
        documented("rank", pa.int32(), "from 1, the best; without gaps"),
        _ITEM_ID,
        _SCORE,
        _SOURCE,
        _HISTORY_LENGTH,
        _SCORED_AT,
    ],
    layout=LONG,
)
"""The table with --layout long: one row a user and rank, by user and then by rank; a user with an empty list has no row."""

LAYOUTS: Mapping[str, pa.Schema] = {NESTED: TOPK, LONG: LONG_TOPK}
