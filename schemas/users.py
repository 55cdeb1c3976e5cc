"""Users: one row a user, with the history that personalises the list and the items held out to judge it."""

import pyarrow as pa

from schemas.fields import dataset_schema, documented

USERS = dataset_schema(
    "users",
    1,
    [
        documented("user_id", pa.string(), "the user; files are hash buckets of users, sorted by user_id"),
        documented("history", pa.list_(pa.string()), "training positives, oldest first, no item twice"),
        documented(
            "excluded",
            pa.list_(pa.string()),
            "items that must not be recommended to this user, from --exclude, in their order; none until that is read",
        ),
        documented("below_min_rating", pa.list_(pa.string()), "items rated below --min_rating: seen, but no positives"),
        documented("holdout", pa.list_(pa.string()), "positives held out of training, oldest first"),
    ],
)


def unwanted_columns(recommend_seen: bool) -> list[str]:
    """Returns the columns of USERS whose items a user must not get: what is excluded, and what the user has seen.

    Args:
      recommend_seen: whether a user may get what the user has seen.
    """
    return ["excluded"] if recommend_seen else ["excluded", "history", "below_min_rating"]
