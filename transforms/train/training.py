"""Trains the two towers: reads interactions, fits, stops early, resumes from checkpoints, and writes SavedModels.

A run searches for the number of epochs on a validation slice, and then, since more data is the best regulariser there is,
trains anew for so many epochs on every training row.

Memory: about 40 bytes a training row while reading, the ids of the vocabulary, and 16 bytes for each of (users + items) x dim
(weights, two moments, the best weights so far), 12 more while a checkpoint is written.

Nothing depends on anything but the rows, the settings and the machine: two runs give the same
bits, and so does one that was interrupted, wherever, and went on from its checkpoint.

TensorFlow is imported when training begins, not before: a pipeline is built without it.
"""

import hashlib
import json
import math
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystem import BeamIOError

from schemas.blocks import Block
from schemas.errors import InputError
from schemas.manifest import fingerprint_of
from schemas.parquet_files import read_parquet_blocks
from schemas.stage_files import CURVES_FILE, ITEM_TOWER, TENSORBOARD, USER_TOWER
from schemas.storage import WrittenFile, delete, exists, join, open_file, replacing, upload_folder, write_file
from transforms.ingest.split import hash_pairs
from transforms.io.partition import hash_ids
from transforms.io.progress import TALLY
from transforms.train.curves import CurveRow, TensorBoardLogs
from transforms.train.encode_features import ItemFeatures, encode_rated, fit_features
from transforms.train.features import Feature
from transforms.train.pace import Pace, Standing, describe
from transforms.train.recency import (
    MODES,
    PLAIN,
    TASTES,
    Blend,
    RatedItems,
    Tried,
    blend_of,
    blends_to_try,
    choose,
    item_bias,
    lift_items,
    lift_users,
)

if TYPE_CHECKING:
    import tensorflow as tf

    from transforms.train.towers import TwoTowers

USER_TOWERS = ("id", "history", "id+history")
"""The kinds of user tower: see `transforms.train.user_towers`."""

L2_OF = {"id": 0.1, "history": 0.04, "id+history": 0.1}
"""The weight of L2 that suits a user tower: on MovieLens-100K, validation, three seeds."""

ITEM_TOWERS = ("id", "id+features")
"""The kinds of item tower: see `transforms.train.item_towers`."""

PHASES = ("search", "full")

VALIDATIONS = ("random", "temporal", "last")

