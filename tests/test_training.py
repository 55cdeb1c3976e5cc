"""Training: reading, the validation slice, quality against a plain oracle, checkpoints, determinism, bad input."""

import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that

from schemas.errors import InputError
from schemas.interactions import INTERACTIONS
from schemas.parquet_files import parquet_writer
from schemas.storage import join, list_files, read_bytes, sha256_of
from tests.made_stored import stored_folder
from transforms.index.embed import ItemTower, UserTower
from transforms.train import towers
from transforms.train.checkpoints import checkpoint_path, read_checkpoint
from transforms.train.choose_settings import L2_TRIED, Candidate, best_result
from transforms.train.curves import CurveRow
from transforms.train.fit import FULL, Fit
from transforms.train.recency import PLAIN, item_bias, lift_items, lift_users
from transforms.train.rows import TrainingPaths, TrainingRows, read_rows
from transforms.train.settings import DIM, L2_OF, USER_TOWERS, TrainingSettings
from transforms.train.training import Trained, TrainTowers, train
from transforms.train.validation import Validation, make_validation, quality_of, validation_rows

SMALL = TrainingSettings(dim=8, l2=0.1, batch_size=64, learning_rate=0.01, epochs=6, seed=3)
"""There is nothing to choose: one training, on all rows."""
CHOOSING = replace(SMALL, l2=None)
"""L2 is chosen by trainings of half the epochs."""


def block_of(pairs: list[tuple[str, str]]) -> pa.RecordBatch:
    users, items = zip(*pairs, strict=True)
    none = [None] * len(pairs)
    return pa.RecordBatch.from_arrays(
        [pa.array(users, pa.string()), pa.array(items, pa.string()), pa.array(none, pa.float32()), pa.array(none, pa.int64())],
        schema=INTERACTIONS,
    )


def write_interactions(root: str, path: str, blocks: list[pa.RecordBatch]) -> str:
    with parquet_writer(root, path, INTERACTIONS, []) as writer:
        for block in blocks:
            writer.write_batch(block)
    return join(root, path)


def clustered_pairs(num_users: int = 120, num_items: int = 60, each: int = 12, num_tastes: int = 4) -> list[tuple[str, str]]:
    """Returns ratings of users who like the items of one taste each, and now and then another."""
    rng = np.random.default_rng(0)
    pairs = []
    for user in range(num_users):
        weight = np.where(np.arange(num_items) % num_tastes == user % num_tastes, 20.0, 1.0)
        chosen = rng.choice(num_items, each, replace=False, p=weight / weight.sum())
        pairs += [(f"u{user:03d}", f"i{item:03d}") for item in chosen]
    return pairs


def rows_of(pairs: list[tuple[str, str]], times: list[int] | None = None) -> TrainingRows:
    user_ids, item_ids = (sorted(set(ids)) for ids in zip(*pairs, strict=True))
    codes = [(user_ids.index(user), item_ids.index(item)) for user, item in pairs]
    order = sorted(range(len(codes)), key=codes.__getitem__)
    user, item = np.array([codes[at] for at in order], np.int32).T
    timestamp = None if times is None else np.array([times[at] for at in order])
    return TrainingRows(pa.array(user_ids), pa.array(item_ids), user, item, timestamp)


def slice_of(rows: TrainingRows, fraction: float, seed: int, validation: str = "random") -> np.ndarray:
    return validation_rows(rows, TrainingSettings(validation=validation, validation_fraction=fraction, seed=seed))[0]


def users_of(trained: Trained, rows: TrainingRows) -> np.ndarray:
    return trained.model.user_tower.vectors_of(np.arange(len(rows.user_ids)))


def weights_of(trained: Trained, rows: TrainingRows) -> tuple[bytes, bytes]:
    return users_of(trained, rows).tobytes(), trained.model.item_tower.vectors.tobytes()


