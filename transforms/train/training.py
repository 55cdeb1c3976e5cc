"""Trains the two towers: reads interactions, chooses settings, fits, resumes from checkpoints, and writes SavedModels.

What is to be chosen (the weight of L2, the dimensions, how much recent popularity counts) is chosen by trainings that leave a
validation slice out. Then, since more data is the best regulariser there is, the towers are trained on every row. Where all
is given, that is the only training.

Memory: about 50 bytes a training row, the ids of the vocabulary, and 20 bytes for each of (users + items) x dim (weights, first
weights, two moments, the best weights so far), 12 more while a checkpoint is written.

Nothing depends on anything but the rows, the settings and the machine: two runs give the same
bits, and so does one that was interrupted, wherever, and went on from its checkpoint.

TensorFlow is imported when training begins, not before: a pipeline is built without it.
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import apache_beam as beam
import numpy as np

from schemas.stage_files import CURVES_FILE, ITEM_TOWER, TENSORBOARD, USER_TOWER
from schemas.storage import WrittenFile, delete, join, upload_folder, write_file
from transforms.io.progress import WORKER_PROGRESS
from transforms.train.checkpoints import TrainingState, checkpoint_path, read_checkpoint, write_checkpoint
from transforms.train.choose_settings import (
    FAR_BETTER,
    SEARCH_ROWS,
    WORTH_CLOSED_FORM,
    Candidate,
    CandidateResult,
    best_result,
    is_better,
    next_candidate,
)
from transforms.train.closed_form import best_closed_form, closed_form_model, closed_form_results
from transforms.train.curves import CurveRow, TensorBoardLogs
from transforms.train.fit import FULL, Fit, opening_blends, steps_an_epoch
from transforms.train.pace import Pace, Standing, describe
from transforms.train.recency import PLAIN, Blend, blend_of, item_bias
from transforms.train.rows import TrainingPaths, TrainingRows, read_rows, with_features
from transforms.train.settings import CHECKPOINT_SECS, POPULARITY_EXPONENT, TrainingSettings
from transforms.train.validation import Quality, Validation, make_validation, some_users, validation_rows

if TYPE_CHECKING:
    from transforms.train.towers import TwoTowers

_SHORTER, _ROWS_OF_A_TRIAL = 3, 2_500_000
"""Settings are tried in trainings of so many times fewer epochs than the one that counts, but on so many rows at least: where
training is cheap, they are tried as they will be used."""

_WORK_A_SAVE = 20
"""Between two checkpoints at least so many times as long is worked as saving one took."""


class Trained(NamedTuple):
    """What training made.

    Attributes:
      model: the towers.
      candidate: the dimensions and the weight of L2.
      num_epochs: how many epochs made its weights.
      curve: a row an epoch; one row where nothing was trained.
      quality: on the validation slice, before the slice was trained on; None where nothing was chosen by it.
      results: of the settings that were tried, closed forms first.
      blend: how scores are made of the towers' inner products and the popularity of items.
      recency: how that was chosen; None where it was not.
      resumed_epochs: how many epochs were done already by an attempt that was broken off.
    """

    model: "TwoTowers"
    candidate: Candidate
    num_epochs: int
    curve: list[CurveRow]
    quality: Quality | None
    results: Sequence[CandidateResult] = ()
    blend: Blend = PLAIN
    recency: dict[str, Any] | None = None
    resumed_epochs: int = 0


class Choice(NamedTuple):
    """What a training goes by.

    Attributes:
      candidate: the dimensions and the weight of L2.
      blend: how scores are made.
      quality: on the validation slice; None without one.
    """

    candidate: Candidate
    blend: Blend
    quality: Quality | None


class _Training:
    """A training, from the beginning or from the checkpoint of an earlier attempt; the arguments are those of `train`."""

    def __init__(
        self,
        rows: TrainingRows,
        settings: TrainingSettings,
        checkpoints: str | None,
        checkpoint_secs: float,
        on_epoch: Callable[[list[CurveRow]], None] | None,
        on_steps: Callable[[Standing], None] | None,
    ) -> None:
        self._rows, self._settings = rows, settings
        self._path = checkpoint_path(checkpoints, rows, settings) if checkpoints is not None else None
        self._checkpoint = read_checkpoint(self._path) if self._path else None
        self.state = self._checkpoint.progress if self._checkpoint else TrainingState()
        self._best = self._checkpoint.best if self._checkpoint else []
        self._checkpoint_secs, self._on_epoch, self._on_steps = checkpoint_secs, on_epoch, on_steps
        self._done_before = 0
        self.closed_forms: list[CandidateResult] = []

    @property
    def results(self) -> list[CandidateResult]:
        """Of the trainings that settings were tried in."""
        return [CandidateResult.of(each) for each in self.state.results]

    def fit(
        self,
        fit: Fit,
        candidate: Candidate,
        phase: str,
        validation: Validation | None = None,
        blends: Sequence[Blend] = (PLAIN,),
        later: int = 0,
    ) -> None:
        """Trains with some settings, or goes on with them.

        Args:
          fit: the model.
          candidate: the settings.
          phase: what this is called.
          validation: what to measure its quality on.
          blends: ways to make scores.
          later: steps of the training that follows.
        """
        done_before = self._done_before - fit.steps_done
        fit.begin(candidate.l2, phase, self.state)
        if self._checkpoint:
            fit.resume(self._checkpoint)
            self._checkpoint = None
        saved, wait = time.monotonic(), 0.0
        for _ in fit.run(validation, blends):
            if self._path and time.monotonic() - saved >= max(self._checkpoint_secs, wait):
                started = time.monotonic()
                write_checkpoint(self._path, fit.checkpoint(self._best))
                saved = time.monotonic()
                wait = (saved - started) * _WORK_A_SAVE if self._checkpoint_secs else 0.0
            if self._on_epoch and not self.state.step:
                self._on_epoch(self.state.curve)
            if self._on_steps:
                self._on_steps(fit.standing(done_before, later, more_may_follow=later > 0))
        self._done_before = done_before + fit.steps_done
        self.state.epoch = 0

    def make(self, candidate: Candidate, num_epochs: int) -> "TwoTowers":
        """Returns the towers that are served: trained on every row, or the closed form of them all."""
        if candidate.is_closed_form:
            return self._closed_form(self._rows, candidate, FULL, None)
        fit = Fit(self._rows, self._settings, candidate.dim, num_epochs)
        self.fit(fit, candidate, FULL)
        return fit.model

    def _closed_form(self, rows: TrainingRows, candidate: Candidate, phase: str, quality: Quality | None) -> "TwoTowers":
        """Returns the closed form, and adds its row to the curve."""
        recall, ndcg = quality or (None, None)
        self.state.curve.append({"phase": phase, "epoch": 0, "loss": None, "recall_at_100": recall, "ndcg_at_10": ndcg})
        if self._on_epoch:
            self._on_epoch(self.state.curve)
        return closed_form_model(rows, self._settings, candidate)

    def on_slice(self, given: Choice, num_epochs: int, chooses_blend: bool) -> tuple["TwoTowers", Choice]:
        """Trains once on all rows but the validation slice, and measures there what came of it, if there is a slice."""
        candidate = given.candidate
        held_out, trained_on = validation_rows(self._rows, self._settings)
        if not held_out.any():
            return self.make(candidate, num_epochs), given
        rows = self._rows.where(trained_on)
        validation = make_validation(self._rows, held_out, trained_on, self._settings.seed)
        if candidate.is_closed_form:
            best = best_closed_form(closed_form_results(rows, self._settings, validation))
            model = self._closed_form(rows, best.candidate, "search", best.means)
            return model, Choice(best.candidate, given.blend, best.means)
        blends = opening_blends(rows, validation, self._settings)
        fit = Fit(rows, self._settings, candidate.dim, num_epochs)
        self.fit(fit, candidate, "search", validation, blends)
        if chooses_blend:
            self.state.recency = fit.choose_blend(validation)
        return fit.model, self._choice(candidate, blends[0], _quality_of(self.state.curve[-1]))

    def choose(self, num_epochs: int, chooses_blend: bool) -> Choice | None:
        """Tries settings on the validation slice until it is known which are best; None where there is no slice.

        Args:
          num_epochs: of the training that follows; these are shorter where it is long, and on a sample of the users where
            there are many ratings.
          chooses_blend: whether that is to be chosen, too.
        """
        settings = self._settings
        held_out, trained_on = validation_rows(self._rows, settings)
        few = some_users(self._rows, SEARCH_ROWS, settings.seed)
        held_out, trained_on = held_out & few, trained_on & few
        if not held_out.any():
            return None
        rows = self._rows.where(trained_on)
        validation = make_validation(self._rows, held_out, trained_on, settings.seed)
        blends = opening_blends(rows, validation, settings)
        if settings.may_be_closed_form:
            self.closed_forms = closed_form_results(rows, settings, validation)
        closed = best_closed_form(self.closed_forms) if self.closed_forms else None
        if settings.epochs != 0 and self._next(closed):
            enough = -(-_ROWS_OF_A_TRIAL // len(rows.user))
            shorter = min(num_epochs, max(enough, -(-num_epochs // _SHORTER)))
            fit = self._try_settings(rows, validation, blends, closed, shorter, num_epochs)
            if chooses_blend and not is_better(closed, self.results, WORTH_CLOSED_FORM):
                self.state.recency = fit.choose_blend(validation)
        if closed and (settings.epochs == 0 or is_better(closed, self.results, WORTH_CLOSED_FORM)):
            return Choice(closed.candidate, PLAIN, closed.means)
        best = best_result(self.results)
        return self._choice(best.candidate, blends[0], best.means)

    def _next(self, closed: CandidateResult | None) -> Candidate | None:
        """Returns what to train next to choose settings by; none where the closed form is far better, but more L2."""
        settings = self._settings
        candidate = next_candidate(settings, self.results, len(self._rows.user))
        if candidate is None or not is_better(closed, self.results, FAR_BETTER):
            return candidate
        return candidate if candidate.dim == settings.dimensions and candidate.l2 > settings.l2_weight else None

    def _choice(self, candidate: Candidate, blend: Blend, quality: Quality) -> Choice:
        """Returns what was chosen: with the blend, and its quality, where that was chosen too."""
        if self.state.recency:
            blend, quality = blend_of(self.state.recency), _quality_of(self.state.recency)
        return Choice(candidate, blend, quality)

    def _try_settings(
        self,
        rows: TrainingRows,
        validation: Validation,
        blends: Sequence[Blend],
        closed: CandidateResult | None,
        num_epochs: int,
        later: int,
    ) -> Fit:
        """Tries settings; returns the model that the best led to.

        Args:
          rows: what to train on.
          validation: what to measure on.
          blends: ways to make scores.
          closed: the best closed form, if there is one to choose.
          num_epochs: of each training.
          later: epochs of the training that follows, on all rows.
        """
        fits = dict[int, Fit]()

        def fit_of(dim: int) -> Fit:
            if dim not in fits:
                fits.clear()  # One at a time: each holds the vectors of all users and items.
                fits[dim] = Fit(rows, self._settings, dim, num_epochs)
            return fits[dim]

        steps_later = later * steps_an_epoch(self._rows, self._settings)
        while candidate := self._next(closed):
            fit = fit_of(candidate.dim)
            self.fit(fit, candidate, f"dim {candidate.dim}, L2 {candidate.l2:g}", validation, blends, steps_later)
            result = CandidateResult(candidate, *_quality_of(self.state.curve[-1]))
            self.state.results.append(result.to_json())
            if best_result(self.results) == result:
                self._best = fit.weights()
        fit = fit_of(best_result(self.results).candidate.dim)
        fit.restore(self._best)
        self._best = []
        return fit


def _quality_of(measured: Mapping[str, Any]) -> Quality:
    return Quality(measured["recall_at_100"], measured["ndcg_at_10"])


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
    training = _Training(rows, settings, checkpoints, checkpoint_secs, on_epoch, on_steps)
    resumed = len(training.state.curve)
    chooses_blend = settings.recency == "auto" and settings.blend is None and rows.timestamp is not None
    num_epochs = settings.epochs_of(len(rows.user))
    exponent = None
    if settings.epochs == 0:
        exponent = POPULARITY_EXPONENT if settings.popularity_exponent is None else settings.popularity_exponent
    given = Candidate(settings.dimensions, settings.l2_weight, exponent)
    choice = Choice(given, opening_blends(rows, None, settings)[0], None)
    if not settings.include_validation:
        model, choice = training.on_slice(choice, num_epochs, chooses_blend)
    else:
        if settings.leaves_open and (settings.dim is None or settings.l2 is None or settings.epochs == 0 or chooses_blend):
            choice = training.choose(num_epochs, chooses_blend) or choice
        model = training.make(choice.candidate, num_epochs)
    state = training.state
    return Trained(
        model,
        choice.candidate,
        0 if choice.candidate.is_closed_form else num_epochs,
        state.curve,
        choice.quality,
        [*training.closed_forms, *training.results],
        choice.blend,
        state.recency,
        resumed_epochs=resumed,
    )


def served_bias(rows: TrainingRows, trained: Trained) -> np.ndarray:
    """Returns [num_items] float32: the bias of each item's score; 0 in the closed form, where popularity is in the vectors."""
    bias = item_bias(rows.rated, trained.blend)
    return np.zeros_like(bias) if trained.candidate.is_closed_form else bias


def write_towers(root: str, rows: TrainingRows, trained: Trained) -> list[WrittenFile]:
    """Writes the towers and the curve to the folder `root`, which may be remote."""
    written: list[WrittenFile] = []
    with tempfile.TemporaryDirectory(prefix="shortlist-") as folder:
        bias = served_bias(rows, trained)
        trained.model.user_tower.save(rows.user_ids, rows.item_ids, Path(folder, USER_TOWER))
        trained.model.item_tower.save(rows.item_ids, Path(folder, ITEM_TOWER), trained.blend.affinity_weight, bias)
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
        "dim": trained.candidate.dim + 1,
        "train_users": len(rows.user_ids),
        "train_items": len(rows.item_ids),
        "train_rows": len(rows.user),
        "epochs": trained.num_epochs,
        "settings": trained.candidate.to_json(),
        "settings_tried": [each.to_json() for each in trained.results],
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
