"""Tries ways to train side by side, each judged on the same validation slice, and tells which is best.

A trial is one element: it trains on all rows but the slice, and its quality is that of its best epoch. The test is never
looked at. A trial that cannot be trained (its loss is no longer finite, it needs more memory than there is) is recorded as
failed and stops nothing. What a trial found is kept by the settings, the rows and the code that made it: a sweep that was
stopped goes on where it was, and a wider one trains only what is new.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import apache_beam as beam
import pyarrow as pa
import yaml
from apache_beam.utils.shared import Shared

from schemas.errors import InputError
from schemas.manifest import fingerprint_of
from schemas.parquet_files import parquet_writer
from schemas.stage_files import TRIALS, WINNER_FILE
from schemas.storage import WrittenFile, exists, join, read_json, write_file, write_json
from schemas.trials import DONE, FAILED, trials_schema
from transforms.io.progress import WORKER_PROGRESS
from transforms.io.write import part_path
from transforms.train.features import Feature, declaration_of, to_json
from transforms.train.pace import Pace, Standing, describe
from transforms.train.rows import TrainingPaths, TrainingRows, read_rows, with_features
from transforms.train.search_space import varied_of, varied_settings
from transforms.train.settings import TrainingSettings
from transforms.train.training import train


@dataclass(frozen=True)
class Trial:
    """One way to train.

    Attributes:
      number: from 1.
      settings: all of them.
      kept: where its result is kept, relative to the output.
    """

    number: int
    settings: TrainingSettings
    kept: str


@dataclass(frozen=True)
class Result:
    """What became of a trial.

    Attributes:
      status: DONE or FAILED.
      seconds: how long it trained.
      reason: why it failed.
      recall_at_100: on the validation slice, where it is done.
      ndcg_at_10: likewise.
      epochs: after which it was best.
    """

    status: str
    seconds: float
    reason: str | None = None
    recall_at_100: float | None = None
    ndcg_at_10: float | None = None
    epochs: int | None = None

    @property
    def quality(self) -> float | None:
        """What trials are ranked by."""
        if self.recall_at_100 is None or self.ndcg_at_10 is None:
            return None
        return self.recall_at_100 + self.ndcg_at_10


def run_trial(rows: TrainingRows, trial: Trial, num_trials: int) -> Result:
    """Trains once and returns what came of it.

    Raises:
      InputError: if there is no validation slice to judge it on, which is no fault of the trial.
    """
    import tensorflow as tf

    started = time.monotonic()

    pace, which = Pace(), f"trial {trial.number} of {num_trials}"

    def say(now: Standing) -> None:
        WORKER_PROGRESS.say(f"{which}: {pace.describe(now, time.monotonic())}")

    try:
        trained = train(rows, replace(trial.settings, include_validation=False), on_steps=say)
    except InputError as error:
        return Result(FAILED, time.monotonic() - started, str(error))
    except (MemoryError, tf.errors.ResourceExhaustedError):
        return Result(FAILED, time.monotonic() - started, "it needs more memory than there is: lower --dim or --batch_size")
    WORKER_PROGRESS.say(f"{which}: {describe(trained.curve[-1])}")
    if trained.quality is None:
        raise InputError(
            f"there is no validation slice to judge trials on, of {len(rows.user):,} training rows: raise --validation_fraction"
        )
    return Result(DONE, time.monotonic() - started, None, *trained.quality, trained.num_epochs)


@dataclass
class _Rows:
    """What `Shared` can hold: a named tuple it cannot."""

    rows: TrainingRows


class _RunTrial(beam.DoFn):
    """Runs trials, those that are kept excepted; the rows are read once a process."""

    def __init__(self, paths: TrainingPaths, features: Sequence[Feature], root: str, num_trials: int) -> None:
        super().__init__()
        self._paths = paths
        self._features = features
        self._root = root
        self._num_trials = num_trials
        self._shared = Shared()

    def setup(self) -> None:
        tag = fingerprint_of([self._paths, [to_json(feature) for feature in self._features]])
        self._held = self._shared.acquire(self._read, tag=tag)

    def _read(self) -> _Rows:
        rows, _ = with_features(read_rows(self._paths.interactions), self._paths.items, self._features)
        return _Rows(rows)

    def process(self, trial: Trial) -> Iterator[tuple[Trial, Result]]:
        kept = join(self._root, trial.kept)
        if exists(kept):
            result = Result(**read_json(kept))
        else:
            result = run_trial(self._held.rows, trial, self._num_trials)
            write_json(kept, asdict(result))
        WORKER_PROGRESS.add(len(self._held.rows.user))
        yield trial, result


def ranked(results: Sequence[tuple[Trial, Result]]) -> list[tuple[Trial, Result]]:
    """Returns the best first, equal ones by number, and failed ones last."""
    return sorted(results, key=lambda each: (-1.0 if each[1].quality is None else -each[1].quality, each[0].number))


def write_trials(results: Sequence[tuple[Trial, Result]], root: str) -> tuple[list[WrittenFile], dict[str, Any]]:
    """Writes the table and the winner's settings to the folder `root`.

    Returns:
      The files written, and metrics.

    Raises:
      InputError: if every trial has failed.
    """
    best_first = ranked(results)
    winner, result = best_first[0]
    if result.status == FAILED:
        raise InputError(f"all {len(results)} trials failed, trial {winner.number} since {result.reason}")
    written: list[WrittenFile] = []
    schema = trials_schema(varied_settings())
    with parquet_writer(root, part_path(TRIALS, 0), schema, written) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist([row_of(*each) for each in best_first], schema=schema))
    written.append(write_file(root, WINNER_FILE, config_of(winner, result, len(results)).encode()))
    metrics = {
        "trials": len(results),
        "trials_failed": sum(each.status == FAILED for _, each in results),
        "winner": winner.number,
        "quality": result.quality,
        "seconds": {str(trial.number): round(each.seconds, 1) for trial, each in best_first},
    }
    return written, metrics


def row_of(trial: Trial, result: Result) -> dict[str, Any]:
    """Returns a row of the table: what does not depend on the machine."""
    settings = {f"setting_{name}": value for name, value in varied_of(trial.settings).items()}
    results = {name: value for name, value in asdict(result).items() if name != "seconds"}
    return {"trial": trial.number, "quality": result.quality} | results | settings


def config_of(trial: Trial, result: Result, num_trials: int) -> str:
    """Returns a trial's settings as YAML that `--config` takes."""
    settings = {name: value for name, value in varied_of(trial.settings).items() if value is not None}
    if trial.settings.features:
        settings["features"] = {feature.column: declaration_of(feature) for feature in trial.settings.features}
    found = f"Recall@100 {result.recall_at_100:.4f} and NDCG@10 {result.ndcg_at_10:.4f} on the validation slice"
    return f"# Trial {trial.number} of {num_trials}: {found}.\n{yaml.safe_dump(settings, sort_keys=False)}"


@dataclass
class RunTrials(beam.PTransform):
    """Runs trials, as many at a time as there are workers, and writes what they found.

    Attributes:
      trials: at least one.
      paths: the files to read.
      output: the output root, below which results are kept.
      root: the folder to write to.
      resource_hints: what a worker that trains must have, as Beam's resource hints.
    """

    trials: Sequence[Trial]
    paths: TrainingPaths
    output: str
    root: str
    resource_hints: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        if not self.trials:
            raise ValueError("there must be at least one trial")

    def expand(self, root: beam.pvalue.PBegin) -> beam.PCollection[tuple[list[WrittenFile], dict[str, Any]]]:
        features = next((trial.settings.features for trial in self.trials if trial.settings.features), ())
        run = beam.ParDo(_RunTrial(self.paths, features, self.output, len(self.trials)))
        results = (
            root
            | "Trials" >> beam.Create(list(self.trials))
            | "SpreadTrials" >> beam.Reshuffle()
            | "RunTrial" >> run.with_resource_hints(**self.resource_hints)
        )
        return results | "GatherTrials" >> beam.combiners.ToList() | "WriteTrials" >> beam.Map(write_trials, self.root)
