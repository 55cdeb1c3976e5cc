"""Chooses how the index is searched: all of it in every worker, or a shard a worker, by what it takes in memory.

fused      a block of users goes through all shards in one process; nothing is shuffled
by_shard   a worker holds one shard at a time; requests and answers are shuffled, which costs a quarter to three quarters more
           time: the dearer the search itself, the less
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from schemas.stage_files import ID_MAP_FILE, INDEX_FOLDER
from schemas.storage import WrittenFile

FUSED, BY_SHARD = PLANS = ("fused", "by_shard")

MAX_WORKER_BYTES = 4 << 30
"""What the shards that a worker holds may take together, if nothing else is said."""
USERS_A_SLICE = 1 << 20
"""Searching for so many takes minutes, loading a shard seconds."""

_VECTORS_FILE = f"/{INDEX_FOLDER}/dataset.npy"
_HASHES_FILE = f"/{INDEX_FOLDER}/hashed_dataset.npy"
_ID_MAP_COPIES = 2
_ITEM_BYTES = 20
"""Of an item's code and counts."""


@dataclass(frozen=True)
class ShardBytes:
    """About what a shard takes in memory."""

    files: int
    """What was written, all of which is loaded, and what the catalogue says of the items."""
    vectors_again: int
    """The second copy of the vectors that exact searches need where the index is approximate; 0 where it is not."""
    id_map: int
    """What looking up the ids of all items in one process adds."""

    @property
    def alone(self) -> int:
        """Where one shard is held at a time."""
        return self.files + self.vectors_again

    @property
    def among_all(self) -> int:
        """Where all shards are held together."""
        return self.alone + self.id_map


def bytes_of_shard(files: Sequence[WrittenFile], num_items: int) -> ShardBytes:
    """Returns what a shard of so many items takes in memory, by the sizes of its files."""
    items = num_items * _ITEM_BYTES + sum(file.bytes for file in files if file.path.endswith(f"/{ID_MAP_FILE}"))
    approximate = any(file.path.endswith(_HASHES_FILE) for file in files)
    return ShardBytes(
        files=sum(file.bytes for file in files) + num_items * _ITEM_BYTES,
        vectors_again=sum(file.bytes for file in files if approximate and file.path.endswith(_VECTORS_FILE)),
        id_map=_ID_MAP_COPIES * items,
    )


class ChosenPlan(NamedTuple):
    """A plan, and why."""

    plan: str
    """'fused' or 'by_shard'."""
    why: str
    """One sentence, with the numbers."""


def choose_plan(shards: Sequence[ShardBytes], max_worker_bytes: int = MAX_WORKER_BYTES) -> ChosenPlan:
    """Chooses 'fused' where a worker can hold the whole index, else 'by_shard'.

    Args:
      shards: what each shard takes.
      max_worker_bytes: what the shards that a worker holds may take together.
    """
    total = sum(shard.among_all for shard in shards)
    again = sum(shard.vectors_again for shard in shards)
    largest = max((shard.alone for shard in shards), default=0)
    limit = f"--max_worker_bytes {_size(max_worker_bytes)}"
    takes = f"the index takes {_size(total)} in memory"
    if again:
        takes += f", {_size(again)} of it a second copy of the vectors, for exact searches"
    if total <= max_worker_bytes:
        held = f"all {len(shards)} shards" if len(shards) > 1 else "its only shard"
        return ChosenPlan(FUSED, f"{takes}, within {limit}: each worker holds {held} and nothing is shuffled")
    if len(shards) == 1:
        return ChosenPlan(FUSED, f"{takes}, above {limit}, and is one shard, which no plan divides: raise --num_shards")
    if largest > max_worker_bytes:
        held = f"a worker holds one of {len(shards)} shards, though the largest takes {_size(largest)}: raise --num_shards"
    else:
        held = f"a worker holds one of {len(shards)} shards, {_size(largest)} at most, and requests are shuffled"
    return ChosenPlan(BY_SHARD, f"{takes}, above {limit}: {held}")


def choose_slices(num_users: int) -> int:
    """Returns how many workers should be able to search the same shard side by side; each of them loads it."""
    return max(1, math.ceil(num_users / USERS_A_SLICE))


def _size(num_bytes: int) -> str:
    for unit, digits in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if num_bytes >= 1 << digits:
            return f"{num_bytes / (1 << digits):.3g} {unit}"
    return f"{num_bytes} bytes"
