"""User towers: what is drawn from histories, means and gradients against NumPy, and what is served."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from schemas.users import USERS
from tests.made_stored import stored_folder
from transforms.index.embed import UserTower
from transforms.train.towers import Batch
from transforms.train.user_towers import Histories, HistoryTower, IdAndHistoryTower, UserIdTower, make_user_tower

RATED = [[4, 0, 2], [1], [3, 1, 4, 0, 2, 5], [], [5, 2]]
"""What each of five users rated, out of six items."""

USER = np.repeat(np.arange(5), [len(each) for each in RATED]).astype(np.int32)
ITEM = np.concatenate([np.array(each, np.int32) for each in RATED])


def histories() -> Histories:
    return Histories(USER, ITEM, 5)


def batch_of(rows: np.ndarray, draw: int = 0) -> Batch:
    return Batch(*(tf.constant(each, tf.int32) for each in (USER[rows], ITEM[rows], rows, [7, draw])))


def others_of(tower: HistoryTower, rows: np.ndarray, draw: int = 0) -> np.ndarray:
    """Returns [n, num_items]: the weights with which each row's vector is made of the items' vectors."""
    tower.rated.assign(np.eye(*tower.rated.shape))
    return tower(batch_of(rows, draw)).numpy()


def weights_by_hand(rows: np.ndarray) -> np.ndarray:
    weights = np.zeros((len(rows), 6))
    for at, row in enumerate(rows):
        others = [item for item in RATED[USER[row]] if item != ITEM[row]]
        weights[at, others] = 1 / max(1, len(others))
    return weights


@pytest.mark.parametrize("num_drawn", [6, 50])
def test_the_mean_is_over_all_others_where_there_are_few(num_drawn: int) -> None:
    rows = np.random.default_rng(0).permutation(len(USER))
    found = others_of(HistoryTower(histories(), 6, 6, num_drawn, l2=0.0, seed=0), rows)
    np.testing.assert_allclose(found, weights_by_hand(rows), rtol=1e-6)


def test_a_long_history_gives_each_other_item_its_share_and_never_the_own() -> None:
    """Of the third user's six items four are drawn; over many draws each but the own counts the same."""
    tower = HistoryTower(histories(), 6, 6, num_drawn=4, l2=0.0, seed=0)
    rows = np.array([4, 6, 9])  # All of the third user.
    found = np.stack([others_of(tower, rows, draw) for draw in range(600)])
    assert (found[:, np.arange(3), ITEM[rows]] == 0).all()
    assert set(np.round(1 / found[found > 0], 4)) == {3.0, 4.0}
    np.testing.assert_allclose(found.sum(axis=2), 1, rtol=1e-6)
    mean = found.mean(axis=0)
    expected = weights_by_hand(rows)
    np.testing.assert_allclose(mean, expected, atol=0.04)


def test_what_is_drawn_follows_from_the_seed_of_the_step() -> None:
    tower = HistoryTower(histories(), 6, 6, num_drawn=2, l2=0.0, seed=0)
    rows = np.array([6])
    draws = [others_of(tower, rows, draw).tobytes() for draw in range(20)]
    assert draws == [others_of(tower, rows, draw).tobytes() for draw in range(20)]
    assert len(set(draws)) > 2


@pytest.mark.parametrize("length", [100, 101, 199, 200, 20_000, 19_999])
def test_a_history_of_twenty_thousand_costs_what_is_drawn(length: int) -> None:
    """Each hundredth gives one item, and a row knows whether its own is among them."""
    long = Histories(np.zeros(length, np.int32), np.arange(length, dtype=np.int32)[::-1].copy(), 1)
    rows = np.arange(length, dtype=np.int32)
    batch = Batch(tf.zeros_like(rows), tf.constant(long.items), tf.constant(rows), tf.constant([0, 1]))
    drawn = long.draw(batch, 100)
    places = length - 1 - drawn.items.numpy()
    gaps = (np.roll(places, -1) - places) % length
    assert gaps.sum() == length
    assert 0 < gaps.min() <= gaps.max() <= 2 * (length // 100 + 1)
    assert drawn.counts.numpy().tolist() == [100]
    np.testing.assert_array_equal(np.flatnonzero(drawn.has_own), np.sort(places))


def test_the_mean_leaves_the_rows_own_item_out_and_only_its_rows_have_a_gradient() -> None:
    tower = HistoryTower(histories(), num_items=8, dim=3, num_drawn=10, l2=0.0, seed=0)
    rows = np.array([1, 3, 9, 4])
    weights = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    with tf.GradientTape() as tape:
        vectors = tower(batch_of(rows))
        loss = tf.reduce_sum(vectors * weights)
    gradient = tape.gradient(loss, tower.rated)
    rated = tower.rated.numpy()
    expected, by_hand = np.zeros((4, 3)), np.zeros((8, 3))
    for at, row in enumerate(rows):
        others = [item for item in RATED[USER[row]] if item != ITEM[row]]
        for other in others:
            expected[at] += rated[other] / len(others)
            by_hand[other] += weights[at] / len(others)
    np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-7)
    assert (expected[1] == 0).all()  # That user has rated nothing else.
    assert isinstance(gradient, tf.IndexedSlices)
    assert set(gradient.indices.numpy().tolist()) <= set(range(6))
    np.testing.assert_allclose(tf.convert_to_tensor(gradient), by_hand, rtol=1e-5, atol=1e-7)


