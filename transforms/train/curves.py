"""How a training went, epoch by epoch, and logs of it that TensorBoard reads while it goes on."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from schemas.storage import join, replacing


class CurveRow(TypedDict):
    """One epoch."""

    phase: str
    """'full' for the training on every row; the settings that were tried for one on all but the validation slice."""
    epoch: int
    """From 1; 0 for the closed form, which is not trained."""
    loss: float | None
    """The mean over the epoch's steps, L2 terms included; None for the closed form."""
    recall_at_100: float | None
    ndcg_at_10: float | None
    """On the validation slice; None where it was not measured."""


MEASURES = (("loss", "loss"), ("recall_at_100", "Recall@100"), ("ndcg_at_10", "NDCG@10"))
"""The columns that are drawn and logged, and what they are called."""


class TensorBoardLogs:
    """Logs of a training: a run (a folder) a phase, a file an epoch, written once and whole, as object stores like it.

    They hold the time of day, so they are no part of a stage's digest.

    Args:
      root: the folder, which may be remote: what `tensorboard --logdir` is given.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._num_rows = 0
        self._time = time.monotonic()

    def write(self, curve: Sequence[CurveRow]) -> None:
        """Writes the rows of the curve that are not written yet: the last, or all where a training has gone on elsewhere."""
        import tensorflow as tf

        seconds, self._time = time.monotonic() - self._time, time.monotonic()
        for row in curve[self._num_rows :]:
            values = {name: row[column] for column, name in MEASURES if row[column] is not None}  # type: ignore[literal-required]
            if row is curve[-1]:
                values["seconds"] = seconds
            with tempfile.TemporaryDirectory(prefix="shortlist-") as folder:
                writer = tf.summary.create_file_writer(folder)
                with writer.as_default(step=row["epoch"]):
                    for name, value in values.items():
                        tf.summary.scalar(name, value)
                writer.close()
                (events,) = Path(folder).iterdir()
                # TensorBoard reads a run's files in the order of their names.
                path = join(self._root, _folder_of(row["phase"]), f"events.out.tfevents.{row['epoch']:06d}")
                with replacing(path) as file:
                    file.write(events.read_bytes())
        self._num_rows = len(curve)


def _folder_of(phase: str) -> str:
    return phase.replace(", ", "-").replace(" ", "")
