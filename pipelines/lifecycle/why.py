"""Says why an item is in a user's list, or is not: the first rule that holds, in the order in which lists are made.

What a list was made from is read again: which items were withheld, the item's vector, the user tower. The last two are proved
to be what the release was made with, so the score of an item that is in no list is exact, and compares with those that are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.blocks import one_block
from schemas.manifest import StageManifest
from schemas.parquet_files import find_rows
from schemas.stage_files import BLOCKED
from schemas.storage import join
from schemas.stored import check_file
from schemas.topk import SOURCES
from schemas.users import USERS
from transforms.index.build import vectors_of
from transforms.index.popular import RECENT

LISTED, WITHHELD, EXCLUDED, SEEN, UNKNOWN, BELOW, MISSED = (
    "listed",
    "withheld",
    "excluded",
    "seen",
    "unknown_to_the_model",
    "below_the_last",
    "missed",
)

_ROUNDING = 1e-5
"""Of the largest score that two vectors of such lengths can have: two orders of adding them up differ by less."""


@dataclass(frozen=True)
class Why:
    """Why a user has an item in the list, or has not.

    Attributes:
      user_id: the user.
      item_id: the item.
      answer: one of the words above.
      sentence: the same, for people.
      rank: from 1; None where it is not in the list.
      score: the item's; None where it has none.
      last_score: of the last item in the list; None where the list is empty.
    """

    user_id: str
    item_id: str
    answer: str
    sentence: str
    rank: int | None = None
    score: float | None = None
    last_score: float | None = None


class Explainer:
    """Answers for users of a release; what it needs is read once it is needed.

    Args:
      root: the output root.
      stages: the manifests of the release's stages, by name.
      item_id: the item in question, which is in the catalogue.
    """

    def __init__(self, root: str, stages: Mapping[str, StageManifest], item_id: str) -> None:
        self._root = root
        self._stages = stages
        self._item_id = item_id

    def explain(self, listed: Mapping[str, Any], user: pa.Table) -> Why:
        """Returns why.

        Args:
          listed: the user's row of TOPK.
          user: the user's row of USERS.
        """
        pairs = listed["recommendations"]
        last = pairs[-1]["score"] if pairs else None
        for rank, pair in enumerate(pairs, 1):
            if pair["item_id"] == self._item_id:
                sentence = f"rank {rank} of {len(pairs)}, with a score of {pair['score']:.4f}"
                return Why(listed["user_id"], self._item_id, LISTED, sentence, rank, pair["score"], last)
        answer, sentence, score = self._unlisted(listed, user, last)
        return Why(listed["user_id"], self._item_id, answer, sentence, None, score, last)

    def _unlisted(self, listed: Mapping[str, Any], user: pa.Table, last: float | None) -> tuple[str, str, float | None]:
        lists = {name: user[name].to_pylist()[0] for name in ("excluded", "history", "below_min_rating")}
        if self._is_withheld:
            return WITHHELD, "withheld from everyone: --block_items names it, or --allow_items does not", None
        if self._item_id in lists["excluded"]:
            return EXCLUDED, "withheld from this user: --exclude names the two", None
        if not self._stages["recommend"].settings["recommend_seen"]:
            if self._item_id in lists["history"]:
                place = lists["history"][::-1].index(self._item_id) + 1
                return SEEN, f"seen: number {place} from the latest of {len(lists['history'])} in the history", None
            if self._item_id in lists["below_min_rating"]:
                return SEEN, "seen, and rated below --min_rating", None
        if self._embedding is None:
            return UNKNOWN, "unknown to the model, which has no vector for it: it was not rated in training", None
        return self._eligible(listed, user, last)

    def _eligible(self, listed: Mapping[str, Any], user: pa.Table, last: float | None) -> tuple[str, str, float]:
        assert self._embedding is not None
        by = "score"
        if listed["source"] == SOURCES[0]:
            score, rounding = self._score(user)
        else:
            known = self._row_of("ingest", "items")
            assert known is not None
            score = float(known[RECENT][0].as_py())
            rounding = _ROUNDING * max(1.0, abs(score))
            by = "recent popularity"
        place = len(listed["recommendations"])
        has = f"eligible, with a {by} of {score:.4f}"
        if last is None or place < int(self._stages["recommend"].settings["k"]):
            return MISSED, f"{has}, and yet not in a list that has room for it: check the release", score
        if score <= last + rounding:
            return BELOW, f"{has}, not above the {last:.4f} of the last in the list, number {place}", score
        return MISSED, f"{has}, above the {last:.4f} of the last in the list, number {place}: the search missed it", score

    def _score(self, user: pa.Table) -> tuple[float, float]:
        """Returns the exact inner product, and by how much the order of adding up can change it."""
        block = one_block(user.select(USERS.names).cast(USERS).to_batches(), USERS)
        vectors, _ = self._tower.embed(block)
        assert self._embedding is not None
        vector, item = vectors[0].astype(np.float64), vectors_of(self._embedding["embedding"])[0].astype(np.float64)
        return float(vector @ item), _ROUNDING * float(np.linalg.norm(vector) * np.linalg.norm(item))

    @cached_property
    def _is_withheld(self) -> bool:
        paths = self._stages.get("lists", self._stages["recommend"]).paths(self._root, BLOCKED)  # As earlier programs had it.
        ids = pa.array([self._item_id], pa.string())
        return bool(paths) and len(find_rows(paths, "item_id", ids)) > 0

    @cached_property
    def _embedding(self) -> pa.RecordBatch | None:
        """The item's row of the embeddings."""
        return self._row_of("embed", "embeddings")

    def _row_of(self, stage: str, dataset: str) -> pa.RecordBatch | None:
        """Returns the item's row of a dataset, once the file it is in is proved to be what was written."""
        made = self._stages[stage]
        ids = pa.array([self._item_id], pa.string())
        for file in made.dataset(dataset):
            path = join(self._root, made.folder, file.path)
            found = find_rows([path], "item_id", ids)
            if len(found):
                check_file(path, file)
                return one_block(found.to_batches(), found.schema)
        return None

    @cached_property
    def _tower(self) -> Any:
        from schemas.stage_files import USER_TOWER
        from transforms.index.embed import UserTower

        return UserTower(self._stages["train"].stored(self._root, USER_TOWER))