def test_whole_histories_make_the_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = HistoryTower(histories(), num_items=6, dim=3, num_drawn=1, l2=0.0, seed=0)
    rated = tower.rated.numpy()
    users = np.array([2, 3, 0])
    expected = [rated[RATED[2]].mean(axis=0), np.zeros(3), rated[RATED[0]].mean(axis=0)]
    np.testing.assert_allclose(tower.vectors_of(users), expected, rtol=1e-5, atol=1e-8)
    monkeypatch.setattr("transforms.train.user_towers._USERS_AT_ONCE", 2)
    np.testing.assert_array_equal(tower.vectors_of(users), tower.vectors_of(users[[0, 1, 2]]))
    assert tower.vectors_of(users[:0]).shape == (0, 3)


def test_both_are_the_sum_and_share_one_l2() -> None:
    tower = make_user_tower("id+history", histories(), 6, 3, 10, 0.0, 0.4, seed=0)
    assert isinstance(tower, IdAndHistoryTower)
    batch = batch_of(np.array([0, 5, 8]))
    vectors = tower(batch)
    np.testing.assert_allclose(vectors, tower.id_tower(batch) + tower.history_tower(batch), rtol=1e-6)
    (penalty,) = tower.losses
    assert penalty.numpy() == pytest.approx(0.2 * (vectors.numpy() ** 2).sum() / 3, rel=1e-5)


def test_some_rows_train_without_the_users_own_vector() -> None:
    tower = make_user_tower("id+history", histories(), 6, 3, 10, 0.3, 0.0, seed=0)
    assert isinstance(tower, IdAndHistoryTower)
    batch = batch_of(np.full(2000, 5), draw=4)
    difference = tower(batch) - tower.history_tower(batch)
    own = tower.id_tower(batch)
    has_own = np.isclose(difference, own, atol=1e-6).all(axis=1)
    assert (has_own | np.isclose(difference, 0, atol=1e-6).all(axis=1)).all()
    assert has_own.mean() == pytest.approx(0.7, abs=0.04)
    np.testing.assert_allclose(
        tower.vectors_of(np.array([2])), own[:1] + tower.history_tower.vectors_of(np.array([2])), rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["id", "history", "id+history"])
def test_a_saved_tower_knows_users_by_id_or_by_history(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users of training, one who came later, one with no known item, one with neither."""
    user_ids, item_ids = [f"u{i}" for i in range(5)], ["i0", "0001", "a\nb", "é", "i4", "i5"]
    made = make_user_tower(kind, histories(), 6, 3, 2, 0.2, 0.1, seed=0)
    made.save(pa.array(user_ids), pa.array(item_ids), tmp_path / "tower")
    asked = [("u2", [item_ids[i] for i in RATED[2]]), ("new", ["gone", "é", "i5", "1"]), ("u0", ["gone"]), ("new2", [])]
    empty: list = [[]] * 4
    columns = [[user for user, _ in asked], [items for _, items in asked], empty, empty, empty]
    block = pa.RecordBatch.from_arrays([pa.array(c, f.type) for c, f in zip(columns, USERS, strict=True)], schema=USERS)
    served = UserTower(stored_folder(str(tmp_path / "tower")))
    vectors, known = served.embed(block)
    own = np.zeros((4, 3))
    if kind != "history":
        id_tower = made if isinstance(made, UserIdTower) else made.id_tower  # type: ignore[attr-defined]
        own[[0, 2]] = id_tower.vectors_of(np.array([2, 0]))
    mean = np.zeros((4, 3))
    if kind != "id":
        rated = (made if isinstance(made, HistoryTower) else made.history_tower).rated.numpy()  # type: ignore[attr-defined]
        mean[:2] = rated[RATED[2]].mean(axis=0), rated[[3, 5]].mean(axis=0)
    assert served.dim == 4
    np.testing.assert_allclose(vectors[:, :3], own + mean, rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(vectors[0, :3], made.vectors_of(np.array([2]))[0])
    np.testing.assert_array_equal(vectors[:, 3], known)
    assert known.tolist() == {"id": [True, False, True, False], "history": [True, True, False, False]}.get(
        kind, [True, True, True, False]
    )
    # In pieces it is the same, even where one history fills several.
    for at_once in (1, 2, 4):
        monkeypatch.setattr("transforms.index.embed._ITEMS_AT_ONCE", at_once)
        np.testing.assert_array_equal(served.embed(block)[0], vectors)
        assert served.embed(block)[1].tolist() == known.tolist()
    # A slice is embedded as itself, and no users give no vectors.
    np.testing.assert_array_equal(served.embed(block.slice(1, 2))[0], vectors[1:3])
    assert served.embed(block.slice(0, 0))[0].shape == (0, 4)
