"""Trains the two towers: reads interactions, fits, stops early, resumes from checkpoints, and writes SavedModels.

A run searches for the number of epochs on a validation slice, and then, since more data is the best regulariser there is,
trains anew for so many epochs on every training row (`include_validation`: on MovieLens-100K, four seeds, a mean of
Recall@100 .717 -> .724 and NDCG@10 .430 -> .447).

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import Block, in_blocks
from schemas.errors import InputError
from schemas.manifest import fingerprint_of
from schemas.storage import (
    WrittenFile,
    delete,
    exists,
    join,
    open_file,
    parquet_writer,
    read_parquet_blocks,
    replacing,
    upload_folder,
)
from schemas.vocabulary import ITEM_VOCABULARY, USER_VOCABULARY
from transforms.curves import CurveRow, TensorBoardLogs, draw_curves
from transforms.encode_features import ItemFeatures, encode_rated, fit_features
from transforms.features import Feature
from transforms.partition import hash_ids
from transforms.progress import TALLY
from transforms.split import hash_pairs

if TYPE_CHECKING:
    import tensorflow as tf

    from transforms.towers import TwoTowers

USER_TOWERS = ("id", "history", "id+history")
"""The kinds of user tower: see `transforms.user_towers`."""

ITEM_TOWERS = ("id", "id+features")
"""The kinds of item tower: see `transforms.item_towers`."""

PHASES = ("search", "full")

RECALL_AT = 100
NDCG_AT = 10
MAX_VALIDATION_USERS = 2_000
_SCORES_AT_ONCE = 1 << 24
_STEPS_A_CALL = 64
_ROWS_TOGETHER = 8
"""Rows of a user that stay together in an epoch, where the user's history is looked at."""
_WORK_A_SAVE = 20
"""Between two checkpoints at least so many times as long is worked as saving one took."""

