"""Trains the two towers: reads interactions, fits, stops early, resumes from checkpoints, and writes SavedModels.

A run searches for the number of epochs on a validation slice, and then, since more data is the best regulariser there is,
trains anew for so many epochs on every training row.

Memory: about 40 bytes a training row while reading, the ids of the vocabulary, and 16 bytes for each of (users + items) x dim
(weights, two moments, the best weights so far), 12 more while a checkpoint is written.

Nothing depends on anything but the rows, the settings and the machine: two runs give the same
bits, and so does one that was interrupted, wherever, and went on from its checkpoint.

TensorFlow is imported when training begins, not before: a pipeline is built without it.
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import apache_beam as beam

from schemas.stage_files import CURVES_FILE, ITEM_TOWER, TENSORBOARD, USER_TOWER
from schemas.storage import WrittenFile, delete, join, upload_folder, write_file
from transforms.io.progress import WORKER_PROGRESS
from transforms.train.checkpoints import TrainingState, checkpoint_path, read_checkpoint, write_checkpoint
from transforms.train.curves import CurveRow, TensorBoardLogs
from transforms.train.fit import Fit, opening_blends
from transforms.train.pace import Pace, Standing, describe
from transforms.train.recency import PLAIN, Blend, blend_of, item_bias
from transforms.train.rows import TrainingPaths, TrainingRows, read_rows, with_features
from transforms.train.settings import CHECKPOINT_SECS, TrainingSettings
from transforms.train.validation import Quality, make_validation, validation_rows

if TYPE_CHECKING:
    from transforms.train.towers import TwoTowers

_WORK_A_SAVE = 20
"""Between two checkpoints at least so many times as long is worked as saving one took."""


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
    progress = checkpoint.progress if checkpoint else TrainingState()
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
        fit = Fit(plan[phase][0], settings, progress, plan[phase][1], blends)
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
        WORKER_PROGRESS.say(pace.describe(now, time.monotonic()))

    trained = train(rows, settings, checkpoints, checkpoint_secs, logs.write, say)
    WORKER_PROGRESS.say(describe(trained.curve[-1]))
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