@pytest.fixture(autouse=True)
def short_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of which one is chosen take half the epochs, however few rows there are."""
    monkeypatch.setattr("transforms.train.training._SHORTER", 2)
    monkeypatch.setattr("transforms.train.training._ROWS_OF_A_TRIAL", 1)


@pytest.fixture(scope="module")
def rows() -> TrainingRows:
    return rows_of(clustered_pairs())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 0}, "dim must be between 1 and 4096, got 0: change --dim"),
        ({"batch_size": 0}, "batch_size must be between 1 and 65536, got 0: change --batch_size"),
        ({"mixed_negatives": -1}, "mixed_negatives must be between 0 and 65536, got -1: change --mixed_negatives"),
        ({"history_sample": 0}, "history_sample must be between 1 and 65536, got 0: change --history_sample"),
        ({"epochs": -1}, "epochs must be between 0 and 10000, got -1: change --epochs"),
        ({"candidates": 0}, "candidates must be between 1 and 65536, got 0: change --candidates"),
        ({"seed": -1}, "seed must be between 0 and 2147483647, got -1: change --seed"),
        ({"learning_rate": 0.0}, "learning_rate must be a number above 0, got 0: change --learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate must be a number above 0, got nan: change --learning_rate"),
        ({"learning_rate": math.inf}, "learning_rate must be a number above 0, got inf: change --learning_rate"),
        ({"l2": -0.1}, "l2 must be a number of at least 0, got -0.1: change --l2"),
        (
            {"validation_fraction": 0.6},
            "validation_fraction must be between 0 and 0.5, got 0.6: change --validation_fraction",
        ),
        ({"user_tower": "deep"}, "user_tower must be one of id, history, id+history, got 'deep': change --user_tower"),
    ],
)
def test_settings_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        TrainingSettings(**change)
    assert str(error.value) == message


def test_read_rows_whatever_the_files(root: str) -> None:
    pairs = [*clustered_pairs(20, 15, 5), ("0002", "é"), ("2", "\n"), ("0002", "i001")]
    expected = rows_of(pairs)
    shuffled = [pairs[index] for index in np.random.default_rng(1).permutation(len(pairs))]
    layouts = [[[pairs]], [[shuffled[:7], shuffled[7:50]], [shuffled[50:]]]]
    for number, layout in enumerate(layouts):
        paths = [
            write_interactions(root, f"{number}/{index}.parquet", [block_of(chunk) for chunk in chunks])
            for index, chunks in enumerate(layout)
        ]
        found = read_rows(paths)
        assert found.user_ids.equals(expected.user_ids)
        assert found.item_ids.equals(expected.item_ids)
        assert found.user.dtype == found.item.dtype == np.int32
        np.testing.assert_array_equal(found.user, expected.user)
        np.testing.assert_array_equal(found.item, expected.item)


def test_nothing_to_train_on(tmp_path: object) -> None:
    path = write_interactions(str(tmp_path), "empty.parquet", [])
    with pytest.raises(InputError, match="nothing to train on, the training interactions have 0 rows: check"):
        read_rows([path])


def test_the_validation_slice(rows: TrainingRows) -> None:
    chosen = slice_of(rows, 0.2, seed=1)
    assert 0.15 < chosen.mean() < 0.25
    assert set(rows.user[~chosen]) == set(rows.user)
    assert set(rows.item[~chosen]) == set(rows.item)
    assert (chosen != slice_of(rows, 0.2, seed=2)).any()
    # A pair goes the same way whatever else there is.
    fewer = rows_of([pair for pair in clustered_pairs() if pair[0] < "u060"])
    here = slice_of(fewer, 0.2, seed=1)
    assert (here == chosen[: len(here)]).mean() > 0.99


def test_no_row_is_spared_where_it_is_the_only_one() -> None:
    rows = rows_of([("a", "x"), ("a", "y"), ("b", "z")])
    assert not any(slice_of(rows, 0.5, seed).any() for seed in range(20))


def test_quality_equals_a_plain_oracle() -> None:
    rng = np.random.default_rng(5)
    num_items = 150
    users, items = rng.normal(size=(7, 4)).astype(np.float32), rng.normal(size=(num_items, 4)).astype(np.float32)
    seen = [set(rng.choice(num_items, 40, replace=False).tolist()) for _ in users]
    held = [set(rng.choice(sorted(set(range(num_items)) - each), rng.integers(1, 20), replace=False).tolist()) for each in seen]
    recalls, ndcgs = [], []
    for user, user_seen, user_held in zip(users, seen, held, strict=True):
        scores = items @ user
        best = sorted(set(range(num_items)) - user_seen, key=lambda item: -scores[item])
        recalls.append(len(user_held & set(best[:100])) / len(user_held))
        gain = sum(1 / math.log2(rank + 2) for rank, item in enumerate(best[:10]) if item in user_held)
        ndcgs.append(gain / sum(1 / math.log2(rank + 2) for rank in range(min(10, len(user_held)))))
    keys = [np.array(sorted(row * num_items + item for row, each in enumerate(sets) for item in each)) for sets in (seen, held)]
    found = quality_of(users, items, Validation(np.arange(7), *keys))
    assert found.recall_at_100 == pytest.approx(np.mean(recalls))
    assert found.ndcg_at_10 == pytest.approx(np.mean(ndcgs))


def test_quality_is_the_same_in_pieces(rows: TrainingRows, monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = slice_of(rows, 0.2, 0)
    validation = make_validation(rows, held_out, ~held_out, 0)
    rng = np.random.default_rng(0)
    users, items = rng.normal(size=(len(validation.users), 4)), rng.normal(size=(len(rows.item_ids), 4))
    whole = quality_of(users, items, validation)
    monkeypatch.setattr("transforms.train.validation._SCORES_AT_ONCE", 7 * len(items))
    assert quality_of(users, items, validation) == pytest.approx(whole)


def test_validation_takes_a_sample_of_many_users(rows: TrainingRows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transforms.train.validation.MAX_VALIDATION_USERS", 10)
    held_out = slice_of(rows, 0.2, 0)
    validation = make_validation(rows, held_out, ~held_out, 0)
    assert len(validation.users) == 10
    num_items = len(rows.item_ids)
    pairs = {(user, item) for user, item in zip(rows.user[held_out], rows.item[held_out], strict=True)}
    expected = {pair for pair in pairs if pair[0] in validation.users}
    assert {(validation.users[key // num_items], key % num_items) for key in validation.held_out} == expected


def test_the_more_rows_there_are_the_less_often_each_is_taken() -> None:
    settings = TrainingSettings()
    epochs = [settings.epochs_of(num_rows) for num_rows in (0, 1, 10**5, 10**6, 2 * 10**6, 10**7, 10**9)]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[0] == epochs[1] > epochs[-1] >= 1
    assert replace(settings, epochs=7).epochs_of(10**9) == 7


def test_the_longer_histories_are_the_more_of_one_is_taken_at_once() -> None:
    settings = TrainingSettings()
    groups = [settings.group_of(10**6, num_users) for num_users in (10**6, 10**5, 10**4, 10**3, 1)]
    assert groups == sorted(groups)
    assert 1 <= groups[0] < groups[-1] < 100
    assert settings.group_of(0, 0) == settings.group_of(1, 1) == groups[0]


def test_a_step_takes_no_more_than_asked_for_and_an_epoch_has_some_steps() -> None:
    settings = TrainingSettings(batch_size=512)
    batches = {num_groups: settings.batch_of(num_groups) for num_groups in (1, 31, 500, 3_200, 10**6)}
    assert batches[1] == 1
    assert batches[10**6] == 512
    assert all(batch <= num_groups for num_groups, batch in batches.items())
    assert 500 // batches[500] >= 10
    assert list(batches.values()) == sorted(batches.values())
    assert replace(settings, batch_size=8).batch_of(500) == 8
    candidates = [settings.candidates_of(num_items) for num_items in (1, 1_700, 40_000, 10**6, 10**8)]
    assert candidates == sorted(candidates)
    assert candidates[0] == candidates[1] < candidates[2] < candidates[3] == candidates[4]
    assert replace(settings, candidates=5).candidates_of(10**6) == 5


@pytest.mark.parametrize(
    ("settings", "is_open"),
    [
        (TrainingSettings(), True),
        (TrainingSettings(dim=8, recency="off"), True),
        (TrainingSettings(l2=0.1, recency="off"), True),
        (TrainingSettings(dim=8, l2=0.1), True),
        (TrainingSettings(dim=8, l2=0.1, recency="off"), False),
        (TrainingSettings(dim=8, l2=0.0, recency="on"), False),
        (TrainingSettings(dim=8, l2=0.1, blend=PLAIN), False),
    ],
)
def test_what_leaves_something_open(settings: TrainingSettings, is_open: bool) -> None:
    assert settings.leaves_open == is_open


def test_what_is_not_chosen_is_as_usual() -> None:
    assert [TrainingSettings(user_tower=kind).l2_weight for kind in USER_TOWERS] == [L2_OF[kind] for kind in USER_TOWERS]
    assert (TrainingSettings().dimensions, TrainingSettings(l2=0.0).l2_weight, TrainingSettings(dim=3).dimensions) == (
        DIM,
        0,
        3,
    )


def phases_of(trained: Trained) -> list[str]:
    """Returns the phases in their order, each once."""
    return list(dict.fromkeys(row["phase"] for row in trained.curve))


@pytest.mark.parametrize("user_tower", USER_TOWERS)
def test_training_learns_tastes(rows: TrainingRows, user_tower: str) -> None:
    settings = replace(CHOOSING, user_tower=user_tower, epochs=20, seed=0)
    trained = train(rows, settings)
    scores = users_of(trained, rows) @ trained.model.item_tower.vectors.T
    own = np.arange(120)[:, None] % 4 == np.arange(60)[None, :] % 4
    # The 15 items of a user's own taste, out of 60, fill nearly all of the 15 best places.
    best = np.argsort(-scores, axis=1)[:, :15]
    assert np.take_along_axis(own, best, axis=1).mean() > 0.9
    assert [row["epoch"] for row in trained.curve if row["phase"] == FULL] == list(range(1, 21))
    losses = [row["loss"] or 0.0 for row in trained.curve if row["phase"] == FULL]
    assert 0 < losses[-1] < losses[0]


@pytest.mark.parametrize("user_tower", USER_TOWERS)
def test_the_best_of_what_was_tried_is_trained_on_every_row(rows: TrainingRows, user_tower: str) -> None:
    trained = train(rows, replace(CHOOSING, user_tower=user_tower))
    tried = [each.candidate for each in trained.results]
    assert tried[0] == Candidate(8, L2_OF[user_tower])
    assert 3 <= len(tried) == len(set(tried))
    assert {each.l2 for each in tried} <= set(L2_TRIED)
    best = best_result(trained.results)
    assert trained.candidate == best.candidate
    assert trained.quality == (best.recall_at_100, best.ndcg_at_10)
    assert phases_of(trained) == [*(f"dim 8, L2 {each.l2:g}" for each in tried), FULL]
    # Half the epochs for a choice, all of them at last; a result is what the curve says of the last epoch.
    for result, phase in zip(trained.results, phases_of(trained)[:-1], strict=True):
        its = [row for row in trained.curve if row["phase"] == phase]
        assert [row["epoch"] for row in its] == [1, 2, 3]
        assert (its[-1]["recall_at_100"], its[-1]["ndcg_at_10"]) == (result.recall_at_100, result.ndcg_at_10)
        assert all(row["recall_at_100"] is not None for row in its)
    full = [row for row in trained.curve if row["phase"] == FULL]
    assert [row["epoch"] for row in full] == list(range(1, 7)) == list(range(1, trained.num_epochs + 1))
    assert all(row["recall_at_100"] is row["ndcg_at_10"] is None for row in full)
    # What is chosen is what is trained with when it is given.
    given = train(rows, replace(CHOOSING, user_tower=user_tower, dim=trained.candidate.dim, l2=trained.candidate.l2))
    assert weights_of(given, rows) == weights_of(trained, rows)


@pytest.mark.parametrize(("rows_of_a_trial", "num_epochs"), [(1, 2), (3_000, 3), (5_000, 4), (10**9, 6)])
def test_settings_are_tried_in_short_trainings_but_on_some_rows_at_least(
    rows: TrainingRows, monkeypatch: pytest.MonkeyPatch, rows_of_a_trial: int, num_epochs: int
) -> None:
    """A third of six epochs, or as many epochs of the 1,300 rows that are not held out as make so many rows."""
    monkeypatch.setattr("transforms.train.training._SHORTER", 3)
    monkeypatch.setattr("transforms.train.training._ROWS_OF_A_TRIAL", rows_of_a_trial)
    trained = train(rows, replace(CHOOSING, dim=4))
    counts = Counter(row["phase"] for row in trained.curve)
    assert counts.pop(FULL) == 6
    assert set(counts.values()) == {num_epochs}


def test_twice_the_dimensions_are_tried_where_there_are_ratings_enough(
    rows: TrainingRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("settings", "choose_settings"):
        monkeypatch.setattr(f"transforms.train.{module}.DIM", 8, raising=False)
    monkeypatch.setattr("transforms.train.choose_settings.ROWS_FOR_TWICE", 100)
    trained = train(rows, replace(SMALL, dim=None, epochs=2))
    assert [each.candidate for each in trained.results] == [Candidate(8, 0.1), Candidate(16, 0.1)]
    assert trained.candidate == best_result(trained.results).candidate
    assert users_of(trained, rows).shape == (120, trained.candidate.dim)
    assert phases_of(trained) == ["dim 8, L2 0.1", "dim 16, L2 0.1", FULL]


def test_a_choice_is_made_by_some_users_where_there_are_many_ratings(
    rows: TrainingRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But by all that they rated; and everybody is in the training that follows."""
    seen: list[np.ndarray] = []

    class Watched(Fit):
        def __init__(self, rows: TrainingRows, *arguments: Any) -> None:
            seen.append(rows.user)
            super().__init__(rows, *arguments)

    monkeypatch.setattr("transforms.train.training.Fit", Watched)
    monkeypatch.setattr("transforms.train.training.SEARCH_ROWS", 700)
    trained = train(rows, replace(CHOOSING, epochs=2))
    few, everyone = seen
    np.testing.assert_array_equal(everyone, rows.user)
    assert 500 < len(few) < 800
    assert 0.3 < len(set(few)) / 120 < 0.7
    left = np.bincount(few, minlength=120)
    assert left[left > 0].min() >= 6, "of 12 rows a user, but those that are held out"
    assert trained.quality is not None