USER_TOWER = "user_tower"
ITEM_TOWER = "item_tower"
CURVES_FILE = "curves.json"
CURVES_CHART = "curves.svg"
TENSORBOARD = "tensorboard"
"""Logs of each attempt, which no manifest names: they hold the time of day."""


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
      user_tower: 'id': a vector of its own for each user; 'history': the mean of the vectors of what a user rated, which
        serves users that training never saw; 'id+history': their sum.
      item_tower: 'id': a vector of its own for each item; 'id+features': that and those of its features, which serves items
        that training never saw.
      features: what 'id+features' looks at; 'id' at none of them.
      id_dropout: the part of the training rows that leave the item's own vector out, so that features learn to do without.
      dim: of the vectors.
      learning_rate: of Adam; scale it with the batch size.
      batch_size: rows a step, and so negatives a row; cut down to the number of rows where there are fewer.
      mixed_negatives: candidates that are added to each batch's own, uniform from all items: they put what is rarely rated
        down, where the batch alone hardly meets it.
      history_sample: the most items of a user's history that a step looks at, drawn anew each time; it bounds a step's memory
        and time, not what is served, which is made of the whole history.
      l2: adds l2 / 2 times the mean squared length of a batch's user and item vectors to the loss.
      max_epochs: the most passes over the data; without a validation slice, exactly so many.
      patience: stops after so many epochs without a better validation quality (Recall@100 + NDCG@10).
      validation_fraction: of the rows, by a stable hash of (user, item); 0 turns early stopping and the second training off.
      include_validation: trains anew on every training row, the slice included, for the best number of epochs; without it,
        the best epoch's weights are kept.
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
    l2: float = 0.1
    max_epochs: int = 50
    patience: int = 4
    validation_fraction: float = 0.1
    include_validation: bool = True
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
        if not 0 <= self.l2 < math.inf:
            raise InputError(f"l2 must be a number of at least 0, got {self.l2:g}: change --l2")
        if not 0 <= self.validation_fraction <= 0.5:
            raise InputError(
                f"validation_fraction must be between 0 and 0.5, got {self.validation_fraction:g}: change --validation_fraction"
            )

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
      features: of the items, where the item tower looks at them.
    """

    user_ids: pa.Array
    item_ids: pa.Array
    user: np.ndarray
    item: np.ndarray
    features: ItemFeatures | None = None


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

    recall: float
    """At 100."""
    ndcg: float
    """At 10."""


def read_rows(paths: Iterable[str]) -> TrainingRows:
    """Reads files of INTERACTIONS and turns ids into codes, a block at a time; the files' layout and order change nothing.

    Raises:
      InputError: if the files hold no rows.
    """
    users, items = [], []
    for path in paths:
        for block in read_parquet_blocks(path, columns=["user_id", "item_id"]):
            users.append(block["user_id"].dictionary_encode())
            items.append(block["item_id"].dictionary_encode())
    if not users:
        raise InputError("there is nothing to train on, the training interactions have 0 rows: check the ratings and the split")
    user_ids, user = _codes(users)
    item_ids, item = _codes(items)
    pair = user.astype(np.int64) * len(item_ids) + item
    pair.sort()
    user, item = np.divmod(pair, len(item_ids), dtype=np.int64)
    return TrainingRows(user_ids, item_ids, user.astype(np.int32), item.astype(np.int32))


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


def validation_rows(rows: TrainingRows, fraction: float, seed: int) -> np.ndarray:
    """Chooses the rows to validate on: by a hash of (user, item), so that the same pair goes the same way next time.

    Users and items that would be left without any other row are not validated on: their vectors would be noise.

    Returns:
      [n] bool.
    """
    pairs = hash_pairs(hash_ids(rows.user_ids, 2 * seed + 2)[rows.user], hash_ids(rows.item_ids, 2 * seed + 3)[rows.item])
    chosen = pairs < np.uint64(fraction * 2**64)
    for codes, num_codes in ((rows.user, len(rows.user_ids)), (rows.item, len(rows.item_ids))):
        left = np.bincount(codes[~chosen], minlength=num_codes)
        chosen &= left[codes] > 0
    return chosen


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


def make_validation(rows: TrainingRows, held_out: np.ndarray, seed: int) -> Validation:
    """Returns what is needed to validate on the rows where `held_out` ([n] bool) is true."""
    users = np.unique(rows.user[held_out])
    if len(users) > MAX_VALIDATION_USERS:
        users = np.sort(np.random.default_rng(seed).choice(users, MAX_VALIDATION_USERS, replace=False))
    place = np.full(len(rows.user_ids), -1, np.int64)
    place[users] = np.arange(len(users))
    key = place[rows.user] * len(rows.item_ids) + rows.item
    sampled = place[rows.user] >= 0
    return Validation(users, key[sampled & ~held_out], key[sampled & held_out])


def quality_of(user_vectors: np.ndarray, item_vectors: np.ndarray, validation: Validation) -> Quality:
    """Ranks the whole catalogue for each validation user, exactly, without the items seen in training.

    Args:
      user_vectors: [num_users, dim] float32, of the validation's users.
      item_vectors: [num_items, dim] float32.
      validation: the users' seen and held-out items.
    """
    import tensorflow as tf

    num_items = len(item_vectors)
    k = min(RECALL_AT, num_items)
    held = np.bincount(validation.held_out // num_items, minlength=len(user_vectors))
    discount = 1 / np.log2(np.arange(min(NDCG_AT, k)) + 2)
    ideal = np.cumsum(discount)[np.minimum(held, len(discount)) - 1]
    recall = ndcg = 0.0
    rows_at_once = max(1, _SCORES_AT_ONCE // num_items)
    for start in range(0, len(user_vectors), rows_at_once):
        part = slice(start, start + rows_at_once)
        scores = user_vectors[part] @ item_vectors.T
        first, last = np.searchsorted(validation.seen, np.array([start, start + len(scores)]) * num_items)
        scores.reshape(-1)[validation.seen[first:last] - start * num_items] = -np.inf
        top = tf.math.top_k(scores, k).indices.numpy()
        key = (np.arange(start, start + len(scores)) * num_items)[:, np.newaxis] + top
        found = np.searchsorted(validation.held_out, key)
        hit = validation.held_out[np.minimum(found, len(validation.held_out) - 1)] == key
        recall += (hit.sum(axis=1) / held[part]).sum()
        ndcg += (hit[:, : len(discount)] @ discount / ideal[part]).sum()
    return Quality(float(recall / len(user_vectors)), float(ndcg / len(user_vectors)))


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


def checkpoint_path(folder: str, rows: TrainingRows, settings: TrainingSettings) -> str:
    """Returns where a training's checkpoint lies: other rows or settings have another file."""
    digest = hashlib.sha256()
    for array in (hash_ids(rows.user_ids), hash_ids(rows.item_ids), rows.user, rows.item):
        digest.update(np.ascontiguousarray(array).data)
    for array in rows.features.bags if rows.features else ():
        digest.update(array.data)
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
    """A model under training, its optimizer, and its best weights so far."""

    def __init__(
        self, rows: TrainingRows, settings: TrainingSettings, progress: Progress, validation: Validation | None
    ) -> None:
        from transforms import item_towers, towers, user_towers

        seed = 8 * settings.seed + 4 * progress.phase
        num_items = len(rows.item_ids)
        histories = user_towers.Histories(rows.user, rows.item, len(rows.user_ids))
        self.model = towers.TwoTowers(
            user_towers.make_user_tower(
                settings.user_tower, histories, num_items, settings.dim, settings.history_sample, settings.l2, seed
            ),
            item_towers.make_item_tower(
                rows.features if settings.looks_at_features else None,
                num_items,
                settings.dim,
                settings.id_dropout,
                settings.l2,
                seed + 1,
            ),
            np.log(np.bincount(rows.item, minlength=num_items)) - np.log(len(rows.item)),
            settings.mixed_negatives,
            seed,
        )
        self.model.optimizer = towers.SparseAdam(settings.learning_rate)
        self.model.optimizer.build(self.model.trainable_variables)
        self.best = self._weights()
        self._rows, self._settings, self._progress, self._validation = rows, settings, progress, validation

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
                yield
            self._end_epoch()
            yield

    def _is_out_of_patience(self) -> bool:
        progress = self._progress
        return self._validation is not None and progress.epoch - progress.best_epoch >= self._settings.patience

    def _steps(self) -> Iterator[np.ndarray]:
        """Does what is left of the epoch; yields [num_steps] float32, the losses, some steps at a time.

        An epoch leaves out the few rows that do not fill a batch: others each time.
        """
        settings, progress, rows = self._settings, self._progress, self._rows
        num_rows = len(rows.user)
        batch_size = min(settings.batch_size, num_rows)
        num_steps = num_rows // batch_size
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
        progress, weights = self._progress, self._weights()
        self._check(weights)
        quality = None
        if self._validation is not None:
            users, items = self.model.user_tower.vectors_of(self._validation.users), self.model.item_tower.vectors
            quality = quality_of(users, items, self._validation)
        progress.curve.append(
            {
                "phase": PHASES[progress.phase],
                "epoch": progress.epoch + 1,
                "loss": progress.loss / progress.step,
                "recall_at_100": quality.recall if quality else None,
                "ndcg_at_10": quality.ndcg if quality else None,
            }
        )
        progress.epoch += 1
        progress.step, progress.loss = 0, 0.0
        if quality and sum(quality) > progress.best_quality:
            progress.best_quality, progress.best_epoch = sum(quality), progress.epoch
            self.best = weights

    def _fail(self, step: int, what: str) -> NoReturn:
        epoch = self._progress.epoch + 1
        raise InputError(
            f"the {what} must be finite, got nan or inf at step {step + 1} of epoch {epoch}: "
            f"lower --learning_rate, which is {self._settings.learning_rate:g}"
        )


