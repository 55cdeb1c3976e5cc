"""What those who wait are told is true of trainings whose lengths are known."""

from dataclasses import replace

import numpy as np
import pytest

from schemas.words import about, counted
from tests.test_training import SMALL, clustered_pairs, rows_of
from transforms.train.curves import CurveRow
from transforms.train.pace import Pace, Standing, describe
from transforms.train.settings import TrainingSettings
from transforms.train.training import train
from transforms.train.validation import validation_rows

ROW: CurveRow = {"phase": "search", "epoch": 1, "loss": 4.5, "recall_at_100": 0.5, "ndcg_at_10": 0.25}


def standings_of(settings: TrainingSettings) -> tuple[list[Standing], int, int]:
    """Trains; returns all that was told, how many rows the first phase had, and how many all have."""
    rows = rows_of(clustered_pairs())
    told: list[Standing] = []
    train(rows, settings, on_steps=told.append)
    _, trained_on = validation_rows(rows, settings)
    return told, int(np.count_nonzero(trained_on)), len(rows.user)


def test_a_training_of_known_length_is_counted_down_to_nothing() -> None:
    told, _, num_rows = standings_of(replace(SMALL, validation_fraction=0.0))
    total = SMALL.max_epochs * (num_rows // SMALL.batch_size)
    assert [now.steps_done + now.steps_left for now in told] == [total] * len(told)
    assert told[-1].steps_left == 0
    assert [now.epoch for now in told] == sorted(now.epoch for now in told)
    assert (told[-1].epoch, told[-1].num_epochs, told[-1].step) == (SMALL.max_epochs, SMALL.max_epochs, told[-1].num_steps)
    assert not any(now.may_end_sooner for now in told)


def test_what_is_left_of_a_search_is_so_if_it_gets_no_better_and_the_last_training_is_part_of_it() -> None:
    told, num_searched, num_rows = standings_of(replace(SMALL, max_epochs=40, patience=2))
    searched = [now for now in told if now.may_end_sooner]
    full = [now for now in told if not now.may_end_sooner]
    num_epochs, best = searched[-1].epoch, full[-1].num_epochs
    assert 0 < best < num_epochs < 40
    steps = num_epochs * (num_searched // SMALL.batch_size), best * (num_rows // SMALL.batch_size)
    assert searched[-1].steps_done == steps[0]
    assert searched[-1].steps_left == steps[1]
    assert [now.steps_done + now.steps_left for now in full] == [sum(steps)] * len(full)
    assert full[-1].steps_left == 0
    after_best = [now for now in searched if len(now.curve) >= best and now.steps_done > best * searched[0].num_steps]
    assert {now.steps_done + now.steps_left for now in after_best} == {sum(steps)}


def standing(done: int, left: int, may_end_sooner: bool = False, curve: list[CurveRow] | None = None) -> Standing:
    return Standing("search", 2, 50, may_end_sooner, done, 10_000, done, left, curve or [])


def test_the_line_says_where_it_is_and_how_long_it_takes() -> None:
    pace = Pace()
    assert pace.describe(standing(32, 9_968), 100.0) == "search: epoch 2 of 50, step 32 of 10,000"
    # 1,000 steps took 30 seconds since, so 6,000 take 180.
    assert pace.describe(standing(1_032, 6_000), 130.0) == "search: epoch 2 of 50, step 1,032 of 10,000, about 3 minutes left"
    line = pace.describe(standing(1_032, 6_000, may_end_sooner=True, curve=[ROW]), 130.0)
    assert line == (
        "search: epoch 2 of at most 50, step 1,032 of 10,000, about 3 minutes left if it gets no better; "
        "search: epoch 1, loss 4.5000, Recall@100 0.5000, NDCG@10 0.2500"
    )
    assert line.endswith(describe(ROW))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "less than a minute"),
        (59.9, "less than a minute"),
        (60, "about 1 minute"),
        (100, "about 2 minutes"),
        (5_000, "about 83 minutes"),
        (5_400, "about 2 hours"),
        (86_400, "about 24 hours"),
        (10 * 86_400, "about 10 days"),
    ],
)
def test_times_are_said_no_more_exactly_than_they_are_known(seconds: float, words: str) -> None:
    assert about(seconds) == words


def test_one_is_not_said_as_several_are() -> None:
    assert [counted(count, "file") for count in (0, 1, 2, 1_000)] == ["0 files", "1 file", "2 files", "1,000 files"]
    assert [counted(count, "copy", "copies") for count in (1, 2)] == ["1 copy", "2 copies"]
