"""A training's curve: as a chart, and in logs that TensorBoard's own reader understands."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from schemas.storage import join, list_files, read_bytes
from transforms.report.curves import draw_curves
from transforms.train.choose_settings import CandidateResult, next_candidate
from transforms.train.curves import CurveRow, TensorBoardLogs
from transforms.train.settings import TrainingSettings

CURVE: list[CurveRow] = [
    {"phase": "dim 64, L2 0.12", "epoch": 1, "loss": 5.5, "recall_at_100": 0.25, "ndcg_at_10": 0.125},
    {"phase": "dim 64, L2 0.12", "epoch": 2, "loss": 4.5, "recall_at_100": 0.5, "ndcg_at_10": 0.25},
    {"phase": "dim 64, L2 0.12", "epoch": 3, "loss": 4.25, "recall_at_100": 0.375, "ndcg_at_10": 0.25},
    {"phase": "full", "epoch": 1, "loss": 5.25, "recall_at_100": None, "ndcg_at_10": None},
    {"phase": "full", "epoch": 2, "loss": 4.0, "recall_at_100": None, "ndcg_at_10": None},
]


EPOCHS_AND_VALUES = [(1, "5.5000"), (2, "4.5000"), (2, "0.5000"), (2, "0.2500")]


def titles_of(svg: str) -> list[str]:
    """Returns what the points say when pointed at."""
    return [each.text or "" for each in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}title")]


def test_the_chart_shows_every_value() -> None:
    svg = draw_curves(CURVE)
    tips = titles_of(svg)
    assert {
        "dim 64, L2 0.12, epoch 1: 5.5000",
        "full, epoch 2: 4.0000",
        "dim 64, L2 0.12, epoch 2: 0.5000",
        "dim 64, L2 0.12, epoch 3: 0.2500",
    } <= set(tips)
    assert all(name in svg for name in ("loss", "Recall@100", "NDCG@10"))
    assert svg == draw_curves(list(CURVE))


def test_without_a_validation_slice_there_is_the_loss_alone() -> None:
    svg = draw_curves(CURVE[3:])
    assert titles_of(svg) == ["full, epoch 1: 5.2500", "full, epoch 2: 4.0000"]
    assert "Recall" not in svg


def test_epochs_whose_quality_was_not_measured_have_a_loss_alone() -> None:
    svg = draw_curves([{**CURVE[0], "recall_at_100": None, "ndcg_at_10": None}, CURVE[1]])
    assert titles_of(svg) == [f"dim 64, L2 0.12, epoch {epoch}: {value}" for epoch, value in EPOCHS_AND_VALUES]


def test_the_chart_has_room_for_the_longest_search() -> None:
    """Of histories: L2 from 0.05 up to 0.45, where it gets worse, twice the dimensions with two weights, and all rows."""
    tried: list[CandidateResult] = []
    while candidate := next_candidate(TrainingSettings(user_tower="history"), tried, 10**7):
        quality = (1 - abs(candidate.l2 - 0.31)) * candidate.dim
        tried.append(CandidateResult(candidate, quality, 0.0))
    phases = [*(f"dim {each.candidate.dim}, L2 {each.candidate.l2:g}" for each in tried), "full"]
    assert len(phases) == 9
    svg = draw_curves([{**CURVE[0], "phase": phase} for phase in phases])
    assert all(phase in svg for phase in phases)


def values_of(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in events.Tensors(name)]


def test_tensorboard_reads_the_logs_while_they_grow(tmp_path: Path) -> None:
    logs = TensorBoardLogs(str(tmp_path))
    logs.write(CURVE[:1])
    watching = EventAccumulator(str(tmp_path / "dim64-L20.12"), size_guidance={"tensors": 0})
    watching.Reload()
    assert [event.step for event in watching.Tensors("loss")] == [1]
    for length in range(2, len(CURVE) + 1):
        logs.write(CURVE[:length])
    watching.Reload()
    assert [event.step for event in watching.Tensors("loss")] == [1, 2, 3]
    assert values_of(tmp_path / "dim64-L20.12", "Recall@100") == [(1, 0.25), (2, 0.5), (3, 0.375)]
    assert values_of(tmp_path / "dim64-L20.12", "NDCG@10") == [(1, 0.125), (2, 0.25), (3, 0.25)]
    assert values_of(tmp_path / "full", "loss") == [(1, 5.25), (2, 4.0)]
    assert [step for step, _ in values_of(tmp_path / "full", "seconds")] == [1, 2]


@pytest.mark.parametrize("start", [0, 3])
def test_a_training_that_goes_on_logs_what_came_before(root: str, start: int) -> None:
    logs = TensorBoardLogs(join(root, "tensorboard"))
    for length in range(start + 1, len(CURVE) + 1):
        logs.write(CURVE[:length])
    found = [file.path[len(join(root, "tensorboard", "")) :] for file in list_files(join(root, "tensorboard", "**"))]
    assert sorted(found) == [
        *(f"dim64-L20.12/events.out.tfevents.00000{epoch}" for epoch in (1, 2, 3)),
        *(f"full/events.out.tfevents.00000{epoch}" for epoch in (1, 2)),
    ]
    assert all(read_bytes(join(root, "tensorboard", path)) for path in found)