class Trained(NamedTuple):
    """What training made.

    Attributes:
      model: the towers.
      num_epochs: how many epochs made its weights.
      curve: a row an epoch.
      quality: on the validation slice, after the search's best epoch; None without a slice.
    """

    model: "TwoTowers"
    num_epochs: int
    curve: list[CurveRow]
    quality: Quality | None


def train(
    rows: TrainingRows,
    settings: TrainingSettings,
    checkpoints: str | None = None,
    checkpoint_secs: float = 5.0,
    on_epoch: Callable[[list[CurveRow]], None] | None = None,
) -> Trained:
    """Trains the towers, from the beginning or from the checkpoint of an earlier attempt.

    Args:
      rows: what to learn from.
      settings: how.
      checkpoints: the folder, which may be remote, where checkpoints are found and kept; None does without.
      checkpoint_secs: how much work may be lost, about; 0 saves after each epoch, and within an epoch every few steps.
      on_epoch: is given the curve so far after each epoch.

    Raises:
      InputError: if the loss stops being finite; names the step.
    """
    path = checkpoint_path(checkpoints, rows, settings) if checkpoints is not None else None
    checkpoint = read_checkpoint(path) if path else None
    progress = checkpoint.progress if checkpoint else Progress()
    held_out = validation_rows(rows, settings.validation_fraction, settings.seed)
    validation = make_validation(rows, held_out, settings.seed) if held_out.any() else None
    plan = [(rows._replace(user=rows.user[~held_out], item=rows.item[~held_out]), validation)]
    if validation and settings.include_validation:
        plan.append((rows, None))

    for phase in range(progress.phase, len(plan)):
        if phase > progress.phase:
            progress.phase, progress.epoch = phase, 0
        fit = _Fit(plan[phase][0], settings, progress, plan[phase][1])
        if checkpoint:
            fit.resume(checkpoint)
            checkpoint = None
        saved, wait = time.monotonic(), 0.0
        for _ in fit.run(progress.best_epoch if phase else settings.max_epochs):
            if path and time.monotonic() - saved >= max(checkpoint_secs, wait):
                started = time.monotonic()
                write_checkpoint(path, fit.checkpoint())
                saved = time.monotonic()
                wait = (saved - started) * _WORK_A_SAVE if checkpoint_secs else 0.0
            if on_epoch and not progress.step:
                on_epoch(progress.curve)
    if not validation:
        return Trained(fit.model, progress.epoch, progress.curve, None)
    if not settings.include_validation:
        fit.restore_best()
    best = progress.curve[progress.best_epoch - 1]
    quality = Quality(cast(float, best["recall_at_100"]), cast(float, best["ndcg_at_10"]))
    return Trained(fit.model, progress.best_epoch, progress.curve, quality)


