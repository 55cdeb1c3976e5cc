"""Where a training stands, kept in one file, from which an interrupted training goes on to the same bits."""

import hashlib
import json
import zipfile
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from apache_beam.io.filesystem import BeamIOError

from schemas.manifest import fingerprint_of
from schemas.storage import exists, join, open_file, replacing
from transforms.io.partition import hash_ids
from transforms.train.curves import CurveRow
from transforms.train.rows import TrainingRows
from transforms.train.settings import TrainingSettings


@dataclass
class TrainingState:
    """Where a training stands. With the weights, it is all that a restarted one needs: every epoch's order has its own seed."""

    results: list[dict[str, Any]] = field(default_factory=list)
    """Of the settings that have been tried, as `transforms.train.choose_settings.CandidateResult` tells of them."""
    epoch: int = 0
    """How many epochs of the training under way are done."""
    step: int = 0
    """How many steps of the epoch under way are done."""
    loss: float = 0.0
    """The sum over those steps."""
    curve: list[CurveRow] = field(default_factory=list)
    recency: dict[str, Any] | None = None
    """What was chosen after that, as `transforms.train.recency.Choice` reports it."""


class Checkpoint(NamedTuple):
    """All of a training's state."""

    progress: TrainingState
    variables: list[np.ndarray]
    """Weights, then what the optimizer keeps."""
    best: list[np.ndarray]
    """The weights that the best settings so far have led to."""


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
            return Checkpoint(TrainingState(**json.loads(str(arrays["progress"]))), variables, best)
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
