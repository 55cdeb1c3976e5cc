"""Recency: biases against the formula by hand, the choice, and training on data whose popularity drifts."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InputError
from tests.made_stored import stored_folder
from tests.test_training import interrupted, rows_of, same
from transforms.index.embed import ItemTower, UserTower
from transforms.train.recency import (
    DAY_SECONDS,
    PLAIN,
    Blend,
    BlendResult,
    RatedItems,
    blend_of,
    blends_to_try,
    choose,
    item_bias,
    lift_items,
    lift_users,
    recent_counts,
)
from transforms.train.rows import TrainingRows
from transforms.train.settings import TrainingSettings
from transforms.train.training import train, write_towers
from transforms.train.validation import validation_rows

DAYS = [0, 30, 30, 58, 60, 60, 59, 1, 2]
ITEMS = [0, 0, 1, 1, 1, 2, 2, 3, 3]
RATED = RatedItems(np.array(ITEMS, np.int32), np.array(DAYS, np.int64) * DAY_SECONDS, 5)
QUICK = TrainingSettings(dim=8, l2=0.1, batch_size=256, learning_rate=0.02, epochs=8, validation="temporal", seed=0)


@pytest.mark.parametrize("blend", [PLAIN, Blend(0.5, 1.0, 7.0), Blend(1.0, 0.5, 30.0)])
def test_the_bias_equals_the_formula(blend: Blend) -> None:
    bias = item_bias(RATED, blend)
    expected = []
    for item in range(4):
        days = [day for day, each in zip(DAYS, ITEMS, strict=True) if each == item]
        expected.append(math.log(len(days)))
        if blend.half_life_days:
            weigh = [0.5 ** ((60 - day) / blend.half_life_days) for day in days]
            all_recent = sum(0.5 ** ((60 - day) / blend.half_life_days) for day in DAYS)
            drift = (sum(weigh) + 0.1) / (len(days) * all_recent / len(DAYS) + 0.1)
            expected[-1] += blend.recency * math.log(drift)
    np.testing.assert_allclose(bias[:4], np.array(expected) - np.log(np.mean(np.exp(expected))), atol=1e-6)
    assert bias[4] == 0  # Nobody has rated it.
    assert bias.dtype == np.float32


def test_with_full_recency_the_bias_is_the_log_of_the_recent_share() -> None:
    """Where there are enough ratings for the shrinkage not to matter."""
    rated = RatedItems(np.tile(RATED.item, 10_000), np.tile(DAYS, 10_000) * DAY_SECONDS, 4)
    recent = recent_counts(rated, 7 * DAY_SECONDS)
    bias = item_bias(rated, Blend(1.0, 1.0, 7.0))
    np.testing.assert_allclose(np.diff(bias), np.diff(np.log(recent)), atol=0.01)


def test_recent_counts_do_not_change_shares_with_the_order_of_rows() -> None:
    order = np.random.default_rng(0).permutation(len(ITEMS))
    shuffled = RatedItems(RATED.item[order], np.array(DAYS)[order] * DAY_SECONDS, 5)
    np.testing.assert_allclose(recent_counts(shuffled, 1e6), recent_counts(RATED, 1e6))


@pytest.mark.parametrize(
    ("rated", "half_life_days"),
    [
        (RATED._replace(timestamp=np.full(len(ITEMS), 123)), 7.0),
        (RATED._replace(timestamp=None), 7.0),
        (RATED, 1e300),
    ],
    ids=["all at one time", "no times", "a half-life beyond all ages"],
)
def test_without_drift_the_bias_is_plain(rated: RatedItems, half_life_days: float) -> None:
    np.testing.assert_allclose(item_bias(rated, Blend(1.0, 1.0, half_life_days)), item_bias(rated, PLAIN), atol=1e-6)


def test_with_the_shortest_half_life_only_the_last_second_counts() -> None:
    recent = recent_counts(RATED, 1e-300)
    assert recent.tolist() == [0, 1, 1, 0, 0]
    assert np.isfinite(item_bias(RATED, Blend(1.0, 1.0, 1e-300))).all()


@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([0.5, 0.75, 1.0]), st.integers(0, 2**32 - 1))
def test_lifted_vectors_multiply_to_the_score(num_users: int, num_items: int, affinity_weight: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    users, items = (rng.normal(size=(count, 4)).astype(np.float32) for count in (num_users, num_items))
    bias = rng.normal(size=num_items).astype(np.float32)
    scores = lift_users(users) @ lift_items(items, affinity_weight, bias).T
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, affinity_weight * (users @ items.T) + bias, rtol=1e-4, atol=1e-5)


def test_every_combination_is_tried_once_the_plain_one_first() -> None:
    blends = list(blends_to_try(8.0))
    assert blends[0] == PLAIN
    assert len(set(blends)) == len(blends)
    assert {blend.half_life_days for blend in blends} == {None, 2.0, 4.0, 8.0, 16.0, 32.0}
    assert all((blend.recency == 0) == (blend.half_life_days is None) for blend in blends)


def tried(blend: Blend, qualities: list[float]) -> BlendResult:
    return BlendResult(blend, np.array(qualities), np.zeros(len(qualities)))


def test_the_best_is_chosen_where_it_is_clearly_better() -> None:
    first, better = tried(PLAIN, [0.1, 0.2, 0.3]), tried(Blend(1.0, 1.0, 7.0), [0.2, 0.31, 0.4])
    choice = choose([first, tried(Blend(0.5), [0.1, 0.1, 0.1]), better])
    assert choice.chosen is better
    error = np.std([0.1, 0.11, 0.1], ddof=1) / math.sqrt(3)
    assert choice.why == f"better than affinity weight 1, recency 0 by 0.1033 with a standard error of {error:.4f}"
    report = choice.report()
    assert (report["recency"], report["half_life_days"], report["validation_users"]) == (1.0, 7.0, 3)
    assert [each["recall_at_100"] for each in report["candidates"]] == pytest.approx([0.2, 0.1, 0.91 / 3])


@pytest.mark.parametrize(
    ("qualities", "why"),
    [
        (
            [0.2, 0.2, 0.6],
            "affinity weight 1, recency 1, half-life 7 days is not clearly better: "
            "better than affinity weight 1, recency 0 by 0.1333 with a standard error of 0.0882",
        ),
        ([0.1, 0.2, 0.3], "nothing that was tried is better"),
    ],
)
def test_the_plain_one_stays_where_another_is_not_clearly_better(qualities: list[float], why: str) -> None:
    first = tried(PLAIN, [0.1, 0.2, 0.3])
    choice = choose([first, tried(Blend(1.0, 1.0, 7.0), qualities)])
    assert choice.chosen is first
    assert choice.why.startswith(why)


def test_one_user_is_too_few_to_choose_by() -> None:
    assert choose([tried(PLAIN, [0.1]), tried(Blend(0.5), [0.9])]).chosen.blend == PLAIN


def drifting_rows(num_users: int = 200, num_items: int = 400, each: int = 24) -> TrainingRows:
    """Returns ratings of users with a taste for every fourth item, while what is popular moves through the catalogue."""
    rng = np.random.default_rng(1)
    pairs, times = [], []
    for user in range(num_users):
        days = np.sort(rng.uniform(0, 100, each))
        weights = np.exp(-0.5 * ((np.arange(num_items) / num_items - days[:, None] / 100) / 0.04) ** 2)
        weights *= np.where(np.arange(num_items) % 4 == user % 4, 3.0, 1.0)
        chosen: dict[int, float] = {}
        for day, weight in zip(days, weights, strict=True):
            chosen.setdefault(int(rng.choice(num_items, p=weight / weight.sum())), day)
        pairs += [(f"u{user:03d}", f"i{item:03d}") for item in chosen]
        times += [int(day * DAY_SECONDS) for day in chosen.values()]
    return rows_of(pairs, times)


@pytest.fixture(scope="module")
def drifting() -> TrainingRows:
    return drifting_rows()


def test_recency_is_chosen_where_popularity_drifts(drifting: TrainingRows) -> None:
    """And it is right: what comes after training is found better than without it."""
    assert drifting.timestamp is not None
    future = drifting.timestamp >= np.quantile(drifting.timestamp, 0.9)
    quality = {}
    for recency in ("auto", "off"):
        rows = drifting.where(~future)
        trained = train(rows, replace(QUICK, recency=recency))
        users = lift_users(trained.model.user_tower.vectors_of(np.arange(len(rows.user_ids))))
        items = lift_items(
            trained.model.item_tower.vectors, trained.blend.affinity_weight, item_bias(rows.rated, trained.blend)
        )
        scores = users @ items.T
        scores[rows.user, rows.item] = -np.inf
        best = np.argsort(-scores, axis=1)[:, :20]
        found = [item in best[user] for user, item in zip(drifting.user[future], drifting.item[future], strict=True)]
        quality[recency] = np.mean(found)
        if recency == "auto":
            assert trained.blend.recency > 0
            assert trained.recency is not None
            assert trained.quality == (trained.recency["recall_at_100"], trained.recency["ndcg_at_10"])
            of_candidates = [each["recall_at_100"] + each["ndcg_at_10"] for each in trained.recency["candidates"]]
            assert sum(trained.quality) == max(of_candidates)
        else:
            assert (trained.blend, trained.recency) == (PLAIN, None)
    assert quality["auto"] > 2 * quality["off"]


def test_a_blend_that_is_given_is_kept(drifting: TrainingRows) -> None:
    given = Blend(0.5, 1.0, 3.0)
    trained = train(drifting, replace(QUICK, epochs=1, validation_fraction=0.0, blend=given))
    assert (trained.blend, trained.recency, trained.quality) == (given, None, None)


def test_choosing_is_deterministic(drifting: TrainingRows) -> None:
    first, second = (train(drifting, QUICK) for _ in range(2))
    assert first.recency == second.recency
    assert first.model.item_tower.vectors.tobytes() == second.model.item_tower.vectors.tobytes()


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_training_that_goes_on_keeps_the_blend_that_was_chosen(drifting: TrainingRows, tmp_path: Path, after: int) -> None:
    """Interrupted in the training that the choice is made by, at its end, and in the one on all rows."""
    settings = replace(QUICK, epochs=2)
    whole = train(drifting, settings)
    assert [row["phase"] for row in whole.curve] == ["dim 8, L2 0.1"] * 2 + ["full"] * 2
    told = interrupted(drifting, settings, str(tmp_path), after)
    resumed = train(drifting, settings, str(tmp_path), checkpoint_secs=0, on_epoch=lambda curve: told.append(curve[-1]))
    assert same(resumed, whole, drifting)
    assert told == whole.curve
    assert whole.recency is not None


def test_what_is_written_gives_the_score(drifting: TrainingRows, tmp_path: Path) -> None:
    trained = train(drifting, replace(QUICK, epochs=2))._replace(blend=Blend(0.5, 1.0, 7.0))
    write_towers(str(tmp_path), drifting, trained)
    users, known = UserTower(stored_folder(str(tmp_path / "user_tower"))).embed(pa.record_batch({"user_id": drifting.user_ids}))
    assert known.all()
    items, _ = ItemTower(stored_folder(str(tmp_path / "item_tower"))).embed(pa.record_batch({"item_id": drifting.item_ids}))
    base = trained.model.user_tower.vectors_of(np.arange(len(users))) @ trained.model.item_tower.vectors.T
    bias = item_bias(drifting.rated, trained.blend)
    np.testing.assert_allclose(users @ items.T, 0.5 * base + bias, rtol=1e-4, atol=1e-5)


def test_a_blend_of_an_earlier_release_is_read() -> None:
    of_now = {"affinity_weight": 0.5, "recency": 1.0, "half_life_days": 3.5, "why": "it is better"}
    former = {"taste": 0.5, **{name: value for name, value in of_now.items() if name != "affinity_weight"}}
    assert blend_of(of_now) == blend_of(former) == Blend(0.5, 1.0, 3.5)


def test_off_is_a_weight_of_zero(drifting: TrainingRows) -> None:
    """With the same rows but no times nothing can be recent: the same towers and scores come out."""
    settings = replace(QUICK, epochs=2, validation="random")
    off = train(drifting, replace(settings, recency="off"))
    timeless = train(drifting._replace(timestamp=None), settings)
    assert off.blend == timeless.blend == PLAIN
    assert off.curve == timeless.curve
    assert off.model.item_tower.vectors.tobytes() == timeless.model.item_tower.vectors.tobytes()


def test_on_needs_times(drifting: TrainingRows) -> None:
    assert train(drifting, replace(QUICK, epochs=1, recency="on")).blend == Blend(1.0, 1.0, 7.0)
    with pytest.raises(InputError) as error:
        train(drifting._replace(timestamp=None), replace(QUICK, recency="on"))
    assert str(error.value) == (
        "recency on needs times, and the ratings have no timestamp column: "
        "name it with --columns timestamp=…, or use --recency auto"
    )


def test_recency_is_checked() -> None:
    with pytest.raises(InputError) as error:
        TrainingSettings(recency="yes")
    assert str(error.value) == "recency must be one of auto, on, off, got 'yes': change --recency"
    with pytest.raises(ValueError, match="validation must be one of random, temporal, last, got 'none'"):
        TrainingSettings(validation="none")


def test_a_temporal_slice_is_the_latest_of_the_rows(drifting: TrainingRows) -> None:
    held_out, trained_on = validation_rows(drifting, QUICK)
    assert drifting.timestamp is not None
    assert drifting.timestamp[trained_on].max() < drifting.timestamp[held_out].min()
    assert 0.09 < (~trained_on).mean() < 0.11
    assert set(drifting.user[held_out]) <= set(drifting.user[trained_on])


def test_who_came_after_the_cut_is_neither_trained_nor_validated_on() -> None:
    pairs = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("b", "z"), ("new", "x"), ("a", "late"), ("b", "w")]
    rows = rows_of(pairs, [1, 2, 3, 4, 5, 9, 8, 6])
    held_out, trained_on = validation_rows(rows, replace(QUICK, validation_fraction=0.25))
    name = [(rows.user_ids[user].as_py(), rows.item_ids[item].as_py()) for user, item in zip(rows.user, rows.item, strict=True)]
    assert [pair for pair, held in zip(name, held_out, strict=True) if held] == [("a", "late")]
    assert ("new", "x") not in [pair for pair, used in zip(name, trained_on, strict=True) if used]
    assert trained_on.sum() == 6


def test_a_last_slice_has_the_last_row_of_users() -> None:
    pairs = [(user, item) for user in ("a", "b", "c") for item in ("x", "y", "z")]
    rows = rows_of(pairs, [3, 1, 2, 1, 2, 2, 5, 6, 4])
    settings = replace(QUICK, validation="last", validation_fraction=0.5)
    held_out, trained_on = validation_rows(rows, settings)
    assert [(rows.user[at], rows.item[at]) for at in np.flatnonzero(held_out)] == [(0, 0), (1, 2), (2, 1)]
    np.testing.assert_array_equal(trained_on, ~held_out)


def test_a_last_slice_is_no_larger_than_asked_for(drifting: TrainingRows) -> None:
    held_out, _ = validation_rows(drifting, replace(QUICK, validation="last", validation_fraction=0.02))
    assert 0.01 < held_out.mean() < 0.03
    assert np.bincount(drifting.user[held_out]).max() == 1


@pytest.mark.parametrize("validation", ["temporal", "last"])
def test_without_times_the_slice_is_random(drifting: TrainingRows, validation: str) -> None:
    timeless = drifting._replace(timestamp=None)
    here, expected = (validation_rows(timeless, replace(QUICK, validation=each))[0] for each in (validation, "random"))
    np.testing.assert_array_equal(here, expected)


def test_when_all_happened_at_once_the_slice_is_random(drifting: TrainingRows) -> None:
    rows = drifting._replace(timestamp=np.full(len(drifting.user), 5))
    np.testing.assert_array_equal(
        validation_rows(rows, QUICK)[0], validation_rows(rows, replace(QUICK, validation="random"))[0]
    )
    trained = train(rows, replace(QUICK, epochs=2))
    assert trained.blend.recency == 0


def test_coarse_times_never_hold_out_more_than_half() -> None:
    pairs = [(f"u{user}", f"i{item}") for user in range(5) for item in range(4)]
    rows = rows_of(pairs, [1] * 5 + [2] * 12 + [3] * 3)
    _, trained_on = validation_rows(rows, replace(QUICK, validation_fraction=0.3))
    assert trained_on.sum() == 17


def test_no_fraction_no_slice(drifting: TrainingRows) -> None:
    for validation in ("temporal", "last", "random"):
        held_out, trained_on = validation_rows(drifting, replace(QUICK, validation=validation, validation_fraction=0))
        assert not held_out.any()
        assert trained_on.all()


def test_a_few_times_far_ahead_make_nothing_old() -> None:
    rng = np.random.default_rng(3)
    item, timestamp = rng.integers(0, 20, 5_000).astype(np.int32), rng.integers(0, 100 * DAY_SECONDS, 5_000)
    clean = item_bias(RatedItems(item, timestamp, 20), Blend(1.0, 1.0, 7.0))
    late = RatedItems(np.append(item, 3).astype(np.int32), np.append(timestamp, 4_000_000_000), 20)
    np.testing.assert_allclose(item_bias(late, Blend(1.0, 1.0, 7.0)), clean, atol=0.05)
