"""What those who wait are told is true of trainings whose lengths are known."""

import math
from dataclasses import replace
from itertools import groupby

import pytest

from schemas.words import about, counted
from tests.test_training import CHOOSING, SMALL, clustered_pairs, rows_of
from transforms.train.curves import CurveRow
from transforms.train.pace import Pace, Standing, describe
from transforms.train.settings import TrainingSettings
from transforms.train.training import train

ROW: CurveRow = {"phase": "dim 8, L2 0.12", "epoch": 1, "loss": 4.5, "recall_at_100": 0.5, "ndcg_at_10": 0.25}


def standings_of(settings: TrainingSettings) -> list[Standing]:
    """Trains; returns all that was told."""
    told: list[Standing] = []
    train(rows_of(clustered_pairs()), settings, on_steps=told.append)
    return told


def steps_of_epoch(settings: TrainingSettings) -> int:
    """Returns how many steps an epoch of all rows has: 120 users of 12 rows, four of which are taken at once."""
    num_groups = 120 * math.ceil(12 / settings.group_of(120 * 12, 120))
    return num_groups // settings.batch_of(num_groups)


def test_a_training_of_known_length_is_counted_down_to_nothing() -> None:
    told = standings_of(SMALL)
    assert SMALL.epochs is not None
    total = SMALL.epochs * steps_of_epoch(SMALL)
    assert [now.steps_done + now.steps_left for now in told] == [total] * len(told)
    assert told[-1].steps_left == 0
    assert [now.epoch for now in told] == sorted(now.epoch for now in told)
    assert (told[-1].epoch, told[-1].num_epochs, told[-1].step) == (SMALL.epochs, SMALL.epochs, told[-1].num_steps)
    assert {now.phase for now in told} == {"full"}
    assert not any(now.more_may_follow for now in told)


def searched_and_full() -> tuple[list[Standing], list[Standing]]:
    told = standings_of(CHOOSING)
    searched = [now for now in told if now.more_may_follow]
    return searched, told[len(searched) :]


def test_what_is_left_of_a_search_is_so_if_no_other_settings_are_tried_and_the_last_training_is_part_of_it() -> None:
    searched, full = searched_and_full()
    assert {now.phase for now in full} == {"full"}
    assert "full" not in {now.phase for now in searched}
    phases = [list(group) for _, group in groupby(searched, key=lambda now: now.phase)]
    assert len(phases) >= 3
    done = 0
    for told in phases:
        # Each training is counted down, with what follows it.
        assert len({now.steps_done + now.steps_left for now in told}) == 1
        assert told[-1].steps_left > 0
        assert told[-1].steps_done == done + told[0].num_epochs * told[0].num_steps
        done = told[-1].steps_done
    total = done + full[0].num_epochs * steps_of_epoch(CHOOSING)
    assert [now.steps_done + now.steps_left for now in full] == [total] * len(full)
    assert full[-1].steps_left == 0


def test_what_follows_a_search_is_as_many_steps_as_are_said() -> None:
    searched, full = searched_and_full()
    assert searched[-1].steps_left == full[0].num_epochs * full[0].num_steps


def test_a_trial_of_a_sweep_is_the_only_training() -> None:
    assert not any(now.more_may_follow for now in standings_of(replace(SMALL, include_validation=False)))


def standing(done: int, left: int, more_may_follow: bool = False, curve: list[CurveRow] | None = None) -> Standing:
    return Standing("full", 2, 50, more_may_follow, done, 10_000, done, left, curve or [])


def test_the_line_says_where_it_is_and_how_long_it_takes() -> None:
    pace = Pace()
    assert pace.describe(standing(32, 9_968), 100.0) == "full: epoch 2 of 50, step 32 of 10,000"
    # 1,000 steps took 30 seconds since, so 6,000 take 180.
    assert pace.describe(standing(1_032, 6_000), 130.0) == "full: epoch 2 of 50, step 1,032 of 10,000, about 3 minutes left"
    line = pace.describe(standing(1_032, 6_000, more_may_follow=True, curve=[ROW]), 130.0)
    assert line == (
        "full: epoch 2 of 50, step 1,032 of 10,000, about 3 minutes left if no other settings are tried; "
        "dim 8, L2 0.12: epoch 1, loss 4.5000, Recall@100 0.5000, NDCG@10 0.2500"
    )
    assert line.endswith(describe(ROW))


def test_what_was_not_measured_is_not_said() -> None:
    assert describe({**ROW, "recall_at_100": None, "ndcg_at_10": None}) == "dim 8, L2 0.12: epoch 1, loss 4.5000"


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