def write_towers(root: str, rows: TrainingRows, trained: Trained) -> list[WrittenFile]:
    """Writes towers, vocabularies and curves, also as a chart, to the folder `root`, which may be remote."""
    written: list[WrittenFile] = []
    with tempfile.TemporaryDirectory(prefix="shortlist-") as folder:
        trained.model.user_tower.save(rows.user_ids, rows.item_ids, Path(folder, USER_TOWER))
        trained.model.item_tower.save(rows.item_ids, Path(folder, ITEM_TOWER))
        for name in (USER_TOWER, ITEM_TOWER):
            written += upload_folder(Path(folder, name), root, name)
    for path, schema, ids, codes in (
        ("users.parquet", USER_VOCABULARY, rows.user_ids, rows.user),
        ("items.parquet", ITEM_VOCABULARY, rows.item_ids, rows.item),
    ):
        counts = np.bincount(codes, minlength=len(ids))
        columns = [ids, pa.array(np.arange(len(ids), dtype=np.int32)), pa.array(counts, pa.int64())]
        with parquet_writer(root, path, schema, written) as writer:
            for block in in_blocks(pa.RecordBatch.from_arrays(columns, schema=schema)):
                writer.write_batch(block)
    for path, text in (
        (CURVES_FILE, json.dumps({"num_epochs": trained.num_epochs, "epochs": trained.curve}, indent=2)),
        (CURVES_CHART, draw_curves(trained.curve, trained.num_epochs if trained.quality else None)),
    ):
        data = text.encode()
        with replacing(join(root, path)) as file:
            file.write(data)
        written.append(WrittenFile(path, 0, len(data), hashlib.sha256(data).hexdigest()))
    return sorted(written, key=lambda file: file.path)


def train_and_write(
    paths: TrainingPaths, root: str, settings: TrainingSettings, checkpoints: str | None, checkpoint_secs: float
) -> tuple[list[WrittenFile], dict[str, Any]]:
    """Reads, trains and writes, logs for TensorBoard all the while, and then deletes the checkpoint.

    Returns:
      The files written, and metrics: sizes, epochs, the quality on the validation slice where there is one, and what was found
      of each feature.
    """
    started = time.monotonic()
    rows, report = with_features(read_rows(paths.interactions), paths.items, settings.features)
    logs = TensorBoardLogs(join(root, TENSORBOARD))

    def tell(curve: list[CurveRow]) -> None:
        TALLY.say(describe(curve[-1]))
        logs.write(curve)

    trained = train(rows, settings, checkpoints, checkpoint_secs, tell)
    metrics: dict[str, Any] = {
        "train_users": len(rows.user_ids),
        "train_items": len(rows.item_ids),
        "train_rows": len(rows.user),
        "epochs": trained.num_epochs,
        "loss": trained.curve[-1]["loss"],
        "train_seconds": round(time.monotonic() - started, 3),
    }
    if trained.quality:
        metrics |= {"validation_recall_at_100": trained.quality.recall, "validation_ndcg_at_10": trained.quality.ndcg}
    if rows.features:
        metrics |= {"features": report, "feature_columns": rows.features.encoder.columns}
    written = write_towers(root, rows, trained)
    if checkpoints is not None:
        delete(checkpoint_path(checkpoints, rows, settings))
    return written, metrics


def describe(row: CurveRow) -> str:
    """Returns a row of the curve in a few words."""
    text = f"{row['phase']}: epoch {row['epoch']}, loss {row['loss']:.4f}"
    if row["recall_at_100"] is not None:
        text += f", Recall@100 {row['recall_at_100']:.4f}, NDCG@10 {row['ndcg_at_10']:.4f}"
    return text


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
    checkpoint_secs: float = 5.0
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
