"""One harness for every model: what it learns from, whom it lists for, and how its lists are judged.

All of it comes from a finished ingest, and lists are judged by the code that judges a run's table, so that a model differs
from another by nothing but its scores.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.manifest import StageManifest
from schemas.parquet_files import read_parquet_blocks
from schemas.users import unwanted_columns
from transforms.ingest.split import hash_pairs
from transforms.io.partition import hash_ids
from transforms.search.id_map import IdMap
from transforms.search.ranking_metrics import metrics_of_users
from transforms.search.top_k import PAD, Lists, codes_of, exclude, merge, pack

K = 100
CUTOFFS = (10, 20, 50, 100)
"""Those of a run, and 20, at which papers on published splits report recall (hits for each held-out item) and NDCG."""
METRICS = [f"{name}@{cutoff}" for cutoff in CUTOFFS for name in ("recall", "ndcg", "hit_rate")] + ["mrr"]
"""The order of `Judged.of_users`."""
OBJECTIVE = ("recall@100", "ndcg@10")
"""Their sum is what settings are chosen by, here as in training."""

_USERS_AT_ONCE = 1_024
_MAX_VALIDATION_USERS = 2_000

Scorer = Callable[[np.ndarray], np.ndarray]
"""[n] int64 users -> [n, num_items] float32 scores, -inf for an item that must not be listed."""


class Pairs(NamedTuple):
    """What a model learns from: n different (user, item) pairs.

    Attributes:
      user: [n] int64 codes below num_users.
      item: [n] int64 codes below num_items.
      time: [n] int64 seconds; zeros where there are no times.
      num_users: how many users there are, with pairs or without.
      num_items: likewise.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    num_users: int
    num_items: int

    @property
    def keys(self) -> np.ndarray:
        """[n] int64: one number for each pair."""
        return self.user * self.num_items + self.item

    @property
    def counts_of_users(self) -> np.ndarray:
        """[num_users] int64."""
        return np.bincount(self.user, minlength=self.num_users)

    @property
    def counts_of_items(self) -> np.ndarray:
        """[num_items] int64."""
        return np.bincount(self.item, minlength=self.num_items)

    def where(self, rows: np.ndarray) -> "Pairs":
        """Returns the pairs of some rows ([n] bool)."""
        return self._replace(user=self.user[rows], item=self.item[rows], time=self.time[rows])


class Question(NamedTuple):
    """What every model is asked, and what the answers are judged by.

    Attributes:
      pairs: what to learn from.
      user_ids: [num_users] string, by code.
      item_ids: [num_items] string, by code: the catalogue.
      users: the users' rows, as `ingest` left them, in the order of their codes.
      unwanted: for each user, codes that must not be listed.
      holdout: for each user, held-out codes, -1 for an item outside the catalogue.
      recent: [num_items] float32: recent counts, by which users without pairs get their lists.
    """

    pairs: Pairs
    user_ids: pa.Array
    item_ids: pa.Array
    users: list[pa.RecordBatch]
    unwanted: Lists
    holdout: Lists
    recent: np.ndarray


class Model(NamedTuple):
    """Something that makes lists.

    Attributes:
      score: of all items for some users.
      known: [num_users] bool: for whom; the others get what is recently popular.
    """

    score: Scorer
    known: np.ndarray


class Judged(NamedTuple):
    """A model's lists, judged.

    Attributes:
      of_users: [num_judged, num_metrics] float64: of the users who have held-out items, in the order of METRICS.
      coverage: the share of the catalogue that is in any user's first 100.
    """

    of_users: np.ndarray
    coverage: float


def read_question(root: str, ingested: StageManifest) -> Question:
    """Reads what a finished ingest wrote; memory holds all of it.

    Args:
      root: the output.
      ingested: the stage.
    """
    users = _blocks(root, ingested, "users")
    items = pa.Table.from_batches(_blocks(root, ingested, "items", ["item_id", "code", "recent_count"])).sort_by("code")
    train = pa.Table.from_batches(_blocks(root, ingested, "interactions/train", ["user_id", "item_id", "timestamp"]))
    user_ids = pa.concat_arrays([block["user_id"] for block in users])
    item_ids = items["item_id"].combine_chunks()
    id_map = IdMap(item_ids, np.arange(len(item_ids)))
    pairs = Pairs(
        user=pc.index_in(train["user_id"], user_ids).to_numpy().astype(np.int64),
        item=id_map.codes_of(train["item_id"].combine_chunks()),
        time=train["timestamp"].fill_null(0).to_numpy(),
        num_users=len(user_ids),
        num_items=len(item_ids),
    )
    return Question(
        pairs,
        user_ids,
        item_ids,
        users,
        unwanted=_joined(id_map.lists_of(*(block[name] for name in unwanted_columns(False))) for block in users),
        holdout=_joined(id_map.lists_of(block["holdout"]) for block in users),
        recent=items["recent_count"].to_numpy().astype(np.float32),
    )