RECALL_AT = 100
NDCG_AT = 10
MAX_VALIDATION_USERS = 2_000
_SCORES_AT_ONCE = 1 << 24
_SCORES_TO_CHOOSE_BY = 1 << 24
_FEWEST_TO_CHOOSE_BY = 300
"""A blend is chosen by no more users than give so many scores each time, but not by fewer than so many."""
_STEPS_A_CALL = 64
_ROWS_TOGETHER = 4
"""Rows of a user that stay together in an epoch, where the user's history is looked at."""
_WORK_A_SAVE = 20
"""Between two checkpoints at least so many times as long is worked as saving one took."""
CHECKPOINT_SECS = 5.0
"""How much work an interrupted training may lose, about."""


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
      user_tower: 'id': a vector of its own for each user; 'history': the mean of the vectors of what a user rated, which
        serves users that training never saw; 'id+history': their sum.
      item_tower: 'id': a vector of its own for each item; 'id+features': that and those of its features, which serves items
        that training never saw.
      features: what 'id+features' looks at; 'id' at none of them.
      id_dropout: the part of the training rows that leave the item's own vector out where there are features, and the user's
        where there are histories, so that these learn to do without.
      dim: of the vectors.
      learning_rate: of Adam; scale it with the batch size.
      batch_size: rows a step, and so negatives a row; cut down to the number of rows where there are fewer.
      mixed_negatives: candidates that are added to each batch's own, uniform from all items: they put what is rarely rated
        down, where the batch alone hardly meets it.
      history_sample: the most items of a user's history that a step looks at, drawn anew each time; it bounds a step's memory
        and time, not what is served, which is made of the whole history.
      l2: adds l2 / 2 times the mean squared length of a batch's user and item vectors to the loss; None for what suits the
        user tower.
      max_epochs: the most passes over the data; without a validation slice, exactly so many.
      patience: stops after so many epochs without a better validation quality (Recall@100 + NDCG@10), and not before twice as
        many.
      validation: how the validation slice is chosen, which should be as what is to come will be: 'random', by a stable hash
        of (user, item); 'temporal', the latest rows; 'last', the last rows of users. Without times it is random.
      validation_fraction: of the rows, at most; 0 turns early stopping, the second training and every choice off.
      include_validation: trains anew on every training row, the slice included, for the best number of epochs; without it,
        the best epoch's weights are kept.
      recency: 'auto': how much recent popularity and taste count is chosen on the validation slice, where there are times;
        'on': recent popularity counts in full, unchosen; 'off': not at all. See `transforms.train.recency`.
      half_life_days: how long it takes for a rating to count half towards recent popularity; 'auto' looks around it.
      blend: what another training has chosen, for one that has no slice to choose by.
      seed: of the first weights, the order of the rows and the validation slice.
    """

    user_tower: str = "id"
    item_tower: str = "id"
    features: tuple[Feature, ...] = ()
    id_dropout: float = 0.2
    dim: int = 64
    learning_rate: float = 0.003
    batch_size: int = 512
    mixed_negatives: int = 0
    history_sample: int = 200
    l2: float | None = None
    max_epochs: int = 50
    patience: int = 4
    validation: str = "random"
    validation_fraction: float = 0.1
    include_validation: bool = True
    recency: str = "auto"
    half_life_days: float = 7.0
    blend: Blend | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        if self.user_tower not in USER_TOWERS:
            raise InputError(
                f"user_tower must be one of {', '.join(USER_TOWERS)}, got {self.user_tower!r}: change --user_tower"
            )
        if self.item_tower not in ITEM_TOWERS:
            raise InputError(
                f"item_tower must be one of {', '.join(ITEM_TOWERS)}, got {self.item_tower!r}: change --item_tower"
            )
        if self.looks_at_features and not self.features:
            raise InputError(f"item_tower {self.item_tower} needs features: declare them, as in --features genres=categories")
        if not 0 <= self.id_dropout < 1:
            raise InputError(f"id_dropout must be at least 0 and below 1, got {self.id_dropout:g}: change --id_dropout")
        if self.recency not in MODES:
            raise InputError(f"recency must be one of {', '.join(MODES)}, got {self.recency!r}: change --recency")
        if self.validation not in VALIDATIONS:
            raise ValueError(f"validation must be one of {', '.join(VALIDATIONS)}, got {self.validation!r}")
        for name, low, high in [
            ("dim", 1, 4096),
            ("batch_size", 1, 65_536),
            ("mixed_negatives", 0, 65_536),
            ("history_sample", 1, 65_536),
            ("max_epochs", 1, 10_000),
            ("patience", 1, 10_000),
            ("seed", 0, 2**31 - 1),
        ]:
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} must be between {low} and {high}, got {getattr(self, name)}: change --{name}")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate must be a number above 0, got {self.learning_rate:g}: change --learning_rate")
        if not 0 <= self.l2_weight < math.inf:
            raise InputError(f"l2 must be a number of at least 0, got {self.l2_weight:g}: change --l2")
        if not 0 <= self.validation_fraction <= 0.5:
            raise InputError(
                f"validation_fraction must be between 0 and 0.5, got {self.validation_fraction:g}: change --validation_fraction"
            )

    @property
    def l2_weight(self) -> float:
        """The weight of the L2 penalty."""
        return L2_OF[self.user_tower] if self.l2 is None else self.l2

    @property
    def looks_at_features(self) -> bool:
        """Whether the item tower does."""
        return self.item_tower != "id"


class TrainingRows(NamedTuple):
    """Every training positive, in codes, sorted by user and then by item.

    Attributes:
      user_ids: [num_users] string, ascending: the user of each code.
      item_ids: [num_items] string, ascending.
      user: [n] int32 codes.
      item: [n] int32 codes.
      timestamp: [n] int64, seconds; None where the source has no times.
      features: of the items, where the item tower looks at them.
    """

    user_ids: pa.Array
    item_ids: pa.Array
    user: np.ndarray
    item: np.ndarray
    timestamp: np.ndarray | None = None
    features: ItemFeatures | None = None

    def where(self, chosen: np.ndarray) -> "TrainingRows":
        """Returns the rows where `chosen` ([n] bool) is true, in the same codes."""
        timestamp = None if self.timestamp is None else self.timestamp[chosen]
        return self._replace(user=self.user[chosen], item=self.item[chosen], timestamp=timestamp)

    @property
    def rated(self) -> RatedItems:
        """Which item was rated when."""
        return RatedItems(self.item, self.timestamp, len(self.item_ids))


class TrainingPaths(NamedTuple):
    """The Parquet files that training reads.

    Attributes:
      interactions: of INTERACTIONS.
      items: of ITEMS, in the catalogue's order; needed for features only.
    """

    interactions: list[str]
    items: list[str]


class Quality(NamedTuple):
    """How well the held-out items of users are ranked, a mean over the users."""

    recall_at_100: float
    ndcg_at_10: float


def read_rows(paths: Iterable[str]) -> TrainingRows:
    """Reads files of INTERACTIONS and turns ids into codes, a block at a time; the files' layout and order change nothing.

    Raises:
      InputError: if the files hold no rows.
    """
    users, items, timestamps = [], [], []
    for path in paths:
        for block in read_parquet_blocks(path, columns=["user_id", "item_id", "timestamp"]):
            users.append(block["user_id"].dictionary_encode())
            items.append(block["item_id"].dictionary_encode())
            timestamps.append(block["timestamp"])
    if not users:
        raise InputError("there is nothing to train on, the training interactions have 0 rows: check the ratings and the split")
    user_ids, user = _codes(users)
    item_ids, item = _codes(items)
    pair = user.astype(np.int64) * len(item_ids) + item
    order = np.argsort(pair)
    timestamp = pa.chunked_array(timestamps)
    return TrainingRows(
        user_ids, item_ids, user[order], item[order], None if timestamp.null_count else timestamp.to_numpy()[order]
    )


def _codes(blocks: list[pa.DictionaryArray]) -> tuple[pa.Array, np.ndarray]:
    """Returns the different ids, ascending, and [n] int32: which of them each row has."""
    chunks = pa.chunked_array(blocks).unify_dictionaries().chunks
    ids = chunks[0].dictionary
    order = pc.sort_indices(ids).to_numpy()
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return ids.take(pa.array(order)), np.concatenate([rank[chunk.indices.to_numpy()] for chunk in chunks])


def with_features(
    rows: TrainingRows, paths: Sequence[str], features: Sequence[Feature]
) -> tuple[TrainingRows, dict[str, dict[str, Any]]]:
    """Learns what features say of the items, and encodes them; reads the catalogue twice and keeps none of it.

    Args:
      rows: what to learn from.
      paths: files of ITEMS with the features' columns, in the catalogue's order.
      features: what is declared; none leaves the rows as they are.

    Returns:
      The rows with their features, and a report on each column.
    """
    if not features:
        return rows, {}
    columns = ["item_id", "train_count", *(feature.column for feature in features)]

    def blocks() -> Iterator[Block]:
        return (block for path in paths for block in read_parquet_blocks(path, columns))

    encoder, report = fit_features(blocks(), features)
    return rows._replace(features=ItemFeatures(encoder, encode_rated(blocks(), encoder, rows.item_ids))), report


def validation_rows(rows: TrainingRows, settings: TrainingSettings) -> tuple[np.ndarray, np.ndarray]:
    """Chooses the rows to validate on, and those to train on until the number of epochs is known.

    'temporal': the latest rows by time, with one cut for all; nothing that came after it is trained on, and who came after it
    is not validated on. 'random': by a hash of (user, item), so that the same pair goes the same way next time. 'last': the
    last row of each user, or of as many users, by a hash, as the fraction allows. With the latter two, users and items that
    would be left without any other row are not validated on: their vectors would be noise.

    Returns:
      [n] bool: held out, and [n] bool: trained on.
    """
    if settings.validation == "temporal" and rows.timestamp is not None:
        after = _after_cut(rows.timestamp, settings.validation_fraction)
        if after.any():
            known = np.bincount(rows.user[~after], minlength=len(rows.user_ids)) > 0
            return after & known[rows.user], ~after
    users = hash_ids(rows.user_ids, 2 * settings.seed + 2)
    if settings.validation == "last" and rows.timestamp is not None:
        chosen = _last_of_each(rows.user, rows.timestamp)
        share = settings.validation_fraction * len(chosen) / chosen.sum(dtype=np.int64)
        chosen &= (users < share * 2.0**64)[rows.user]
    else:
        pairs = hash_pairs(users[rows.user], hash_ids(rows.item_ids, 2 * settings.seed + 3)[rows.item])
        chosen = pairs < np.uint64(settings.validation_fraction * 2**64)
    for codes, num_codes in ((rows.user, len(rows.user_ids)), (rows.item, len(rows.item_ids))):
        left = np.bincount(codes[~chosen], minlength=num_codes)
        chosen &= left[codes] > 0
    return chosen, ~chosen


def _after_cut(timestamp: np.ndarray, fraction: float) -> np.ndarray:
    """Returns [n] bool: the latest `fraction` of the rows; those of one second go together, and never more than half go."""
    times = np.sort(timestamp)
    cut = times[min(len(times) - 1, round(len(times) * (1 - fraction)))]
    if fraction and np.searchsorted(times, cut) < len(times) / 2:
        cut += 1
    return timestamp >= cut if fraction else np.zeros(len(times), bool)


def _last_of_each(user: np.ndarray, timestamp: np.ndarray) -> np.ndarray:
    """Returns [n] bool: each user's last row, the last of those of one second."""
    order = np.lexsort((timestamp, user))
    last = np.zeros(len(user), bool)
    last[order[np.flatnonzero(np.diff(user[order], append=-1))]] = True
    return last


