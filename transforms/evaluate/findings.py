"""What is found as a table is judged, in numbers that add up over buckets."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from schemas.topk import SOURCES

FAULTS: Mapping[str, str] = {
    "users_once": "every user of ingest has exactly one list",
    "list_length": "a list has exactly min(k, eligible) items",
    "seen": "no list has an item that its user has seen",
    "excluded": "no list has an item that --exclude names for its user",
    "blocked": "every item is in the index, not in --block_items, and in --allow_items where that is given",
    "repeated_items": "no list has an item twice",
    "values": "nothing but scored_at is null, nothing NaN or infinite, every source is known",
    "order": "scores descend, equal ones by item id; ranks count from 1",
    "catalogue": "every item is in the catalogue",
    "layout": "files are hash buckets of users, sorted by user id",
}
"""What can be wrong with a table, by the rule that it breaks."""

OWN = SOURCES[0]
"""The source of lists that follow the user's own vector."""

LAST_LISTS = pa.schema(
    [pa.field("user_id", pa.string(), nullable=False), pa.field("items", pa.list_(pa.string()), nullable=False)]
)
"""The lists of the table that would be replaced, without their scores; or what its users had rated."""

RATED = ("history", "below_min_rating", "holdout")
"""The columns of USERS that hold, together, all that a user has rated."""


@dataclass
class Findings:
    """What was found of some buckets; adds up.

    Attributes:
      faults: by the names of FAULTS: how many users (rows of the table, for `users_once` rows and missing users) it concerns.
      examples: by the same names, one of them in words.
      listed: [num_items] bool, packed to bits: items that are in a list.
      numbers: 'users', 'users_expected', 'pairs', 'lists_empty', 'lists_short' (see `report`); of the overlap
        'users_in_both', 'users_changed' and 'jaccard' (a sum); of histories 'rated_then' (users who had rated something then),
        'rated_both' (those of them who are users now) and 'kept' (a sum of shares).
      gains: [2, 4] float64: for each of `metrics_of`, sums over the users on whom popularity is compared: of the list's value,
        of popularity's, of their difference's square, and of 1.
    """

    listed: np.ndarray
    faults: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAULTS, 0))
    examples: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    gains: np.ndarray = field(default_factory=lambda: np.zeros((2, 4)))

    @classmethod
    def none(cls, num_items: int) -> "Findings":
        """Returns what is found of nothing, in a catalogue of `num_items`."""
        return cls(np.zeros((num_items + 7) // 8, np.uint8))

    def note(self, fault: str, rows: np.ndarray, users: pa.Array, items: pa.Array | None = None) -> None:
        """Counts the users whom a fault concerns, and keeps the first as an example.

        Args:
          fault: one of FAULTS.
          rows: [m] int64, ascending: which of `users`; repeats count once.
          users: [n] string.
          items: [m] string: the item concerned in each of `rows`, where there is one.
        """
        if len(rows):
            self.faults[fault] += len(np.unique(rows))
            example = f"user {users[int(rows[0])].as_py()!r}" + (f", item {items[0].as_py()!r}" if items is not None else "")
            self.examples.setdefault(fault, example)

    def count(self, **numbers: float) -> None:
        """Adds to the numbers."""
        for name, number in numbers.items():
            self.numbers[name] = self.numbers.get(name, 0) + number

    def add(self, other: "Findings") -> None:
        """Takes in what was found elsewhere; of two examples the first by alphabet stays, whatever the order of adding."""
        self.listed = self.listed | other.listed
        for name, count in other.faults.items():
            self.faults[name] += count
        for name, example in other.examples.items():
            self.examples[name] = min(example, self.examples.get(name, example))
        self.count(**other.numbers)
        self.gains = self.gains + other.gains