def test_where_all_is_given_there_is_one_training_on_all_rows(rows: TrainingRows) -> None:
    trained = train(rows, SMALL)
    assert phases_of(trained) == [FULL]
    assert (trained.quality, trained.results, trained.recency) == (None, [], None)
    assert trained.candidate == Candidate(8, 0.1)
    assert trained.blend == PLAIN
    # The slice makes no difference then.
    other = train(rows, replace(SMALL, validation_fraction=0.0))
    assert weights_of(other, rows) == weights_of(trained, rows)


def test_quality_is_measured_after_the_last_epoch_where_it_costs_much(
    rows: TrainingRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = train(rows, replace(SMALL, include_validation=False))
    monkeypatch.setattr("transforms.train.fit._SCORES_AN_EPOCH", 100)
    seldom = train(rows, replace(SMALL, include_validation=False))
    assert all(row["recall_at_100"] is not None for row in often.curve)
    assert [row["recall_at_100"] is not None for row in seldom.curve] == [False] * 5 + [True]
    assert [row["ndcg_at_10"] is not None for row in seldom.curve] == [False] * 5 + [True]
    assert seldom.curve[-1] == often.curve[-1]
    assert seldom.quality == often.quality
    assert weights_of(seldom, rows) == weights_of(often, rows)


@pytest.mark.parametrize("user_tower", USER_TOWERS)
def test_training_is_deterministic(rows: TrainingRows, user_tower: str) -> None:
    settings = replace(CHOOSING, user_tower=user_tower, history_sample=5, epochs=4)
    first, second = (train(rows, settings) for _ in range(2))
    assert weights_of(first, rows) == weights_of(second, rows)
    assert first.curve == second.curve
    assert weights_of(train(rows, replace(settings, seed=4)), rows) != weights_of(first, rows)


def test_trials_of_one_training_begin_alike(rows: TrainingRows) -> None:
    """A model that begins again, with another L2, comes to what a new one comes to."""
    of_both = train(rows, CHOOSING)
    for result in of_both.results[1:3]:
        alone = train(rows, replace(CHOOSING, l2=result.candidate.l2, include_validation=False, epochs=3))
        assert alone.quality == (result.recall_at_100, result.ndcg_at_10)


def test_without_the_validation_slice_it_is_trained_once_on_the_others(rows: TrainingRows) -> None:
    settings = replace(SMALL, dim=None, l2=None, include_validation=False)
    trained = train(rows, settings)
    assert phases_of(trained) == ["search"]
    assert trained.num_epochs == len(trained.curve) == 6
    assert (trained.candidate, trained.results) == (Candidate(DIM, L2_OF["id"]), [])
    held_out, trained_on = validation_rows(rows, settings)
    validation = make_validation(rows, held_out, trained_on, settings.seed)
    users = lift_users(trained.model.user_tower.vectors_of(validation.users))
    items = lift_items(trained.model.item_tower.vectors, 1.0, item_bias(rows.where(trained_on).rated, PLAIN))
    assert quality_of(users, items, validation) == trained.quality
    # It is the training of those rows alone.
    without = rows.where(trained_on)
    alone = train(without, replace(settings, include_validation=True, dim=DIM, l2=L2_OF["id"]))
    assert weights_of(alone, rows) == weights_of(trained, rows)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("user_tower", USER_TOWERS)
@pytest.mark.parametrize(
    "after", ["the first epoch", "the first choice", "the second choice", "all choices", "an epoch of all rows"]
)
def test_an_interrupted_training_goes_on_to_the_same_bits(
    rows: TrainingRows, tmp_path: Path, after: str, user_tower: str
) -> None:
    """In the search, between two of its trainings, between it and the full training, and in that."""
    settings = replace(CHOOSING, user_tower=user_tower, history_sample=5, epochs=4)
    whole = train(rows, settings)
    searched = sum(row["phase"] != FULL for row in whole.curve)
    assert len(whole.curve) == searched + 4
    num_epochs = {
        "the first epoch": 1,
        "the first choice": 2,
        "the second choice": 4,
        "all choices": searched,
        "an epoch of all rows": searched + 2,
    }[after]
    told = interrupted(rows, settings, str(tmp_path), num_epochs)
    (checkpoint,) = list_files(join(str(tmp_path), "*"))
    assert checkpoint.path.endswith(".npz")
    resumed = train(rows, settings, str(tmp_path), checkpoint_secs=0, on_epoch=lambda curve: told.append(curve[-1]))
    assert same(resumed, whole, rows)
    assert resumed.resumed_epochs == num_epochs
    assert told == whole.curve, "no epoch was trained twice"


def test_a_training_may_be_interrupted_on_any_file_system_again_and_again(rows: TrainingRows, root: str) -> None:
    whole = train(rows, replace(CHOOSING, epochs=2))
    told: list[CurveRow] = []
    for _ in range(len(whole.curve) - 1):
        told += interrupted(rows, replace(CHOOSING, epochs=2), root, 1)
    resumed = train(rows, replace(CHOOSING, epochs=2), root, checkpoint_secs=0, on_epoch=lambda curve: told.append(curve[-1]))
    assert same(resumed, whole, rows)
    assert told == whole.curve


def interrupted(rows: TrainingRows, settings: TrainingSettings, root: str, after: int) -> list[CurveRow]:
    """Trains, or goes on, until some epochs are done; returns their rows of the curve."""
    told: list[CurveRow] = []

    def interrupt(curve: list[CurveRow]) -> None:
        told.append(curve[-1])
        if len(told) == after:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(rows, settings, root, checkpoint_secs=0, on_epoch=interrupt)
    return told


def same(resumed: Trained, whole: Trained, rows: TrainingRows) -> bool:
    """Tells whether two trainings came to the same, to the bit."""
    fields = [field for field in Trained._fields if field not in ("model", "resumed_epochs")]
    return weights_of(resumed, rows) == weights_of(whole, rows) and all(
        getattr(resumed, field) == getattr(whole, field) for field in fields
    )


@pytest.mark.parametrize("user_tower", USER_TOWERS)
@pytest.mark.parametrize("saved_before", [1, 9, 17])
def test_a_training_interrupted_within_an_epoch_goes_on(
    rows: TrainingRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved_before: int, user_tower: str
) -> None:
    """In the first training of the search, in its second, and in the full one."""
    from transforms.train import training

    settings = replace(CHOOSING, user_tower=user_tower, history_sample=5, epochs=2, batch_size=32)
    whole = train(rows, settings)
    monkeypatch.setattr("transforms.train.fit._STEPS_A_CALL", 3)
    saved: list[str] = []
    original = training.write_checkpoint

    def write_some(path: str, checkpoint: Any) -> None:
        original(path, checkpoint)
        if checkpoint.progress.step:
            saved.append(path)
            if len(saved) == saved_before:
                assert checkpoint.progress.step % 3 == 0
                raise Interrupted

    monkeypatch.setattr(training, "write_checkpoint", write_some)
    with pytest.raises(Interrupted):
        train(rows, settings, str(tmp_path), checkpoint_secs=0)
    checkpoint = read_checkpoint(saved[-1])
    assert checkpoint is not None
    assert checkpoint.progress.step > 0
    saved.clear()
    monkeypatch.setattr(training, "write_checkpoint", original)
    assert same(train(rows, settings, str(tmp_path), checkpoint_secs=0), whole, rows)


def test_other_settings_do_not_find_the_checkpoint(rows: TrainingRows, tmp_path: object) -> None:
    train(rows, SMALL, str(tmp_path), checkpoint_secs=0)
    other = replace(SMALL, dim=4, epochs=1)
    assert len(train(rows, other, str(tmp_path), checkpoint_secs=0).curve) == 1


def test_a_loss_that_is_not_finite_names_the_step_and_the_repair(rows: TrainingRows) -> None:
    with pytest.raises(
        InputError, match=r"must be finite, got nan or inf at step \d+ of epoch 1: lower --learning_rate, which is 1e\+30"
    ):
        train(rows, TrainingSettings(dim=8, l2=0.1, learning_rate=1e30, batch_size=64))


def test_a_training_that_fails_keeps_its_last_good_checkpoint(
    rows: TrainingRows, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vectors grow until their products are not finite; nothing of it gets into a training with a lower rate."""
    monkeypatch.setattr("transforms.train.fit._STEPS_A_CALL", 1)
    failing = replace(SMALL, learning_rate=1e18)
    with pytest.raises(InputError, match=r"finite, got nan or inf at step \d+ of epoch \d+: .* which is 1e\+18") as error:
        train(rows, failing, root, checkpoint_secs=0)
    good = read_checkpoint(checkpoint_path(root, rows, failing))
    assert good is not None
    assert good.progress.step > 0
    assert f"at step {good.progress.step + 1} " in str(error.value)
    assert all(np.isfinite(variable).all() for variable in good.variables)
    assert max(np.abs(variable).max() for variable in good.variables) > 1e17
    monkeypatch.undo()
    assert weights_of(train(rows, SMALL, root, checkpoint_secs=0), rows) == weights_of(train(rows, SMALL), rows)


def test_vectors_that_are_not_finite_are_never_a_checkpoint(
    rows: TrainingRows, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is that before a step, so the step that spoils the vectors may still have a good one."""

    class Spoiling(towers.TwoTowers):
        def train_steps(self, users: np.ndarray, *batches: np.ndarray) -> tf.Tensor:
            self.item_tower.embeddings.assign(self.item_tower.embeddings * math.nan)
            return tf.ones(len(users))

    monkeypatch.setattr(towers, "TwoTowers", Spoiling)
    with pytest.raises(InputError, match="the vectors must be finite, got nan or inf at step"):
        train(rows, SMALL, root, checkpoint_secs=0)
    assert not list_files(join(root, "*"))


@pytest.mark.parametrize("user_tower", USER_TOWERS)
@pytest.mark.parametrize(
    "pairs",
    [
        [("u", "i")],
        [("u", "a"), ("u", "b"), ("u", "c")],
        [("u", "i"), ("v", "i"), ("w", "i")],
        [(f"u{user}", f"i{item}") for user in range(4) for item in range(4)],
    ],
)
def test_very_little_data_still_gives_towers(pairs: list[tuple[str, str]], user_tower: str) -> None:
    rows = rows_of(pairs)
    trained = train(rows, TrainingSettings(user_tower, dim=4, epochs=3))
    assert trained.num_epochs == 3
    for vectors, ids in (
        (users_of(trained, rows), rows.user_ids),
        (trained.model.item_tower.vectors, rows.item_ids),
    ):
        assert vectors.shape == (len(ids), 4)
        assert np.isfinite(vectors).all()


def test_without_a_validation_slice_every_epoch_is_trained(rows: TrainingRows) -> None:
    trained = train(rows, TrainingSettings(dim=4, validation_fraction=0, epochs=3))
    assert (trained.quality, trained.results, phases_of(trained)) == (None, [], [FULL])
    assert trained.candidate == Candidate(4, L2_OF["id"])
    assert trained.num_epochs == len(trained.curve) == 3


def log_paths(root: str) -> list[str]:
    return [file.path[len(join(root, "")) :] for file in list_files(join(root, "tensorboard", "**"))]


def test_train_towers(root: str) -> None:
    pairs = clustered_pairs()
    half = len(pairs) // 2
    paths = [
        write_interactions(root, f"in/{i}.parquet", [block_of(part)]) for i, part in enumerate([pairs[:half], pairs[half:]])
    ]
    out = join(root, "out")

    def check(outputs: list[Any]) -> None:
        assert len(outputs) == 1
        files, metrics = outputs[0]
        assert [file.path for file in files] == sorted(file.path for file in files)
        assert not any("tensorboard" in file.path for file in files)
        for file in files:
            assert sha256_of(join(out, file.path)) == file.sha256
            assert len(read_bytes(join(out, file.path))) == file.bytes
        assert {file.path.split("/")[0] for file in files} == {"user_tower", "item_tower", "curves.json"}
        assert metrics["train_users"] == 120
        assert metrics["train_items"] == len({item for _, item in pairs})
        assert metrics["train_rows"] == len(pairs)
        assert 0 < metrics["validation_recall_at_100"] <= 1
        assert metrics["dim"] == 9
        assert metrics["settings"] in [{"dim": each["dim"], "l2": each["l2"]} for each in metrics["settings_tried"]]
        assert len(metrics["settings_tried"]) >= 3
        assert metrics["epochs"] == 6

    with TestPipeline("FnApiRunner") as p:
        trained = p | TrainTowers(
            TrainingPaths(paths, []), out, CHOOSING, join(root, "checkpoints"), 0, resource_hints={"min_ram": "4GB"}
        )
        assert_that(trained, check)

    assert not list_files(join(root, "checkpoints", "*"))

    rows = rows_of(pairs)
    expected = train(rows, CHOOSING)
    users = pa.record_batch({"user_id": pa.array(["u001", "nobody", "u000"])})
    vectors, known = UserTower(stored_folder(join(out, "user_tower"))).embed(users)
    assert known.tolist() == [True, False, True]
    np.testing.assert_array_equal(vectors[[2, 0]], lift_users(users_of(expected, rows)[:2]))
    assert (vectors[1] == 0).all()
    vectors, known = ItemTower(stored_folder(join(out, "item_tower"))).embed(pa.record_batch({"item_id": rows.item_ids}))
    assert known.all()
    bias = item_bias(rows.rated, PLAIN)
    np.testing.assert_array_equal(vectors, lift_items(expected.model.item_tower.vectors, 1.0, bias))

    folders = {path.rpartition("/")[0] for path in log_paths(out)}
    assert folders == {"tensorboard/full", *(f"tensorboard/dim8-L2{each.candidate.l2:g}" for each in expected.results)}
    curves = json.loads(read_bytes(join(out, "curves.json")))
    assert not list_files(join(out, "*.svg")), "charts are drawn from the curve when a release is published"
    assert curves == {"num_epochs": 6, "epochs": expected.curve}
    assert all(math.isfinite(row["loss"]) for row in curves["epochs"])


def test_a_pipeline_is_built_without_tensorflow() -> None:
    code = "import sys, transforms.train.training, transforms.index.embed; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