class Validation(NamedTuple):
    """Users to validate on, a sample where there are many.

    Attributes:
      users: [num_users] int32 codes.
      seen: [s] int64, ascending: (the user's row in `users`) x num_items + item, for each row trained on.
      held_out: [h] int64, ascending: the same, for each row held out.
    """

    users: np.ndarray
    seen: np.ndarray
    held_out: np.ndarray

    def some(self, num_users: int, num_items: int) -> "Validation":
        """Returns the same for no more than `num_users` of the users, spread evenly."""
        if len(self.users) <= num_users:
            return self
        rows = np.arange(num_users) * len(self.users) // num_users
        place = np.full(len(self.users), -1, np.int64)
        place[rows] = np.arange(num_users)
        seen, held_out = (
            (place[keys // num_items] * num_items + keys % num_items)[place[keys // num_items] >= 0]
            for keys in (self.seen, self.held_out)
        )
        return Validation(self.users[rows], seen, held_out)


def make_validation(rows: TrainingRows, held_out: np.ndarray, trained_on: np.ndarray, seed: int) -> Validation:
    """Returns what is needed to validate on the rows where `held_out` ([n] bool) is true, after training on `trained_on`."""
    users = np.unique(rows.user[held_out])
    if len(users) > MAX_VALIDATION_USERS:
        users = np.sort(np.random.default_rng(seed).choice(users, MAX_VALIDATION_USERS, replace=False))
    place = np.full(len(rows.user_ids), -1, np.int64)
    place[users] = np.arange(len(users))
    key = place[rows.user] * len(rows.item_ids) + rows.item
    sampled = place[rows.user] >= 0
    return Validation(users, key[sampled & trained_on], key[sampled & held_out])


def quality_of(user_vectors: np.ndarray, item_vectors: np.ndarray, validation: Validation) -> Quality:
    """Returns the means of `qualities_of`."""
    recall, ndcg = qualities_of(user_vectors, item_vectors, validation)
    return Quality(float(recall.mean()), float(ndcg.mean()))


def qualities_of(user_vectors: np.ndarray, item_vectors: np.ndarray, validation: Validation) -> tuple[np.ndarray, np.ndarray]:
    """Ranks the whole catalogue for each validation user, exactly, without the items seen in training.

    Args:
      user_vectors: [num_users, dim] float32, of the validation's users.
      item_vectors: [num_items, dim] float32; an item whose score is -inf is in no list.
      validation: the users' seen and held-out items.

    Returns:
      [num_users] float64: each user's Recall@100, and likewise NDCG@10.
    """
    import tensorflow as tf

    num_items = len(item_vectors)
    k = min(RECALL_AT, num_items)
    held = np.bincount(validation.held_out // num_items, minlength=len(user_vectors))
    discount = 1 / np.log2(np.arange(min(NDCG_AT, k)) + 2)
    ideal = np.cumsum(discount)[np.minimum(held, len(discount)) - 1]
    found_of_all, gain_of_all = [], []
    rows_at_once = max(1, _SCORES_AT_ONCE // num_items)
    for start in range(0, len(user_vectors), rows_at_once):
        scores = user_vectors[start : start + rows_at_once] @ item_vectors.T
        first, last = np.searchsorted(validation.seen, np.array([start, start + len(scores)]) * num_items)
        scores.reshape(-1)[validation.seen[first:last] - start * num_items] = -np.inf
        best, top = (each.numpy() for each in tf.math.top_k(scores, k))
        key = (np.arange(start, start + len(scores)) * num_items)[:, np.newaxis] + top
        found = np.searchsorted(validation.held_out, key)
        hit = (validation.held_out[np.minimum(found, len(validation.held_out) - 1)] == key) & (best > -np.inf)
        found_of_all.append(hit.sum(axis=1))
        gain_of_all.append(hit[:, : len(discount)] @ discount)
    return np.concatenate(found_of_all) / held, np.concatenate(gain_of_all) / ideal


@dataclass
class Progress:
    """Where a training stands. With the weights, it is all that a restarted one needs: every epoch's order has its own seed."""

    phase: int = 0
    """0: the search for the best epoch (or the only fit); 1: the full training on every row; see PHASES."""
    epoch: int = 0
    """How many epochs of this phase are done."""
    step: int = 0
    """How many steps of the epoch under way are done."""
    loss: float = 0.0
    """The sum over those steps."""
    best_quality: float = -1.0
    best_epoch: int = 0
    curve: list[CurveRow] = field(default_factory=list)
    recency: dict[str, Any] | None = None
    """What was chosen after the search, as `transforms.train.recency.Choice` reports it."""


class Checkpoint(NamedTuple):
    """All of a training's state."""

    progress: Progress
    variables: list[np.ndarray]
    """Weights, then what the optimizer keeps."""
    best: list[np.ndarray]
    """The weights of the best epoch."""


def write_checkpoint(path: str, checkpoint: Checkpoint) -> None:
    """Writes `checkpoint` to one file, whole, in place of the one before."""
    arrays = {f"variable_{index}": value for index, value in enumerate(checkpoint.variables)}
    arrays |= {f"best_{index}": value for index, value in enumerate(checkpoint.best)}
    arrays["progress"] = np.array(json.dumps(asdict(checkpoint.progress)))
    with replacing(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_checkpoint(path: str) -> Checkpoint | None:
    """Returns the checkpoint at `path`, or None where there is none that can be read: training then begins anew."""
    if not exists(path):
        return None
    try:
        with open_file(path) as file, np.load(file, allow_pickle=False) as arrays:
            variables, best = (
                [arrays[f"{kind}_{index}"] for index in range(len(arrays)) if f"{kind}_{index}" in arrays]
                for kind in ("variable", "best")
            )
            return Checkpoint(Progress(**json.loads(str(arrays["progress"]))), variables, best)
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    except (OSError, BeamIOError):
        if exists(path):
            raise
        return None  # Another run of the same training has just ended, and has tidied up.


def checkpoint_path(folder: str, rows: TrainingRows, settings: TrainingSettings) -> str:
    """Returns where a training's checkpoint lies: other rows or settings have another file."""
    digest = hashlib.sha256()
    arrays = [hash_ids(rows.user_ids), hash_ids(rows.item_ids), rows.user, rows.item]
    arrays += [] if rows.timestamp is None else [rows.timestamp]
    arrays += rows.features.bags if rows.features else []
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return join(folder, f"checkpoint-{fingerprint_of([asdict(settings), digest.hexdigest()])}.npz")


def epoch_order(user: np.ndarray, rows_together: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the order in which an epoch takes the training rows: at random, but for some rows of a user that stay together.

    What is computed once for each user of a batch then costs less.

    Args:
      user: [n] int32, ascending.
      rows_together: so many rows of the same user stand side by side, fewer where its rows run out.
      rng: what decides.

    Returns:
      [n] int32.
    """
    order = rng.permutation(len(user)).astype(np.int32)
    if rows_together == 1:
        return order
    order = order[np.argsort(user[order], kind="stable")]
    starts = np.searchsorted(user, user)
    group = np.cumsum((np.arange(len(user)) - starts) % rows_together == 0) - 1
    place = rng.permutation(group[-1] + 1)
    return order[np.argsort(place[group], kind="stable")]


class _Fit:
    """A model under training, its optimizer, and its best weights so far.

    Args:
      rows: what it is trained on.
      settings: how.
      progress: where it stands.
      validation: what it is validated on, if anything.
      blends: ways to make scores; an epoch is as good as the best of them.
    """

    def __init__(
        self,
        rows: TrainingRows,
        settings: TrainingSettings,
        progress: Progress,
        validation: Validation | None,
        blends: Sequence[Blend] = (PLAIN,),
    ) -> None:
        from transforms.train import item_towers, towers, user_towers

        seed = 8 * settings.seed + 4 * progress.phase
        num_items = len(rows.item_ids)
        with np.errstate(divide="ignore"):  # What is in no row is never drawn from them.
            log_probability = np.log(rows.rated.counts) - np.log(len(rows.item))
        histories = user_towers.Histories(rows.user, rows.item, len(rows.user_ids))
        self.model = towers.TwoTowers(
            user_towers.make_user_tower(
                settings.user_tower,
                histories,
                num_items,
                settings.dim,
                settings.history_sample,
                settings.id_dropout,
                settings.l2_weight,
                seed,
            ),
            item_towers.make_item_tower(
                rows.features if settings.looks_at_features else None,
                num_items,
                settings.dim,
                settings.id_dropout,
                settings.l2_weight,
                seed + 1,
            ),
            log_probability,
            settings.mixed_negatives,
            seed,
            item_bias(rows.rated, PLAIN),
        )
        self.model.optimizer = towers.SparseAdam(settings.learning_rate)
        self.model.optimizer.build(self.model.trainable_variables)
        self.best = self._weights()
        self.steps_done = 0
        self._rows, self._settings, self._progress, self._validation = rows, settings, progress, validation
        self._blends = blends

    def _weights(self) -> list[np.ndarray]:
        return [variable.numpy() for variable in self.model.trainable_variables]

    def _variables(self) -> list["tf.Variable"]:
        return [*self.model.trainable_variables, *self.model.optimizer.variables]

    def checkpoint(self) -> Checkpoint:
        """Returns where the training stands; one that has failed never takes the place of a good one."""
        variables = [variable.numpy() for variable in self._variables()]
        self._check(variables)
        return Checkpoint(self._progress, variables, self.best)

    def _check(self, variables: list[np.ndarray]) -> None:
        if not all(np.isfinite(variable).all() for variable in variables):
            self._fail(self._progress.step - 1, "vectors")

    def resume(self, checkpoint: Checkpoint) -> None:
        """Takes over the weights and the optimizer of an earlier attempt."""
        for variable, value in zip(self._variables(), checkpoint.variables, strict=True):
            variable.assign(value)
        self.best = checkpoint.best

    def restore_best(self) -> None:
        """Goes back to the weights of the best epoch."""
        for variable, value in zip(self.model.trainable_variables, self.best, strict=True):
            variable.assign(value)

    def run(self, num_epochs: int) -> Iterator[None]:
        """Trains for `num_epochs`, or until validation gets no better; yields wherever it could go on from a checkpoint."""
        progress = self._progress
        while progress.epoch < num_epochs and not self._is_out_of_patience():
            for losses in self._steps():
                progress.loss += float(losses.sum(dtype=np.float64))
                progress.step += len(losses)
                self.steps_done += len(losses)
                yield
            self._end_epoch()
            yield

    def _is_out_of_patience(self) -> bool:
        return self._validation is not None and self._progress.epoch >= self._end_of_patience

    @property
    def _end_of_patience(self) -> int:
        """How many epochs are done when training ends, if none that is yet to come is better."""
        # Vectors begin near zero, where a list is what is popular, and the first that they learn may be worse than that.
        return max(self._progress.best_epoch, self._settings.patience) + self._settings.patience

    def standing(self, num_epochs: int, done_before: int, rows_later: int) -> Standing:
        """Returns how far training has come.

        Args:
          num_epochs: of this phase, at most.
          done_before: steps of this attempt in phases before.
          rows_later: of the phase that follows, which takes as many epochs as the best one took; 0 if none does.
        """
        progress, num_steps = self._progress, steps_an_epoch(len(self._rows.user), self._settings)
        validates = self._validation is not None
        last = min(num_epochs, self._end_of_patience) if validates else num_epochs
        later = max(1, progress.best_epoch) * steps_an_epoch(rows_later, self._settings) if rows_later else 0
        return Standing(
            phase=PHASES[progress.phase],
            epoch=progress.epoch + (progress.step > 0 or not progress.epoch),
            num_epochs=num_epochs,
            may_end_sooner=validates,
            step=progress.step if progress.step or not progress.epoch else num_steps,
            num_steps=num_steps,
            steps_done=done_before + self.steps_done,
            steps_left=max(0, (last - progress.epoch) * num_steps - progress.step) + later,
            curve=progress.curve,
        )

    def _steps(self) -> Iterator[np.ndarray]:
        """Does what is left of the epoch; yields [num_steps] float32, the losses, some steps at a time.

        An epoch leaves out the few rows that do not fill a batch: others each time.
        """
        settings, progress, rows = self._settings, self._progress, self._rows
        num_rows = len(rows.user)
        batch_size = min(settings.batch_size, num_rows)
        num_steps = steps_an_epoch(num_rows, settings)
        rng = np.random.default_rng([settings.seed, progress.phase, progress.epoch])
        order = epoch_order(rows.user, 1 if settings.user_tower == "id" else _ROWS_TOGETHER, rng)
        batches = order[: num_steps * batch_size].reshape(num_steps, batch_size)
        while progress.step < num_steps:
            chosen = batches[progress.step : progress.step + _STEPS_A_CALL]
            losses = self.model.train_steps(rows.user[chosen], rows.item[chosen], chosen).numpy()
            if not np.isfinite(losses).all():
                self._fail(progress.step + int(np.argmin(np.isfinite(losses))), "loss")
            yield losses

    def _end_epoch(self) -> None:
        """Validates, and adds a row to the curve."""
        progress, variables = self._progress, [variable.numpy() for variable in self._variables()]
        self._check(variables)
        quality = None
        if self._validation is not None:
            quality = max((Quality(**each.means) for each in self.values_of(self._blends, self._validation)), key=sum)
        progress.curve.append(
            {
                "phase": PHASES[progress.phase],
                "epoch": progress.epoch + 1,
                "loss": progress.loss / progress.step,
                "recall_at_100": quality.recall_at_100 if quality else None,
                "ndcg_at_10": quality.ndcg_at_10 if quality else None,
            }
        )
        progress.epoch += 1
        progress.step, progress.loss = 0, 0.0
        if quality and sum(quality) > progress.best_quality:
            progress.best_quality, progress.best_epoch = sum(quality), progress.epoch
            self.best = variables[: len(self.model.trainable_variables)]

    def values_of(self, blends: Iterable[Blend], validation: Validation) -> list[Tried]:
        """Returns what each of `blends` is worth with the weights as they are."""
        users, items = lift_users(self.model.user_tower.vectors_of(validation.users)), self.model.item_tower.vectors
        bias_of = cache(lambda blend: bias_of_served(self._rows, self._settings, blend))  # Tastes share it.
        return [
            Tried(blend, *qualities_of(users, lift_items(items, blend.taste, bias_of(replace(blend, taste=1.0))), validation))
            for blend in blends
        ]

    def choose_blend(self) -> dict[str, Any]:
        """Returns how scores are best made with the weights as they are."""
        assert self._validation is not None
        num_users = max(_FEWEST_TO_CHOOSE_BY, _SCORES_TO_CHOOSE_BY // len(self._rows.item_ids))
        blends = blends_to_try(self._settings.half_life_days)
        return choose(self.values_of(blends, self._validation.some(num_users, len(self._rows.item_ids)))).report()

    def _fail(self, step: int, what: str) -> NoReturn:
        epoch = self._progress.epoch + 1
        raise InputError(
            f"the {what} must be finite, got nan or inf at step {step + 1} of epoch {epoch}: "
            f"lower --learning_rate, which is {self._settings.learning_rate:g}"
        )


def steps_an_epoch(num_rows: int, settings: TrainingSettings) -> int:
    """Returns how many batches an epoch takes; the few rows that do not fill one are left out."""
    return num_rows // min(settings.batch_size, num_rows)


def bias_of_served(rows: TrainingRows, settings: TrainingSettings, blend: Blend) -> np.ndarray:
    """Returns [num_items] float32: `item_bias`, -inf for items that no row has, unless their features speak for them."""
    rated = rows.rated
    bias = item_bias(rated, blend)
    return bias if settings.looks_at_features else np.where(rated.counts > 0, bias, np.float32(-np.inf))


def opening_blends(rows: TrainingRows, validation: Validation | None, settings: TrainingSettings) -> list[Blend]:
    """Returns how scores are made until the best epoch is known: as would be chosen for users without a taste, with any taste.

    Raises:
      InputError: if recency is asked for and there are no times.
    """
    if settings.blend:
        return [settings.blend]
    if settings.recency == "on":
        if rows.timestamp is None:
            raise InputError(
                "recency on needs times, and the ratings have no timestamp column: "
                "name it with --columns timestamp=…, or use --recency auto"
            )
        return [Blend(recency=1.0, half_life_days=settings.half_life_days)]
    if settings.recency == "off" or rows.timestamp is None or validation is None:
        return [PLAIN]
    users = np.ones((len(validation.users), 1), np.float32)
    best = choose(
        [
            Tried(blend, *qualities_of(users, bias_of_served(rows, settings, blend)[:, np.newaxis], validation))
            for blend in blends_to_try(settings.half_life_days, [1.0])
        ]
    ).chosen.blend
    return [replace(best, taste=taste) for taste in TASTES] if best.recency else [best]


class Trained(NamedTuple):
    """What training made.

    Attributes:
      model: the towers.
      num_epochs: how many epochs made its weights.
      curve: a row an epoch.
      quality: on the validation slice, after the search's best epoch; None without a slice.
      blend: how scores are made of the towers' inner products and the popularity of items.
      recency: how that was chosen; None where it was not.
      resumed_epochs: how many epochs were done already by an attempt that was broken off.
    """

    model: "TwoTowers"
    num_epochs: int
    curve: list[CurveRow]
    quality: Quality | None
    blend: Blend = PLAIN
    recency: dict[str, Any] | None = None
    resumed_epochs: int = 0


def train(
    rows: TrainingRows,
    settings: TrainingSettings,
    checkpoints: str | None = None,
    checkpoint_secs: float = CHECKPOINT_SECS,
    on_epoch: Callable[[list[CurveRow]], None] | None = None,
    on_steps: Callable[[Standing], None] | None = None,
) -> Trained:
    """Trains the towers, from the beginning or from the checkpoint of an earlier attempt.

    Args:
      rows: what to learn from.
      settings: how.
      checkpoints: the folder, which may be remote, where checkpoints are found and kept; None does without.
      checkpoint_secs: how much work may be lost, about; 0 saves after each epoch, and within an epoch every few steps.
      on_epoch: is given the curve so far after each epoch.
      on_steps: is told every few steps how far training has come.

    Raises:
      InputError: if the loss stops being finite; names the step.
    """
    path = checkpoint_path(checkpoints, rows, settings) if checkpoints is not None else None
    checkpoint = read_checkpoint(path) if path else None
    progress = checkpoint.progress if checkpoint else Progress()
    resumed = len(progress.curve)
    held_out, trained_on = validation_rows(rows, settings)
    validation = make_validation(rows, held_out, trained_on, settings.seed) if held_out.any() else None
    plan = [(rows.where(trained_on) if validation else rows, validation)]
    if validation and settings.include_validation:
        plan.append((rows, None))
    blends = opening_blends(plan[0][0], validation, settings)
    done_before = 0

    for phase in range(progress.phase, len(plan)):
        if phase > progress.phase:
            progress.phase, progress.epoch = phase, 0
        fit = _Fit(plan[phase][0], settings, progress, plan[phase][1], blends)
        if checkpoint:
            fit.resume(checkpoint)
            checkpoint = None
        saved, wait = time.monotonic(), 0.0
        num_epochs = progress.best_epoch if phase else settings.max_epochs
        rows_later = sum(len(later.user) for later, _ in plan[phase + 1 :])
        for _ in fit.run(num_epochs):
            if path and time.monotonic() - saved >= max(checkpoint_secs, wait):
                started = time.monotonic()
                write_checkpoint(path, fit.checkpoint())
                saved = time.monotonic()
                wait = (saved - started) * _WORK_A_SAVE if checkpoint_secs else 0.0
            if on_epoch and not progress.step:
                on_epoch(progress.curve)
            if on_steps:
                on_steps(fit.standing(num_epochs, done_before, rows_later))
        done_before += fit.steps_done
        if plan[phase][1]:
            fit.restore_best()
            if settings.recency == "auto" and rows.timestamp is not None:
                progress.recency = fit.choose_blend()
    if not validation:
        return Trained(fit.model, progress.epoch, progress.curve, None, blends[0], resumed_epochs=resumed)
    best: Mapping[str, Any] = progress.curve[progress.best_epoch - 1]
    blend = blends[0]
    if progress.recency:
        best, blend = progress.recency, blend_of(progress.recency)
    quality = Quality(best["recall_at_100"], best["ndcg_at_10"])
    return Trained(fit.model, progress.best_epoch, progress.curve, quality, blend, progress.recency, resumed)


def write_towers(root: str, rows: TrainingRows, trained: Trained) -> list[WrittenFile]:
    """Writes the towers and the curve to the folder `root`, which may be remote."""
    written: list[WrittenFile] = []
    with tempfile.TemporaryDirectory(prefix="shortlist-") as folder:
        bias = item_bias(rows.rated, trained.blend)
        trained.model.user_tower.save(rows.user_ids, rows.item_ids, Path(folder, USER_TOWER))
        trained.model.item_tower.save(rows.item_ids, Path(folder, ITEM_TOWER), trained.blend.taste, bias)
        for name in (USER_TOWER, ITEM_TOWER):
            written += upload_folder(Path(folder, name), root, name)
    curves = json.dumps({"num_epochs": trained.num_epochs, "epochs": trained.curve}, indent=2)
    written.append(write_file(root, CURVES_FILE, curves.encode()))
    return sorted(written, key=lambda file: file.path)


def train_and_write(
    paths: TrainingPaths, root: str, settings: TrainingSettings, checkpoints: str | None, checkpoint_secs: float
) -> tuple[list[WrittenFile], dict[str, Any]]:
    """Reads, trains and writes, logs for TensorBoard all the while, and then deletes the checkpoint.

    Returns:
      The files written, and metrics: sizes (`dim` is that of what the towers give), epochs, the quality on the validation slice
      where there is one, how much recent popularity counts, and what was found of each feature.
    """
    started = time.monotonic()
    rows, report = with_features(read_rows(paths.interactions), paths.items, settings.features)
    logs = TensorBoardLogs(join(root, TENSORBOARD))

    pace = Pace()

    def say(now: Standing) -> None:
        TALLY.say(pace.describe(now, time.monotonic()))

    trained = train(rows, settings, checkpoints, checkpoint_secs, logs.write, say)
    TALLY.say(describe(trained.curve[-1]))
    metrics: dict[str, Any] = {
        "dim": settings.dim + 1,
        "train_users": len(rows.user_ids),
        "train_items": len(rows.item_ids),
        "train_rows": len(rows.user),
        "epochs": trained.num_epochs,
        "resumed_epochs": trained.resumed_epochs,
        "loss": trained.curve[-1]["loss"],
        "train_seconds": round(time.monotonic() - started, 3),
    }
    if trained.quality:
        metrics |= {f"validation_{name}": value for name, value in trained.quality._asdict().items()}
    metrics["recency"] = trained.recency or asdict(trained.blend)
    if rows.features:
        metrics |= {"features": report, "feature_columns": rows.features.encoder.columns}
    written = write_towers(root, rows, trained)
    if checkpoints is not None:
        delete(checkpoint_path(checkpoints, rows, settings))
    return written, metrics


@dataclass
class TrainTowers(beam.PTransform):
    """Trains the towers: one element (the list of files) through one DoFn; a bundle that is retried resumes.

    Attributes:
      paths: the files to read.
      root: the folder to write to.
      settings: how to train.
      checkpoints: the folder that keeps checkpoints from one attempt to the next; None does without.
      checkpoint_secs: how much work may be lost, about.
      resource_hints: what the worker that trains must have, as Beam's resource hints: `min_ram="16GB"`,
        `accelerator="type:nvidia-tesla-t4;count:1;install-nvidia-driver"`.
    """

    paths: TrainingPaths
    root: str
    settings: TrainingSettings
    checkpoints: str | None = None
    checkpoint_secs: float = CHECKPOINT_SECS
    resource_hints: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, root: beam.pvalue.PBegin) -> beam.PCollection[tuple[list[WrittenFile], dict[str, Any]]]:
        return (
            root
            | "TrainingFiles" >> beam.Create([self.paths])
            | "Train"
            >> beam.Map(train_and_write, self.root, self.settings, self.checkpoints, self.checkpoint_secs)
            .with_output_types(tuple[list[WrittenFile], dict[str, Any]])
            .with_resource_hints(**self.resource_hints)
        )