def _blocks(root: str, manifest: StageManifest, dataset: str, columns: list[str] | None = None) -> list[pa.RecordBatch]:
    return [block for path in manifest.paths(root, dataset) for block in read_parquet_blocks(path, columns)]


def _joined(blocks: Iterable[Lists]) -> Lists:
    lists = list(blocks)
    counts = np.concatenate([each.counts for each in lists])
    return Lists(np.concatenate([each.values for each in lists]), np.concatenate([[0], np.cumsum(counts)]))


def validation_of(question: Question, split: str, fraction: float, seed: int) -> Question:
    """Returns the same question about a slice of the pairs: settings are chosen by the answers to that one.

    The slice is held out as the test is: the latest pairs where the split is temporal, pairs by a hash of their ids otherwise.
    At most 2,000 users are judged.

    Args:
      question: about the test, which is not looked at.
      split: how the test was held out.
      fraction: of the pairs.
      seed: of the hash, and of the choice of users.
    """
    pairs = question.pairs
    if split == "temporal":
        held = pairs.time >= np.quantile(pairs.time, 1 - fraction)
    else:
        of_users, of_items = hash_ids(question.user_ids, 2 * seed + 2), hash_ids(question.item_ids, 2 * seed + 3)
        held = hash_pairs(of_users[pairs.user], of_items[pairs.item]) < np.uint64(fraction * 2**64)
    left = pairs.where(~held)
    judged = held & (left.counts_of_users[pairs.user] > 0)
    users = np.unique(pairs.user[judged])
    if len(users) > _MAX_VALIDATION_USERS:
        users = np.random.default_rng(seed).choice(users, _MAX_VALIDATION_USERS, replace=False)
        judged &= np.isin(pairs.user, users)
    order = np.flatnonzero(judged)[np.argsort(pairs.user[judged], kind="stable")]
    holdout = Lists(
        pairs.item[order],
        np.concatenate([[0], np.cumsum(np.bincount(pairs.user[order], minlength=pairs.num_users))]),
    )
    unwanted = question.unwanted
    user_of = np.repeat(np.arange(len(unwanted)), unwanted.counts)
    stays = (unwanted.values >= 0) & ~np.isin(user_of * pairs.num_items + unwanted.values, pairs.keys[held])
    return question._replace(
        pairs=left,
        unwanted=Lists(
            unwanted.values[stays],
            np.concatenate([[0], np.cumsum(np.bincount(user_of[stays], minlength=pairs.num_users))]),
        ),
        holdout=holdout,
    )


def lists_of(model: Model, question: Question, users: np.ndarray) -> np.ndarray:
    """Returns the exact lists of some users, as a run would make them: best first, equal scores by code.

    Args:
      model: whose scores decide.
      question: what must not be listed.
      users: [n] int64.

    Returns:
      [n, 100] int64 codes, -1 after the last.
    """
    codes = np.empty((len(users), K), np.int64)
    popular = np.where(question.pairs.counts_of_items > 0, question.recent, -np.inf)
    for start in range(0, len(users), _USERS_AT_ONCE):
        part = users[start : start + _USERS_AT_ONCE]
        scores = np.where(model.known[part][:, np.newaxis], model.score(part), popular).astype(np.float32)
        keys = exclude(pack(scores, np.arange(scores.shape[1])), question.unwanted.take(part))
        keys[scores == -np.inf] = PAD
        if keys.shape[1] > K:
            keys = np.partition(keys, K, axis=1)[:, :K]
        codes[start : start + len(part)] = codes_of(merge(keys, K))
    return codes


def judge(model: Model, question: Question, users: np.ndarray | None = None) -> Judged:
    """Judges a model by what was held out of some users, or of all."""
    users = np.arange(len(question.user_ids)) if users is None else users
    codes = lists_of(model, question, users)
    covered = np.unique(codes[codes >= 0])
    return Judged(metrics_of_users(codes, question.holdout.take(users), CUTOFFS), len(covered) / max(1, len(question.item_ids)))


def objective(model: Model, question: Question) -> float:
    """Returns the mean of Recall@100 + NDCG@10 over the users with held-out items."""
    of_users = judge(model, question, np.flatnonzero(question.holdout.counts)).of_users
    return float(sum(of_users[:, METRICS.index(name)].mean() for name in OBJECTIVE))
