"""What a list holds: how many items, whether seen ones, and how it is searched for and checked."""

from dataclasses import dataclass

from schemas.blocks import Block
from schemas.users import unwanted_columns
from transforms.search.search import SearchSettings

CUTOFFS = (10, 50, 100)
"""Where lists are judged, beside at k."""


@dataclass(frozen=True)
class ListSettings:
    """What a list holds.

    Attributes:
      k: items a user.
      recommend_seen: whether a list may hold items that the user has seen.
      search: how the index is searched.
      checked_fraction: the share of users whose lists are compared with exact search.
    """

    k: int
    recommend_seen: bool
    search: SearchSettings
    checked_fraction: float

    @property
    def cutoffs(self) -> list[int]:
        """Where lists are judged: never beyond k."""
        return sorted({min(cutoff, self.k) for cutoff in CUTOFFS} | {self.k})


def unwanted_of(block: Block, settings: ListSettings) -> Block:
    """Returns the columns of lists of ids that a row must not get: what is excluded, and what the user has seen.

    Args:
      block: rows of USERS.
      settings: what a list holds.
    """
    return block.select(unwanted_columns(settings.recommend_seen))
