"""User towers: what is drawn from histories, means and gradients against NumPy, and what is served."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from schemas.users import USERS
from tests.made_stored import stored_folder
from transforms.index.embed import UserTower
from transforms.train.spectral import Start
from transforms.train.towers import Batch
from transforms.train.user_towers import Histories, HistoryTower, IdAndHistoryTower, UserIdTower, make_user_tower

RATED = [[4, 0, 2], [1], [3, 1, 4, 0, 2, 5], [], [5, 2]]
"""What each of five users rated, out of six items."""

USER = np.repeat(np.arange(5), [len(each) for each in RATED]).astype(np.int32)
ITEM = np.concatenate([np.array(each, np.int32) for each in RATED])


def histories() -> Histories:
    return Histories(USER, ITEM, 5)


def batch_of(groups: list[list[int]], draw: int = 0) -> Batch:
    """Returns a batch of groups, each given by its rows, which are of one user."""
    rows = np.concatenate([np.array(each) for each in groups])
    whose = np.repeat(np.arange(len(groups)), [len(each) for each in groups])
    users = USER[[each[0] for each in groups]]
    return Batch(*(tf.constant(each, tf.int32) for each in (users, ITEM[rows], whose, rows, [0], [7, draw])))


def others_of(tower: HistoryTower, groups: list[list[int]], draw: int = 0) -> np.ndarray:
    """Returns [n, num_items]: the weights with which each group's vector is made of the items' vectors."""
    tower.rated.assign(np.eye(*tower.rated.shape))
    return tower(batch_of(groups, draw)).numpy()


def others_by_hand(rows: list[int]) -> list[int]:
    """Returns what the user of some rows rated beside them."""
    own = {int(item) for item in ITEM[rows]}
    return [item for item in RATED[USER[rows[0]]] if item not in own]


def weights_by_hand(groups: list[list[int]]) -> np.ndarray:
    weights = np.zeros((len(groups), 6))
    for at, rows in enumerate(groups):
        others = others_by_hand(rows)
        weights[at, others] = 1 / max(1, len(others))
    return weights


# Rows 0 to 2 are the first user's, 3 the second's, 4 to 9 the third's, 10 and 11 the last's.
GROUPS = [[5, 9], [0], [10], [3], [4, 6, 7], [2, 1], [11], [8]]
"""Some users are there more than once, each time with other rows."""


@pytest.mark.parametrize("num_drawn", [6, 50])
def test_the_mean_is_over_what_is_not_in_the_group_where_there_is_little(num_drawn: int) -> None:
    found = others_of(HistoryTower(histories(), 6, 6, num_drawn, seed=0), GROUPS)
    np.testing.assert_allclose(found, weights_by_hand(GROUPS), rtol=1e-6)


def test_a_group_of_all_that_a_user_rated_has_the_zero_vector() -> None:
    found = others_of(HistoryTower(histories(), 6, 6, 10, seed=0), [[0, 1, 2], [3], [9, 8, 7, 6, 5, 4], [11, 10]])
    assert (found == 0).all()


@pytest.mark.parametrize("groups", [[[4], [6], [9]], [[4, 6], [9]], [[5, 8, 4], [9, 7], [6]]])
def test_a_long_history_gives_each_other_item_its_share_and_never_those_of_the_group(groups: list[list[int]]) -> None:
    """Of the third user's six items four are drawn; over many draws each but the group's own counts the same."""
    tower = HistoryTower(histories(), 6, 6, num_drawn=4, seed=0)
    found = np.stack([others_of(tower, groups, draw) for draw in range(600)])
    for at, rows in enumerate(groups):
        assert (found[:, at, ITEM[rows]] == 0).all()
        # Of four that are drawn, as many are left as there are others.
        fewest, most = max(1, 4 - len(rows)), min(4, 6 - len(rows))
        weights = found[:, at][found[:, at] > 0]
        assert {int(each) for each in np.round(1 / weights)} <= set(range(fewest, most + 1))
    np.testing.assert_allclose(found.sum(axis=2), 1, rtol=1e-6)
    # Each is drawn as often as any other; those that are near each other on the ring are seldom drawn together.
    is_other = weights_by_hand(groups) > 0
    np.testing.assert_allclose((found > 0).mean(axis=0)[is_other], 4 / 6, atol=0.06)
    np.testing.assert_allclose(found.mean(axis=0), weights_by_hand(groups), atol=0.06)


def test_what_is_drawn_follows_from_the_seed_of_the_step() -> None:
    tower = HistoryTower(histories(), 6, 6, num_drawn=2, seed=0)
    draws = [others_of(tower, [[6]], draw).tobytes() for draw in range(20)]
    assert draws == [others_of(tower, [[6]], draw).tobytes() for draw in range(20)]
    assert len(set(draws)) > 2


def test_a_user_that_is_in_the_batch_twice_is_drawn_for_once() -> None:
    drawn = histories().draw(batch_of([[4], [0], [5, 6], [10]]), 3)
    assert drawn.counts.numpy().tolist() == [3, 3, 2]
    assert drawn.user.numpy().tolist() == [0, 1, 0, 2]
    assert len(drawn.items) == len(drawn.whose) == 8
    items, whose = drawn.items.numpy(), drawn.whose.numpy()
    for at, user in enumerate((2, 0, 4)):
        mine = items[whose == at].tolist()
        assert set(mine) <= set(RATED[user])
        assert len(set(mine)) == len(mine)


@pytest.mark.parametrize("length", [100, 101, 199, 200, 20_000, 19_999])
def test_a_history_of_twenty_thousand_costs_what_is_drawn(length: int) -> None:
    """Each hundredth gives one item, and a row knows whether its own is among them."""
    long = Histories(np.zeros(length, np.int32), np.arange(length, dtype=np.int32)[::-1].copy(), 1)
    rows = np.arange(length, dtype=np.int32)
    # Groups of a hundred rows, the last of what is left.
    whose = rows // 100
    batch = Batch(
        *(tf.constant(each, tf.int32) for each in (np.zeros(whose[-1] + 1, np.int32), long.items, whose, rows, [0], [0, 1]))
    )
    drawn = long.draw(batch, 100)
    places = length - 1 - drawn.items.numpy()
    gaps = (np.roll(places, -1) - places) % length
    assert gaps.sum() == length
    assert 0 < gaps.min() <= gaps.max() <= 2 * (length // 100 + 1)
    assert drawn.counts.numpy().tolist() == [100]
    np.testing.assert_array_equal(np.flatnonzero(drawn.has_own), np.sort(places))


def test_the_mean_leaves_the_groups_own_items_out_and_only_its_rows_have_a_gradient() -> None:
    tower = HistoryTower(histories(), num_items=8, dim=3, num_drawn=10, seed=0)
    groups = [[1, 2], [3], [9], [4, 5, 6], [11]]
    weights = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    with tf.GradientTape() as tape:
        vectors = tower(batch_of(groups))
        loss = tf.reduce_sum(vectors * weights)
    gradient = tape.gradient(loss, tower.rated)
    rated = tower.rated.numpy()
    expected, by_hand = np.zeros((5, 3)), np.zeros((8, 3))
    for at, rows in enumerate(groups):
        others = others_by_hand(rows)
        for other in others:
            expected[at] += rated[other] / len(others)
            by_hand[other] += weights[at] / len(others)
    np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-7)
    assert (expected[1] == 0).all()  # That user has rated nothing else.
    assert isinstance(gradient, tf.IndexedSlices)
    assert set(gradient.indices.numpy().tolist()) <= set(range(6))
    np.testing.assert_allclose(tf.convert_to_tensor(gradient), by_hand, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("num_drawn", [3, 8, 100])
def test_the_mean_equals_a_plain_one_of_what_was_drawn_for_many_users(num_drawn: int) -> None:
    """Random histories of 1 to 30 items, and random groups of their rows."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 31, 40)
    user = np.repeat(np.arange(40, dtype=np.int32), lengths)
    item = np.concatenate([rng.permutation(50)[:length] for length in lengths]).astype(np.int32)
    many = Histories(user, item, 40)
    tower = HistoryTower(many, 50, 4, num_drawn, seed=0)
    groups = [
        group for at in range(40) for group in np.array_split(rng.permutation(np.flatnonzero(user == at)), 3) if len(group)
    ]
    groups = [groups[at] for at in rng.permutation(len(groups))]
    rows, whose = np.concatenate(groups), np.repeat(np.arange(len(groups)), [len(each) for each in groups])
    users = user[[each[0] for each in groups]]
    batch = Batch(*(tf.constant(each, tf.int32) for each in (users, item[rows], whose, rows, [0], [3, 9])))
    drawn, rated = many.draw(batch, num_drawn), tower.rated.numpy().astype(float)
    expected = np.zeros((len(groups), 4))
    for at, group in enumerate(groups):
        mine = drawn.items.numpy()[drawn.whose.numpy() == drawn.user.numpy()[at]].tolist()
        assert len(mine) == min(num_drawn, lengths[users[at]])
        left = [each for each in mine if each not in item[group]]
        expected[at] = rated[left].mean(axis=0) if left else 0
    np.testing.assert_allclose(tower(batch), expected, rtol=1e-4, atol=1e-6)


def test_whole_histories_make_the_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = HistoryTower(histories(), num_items=6, dim=3, num_drawn=1, seed=0)
    rated = tower.rated.numpy()
    users = np.array([2, 3, 0])
    expected = [rated[RATED[2]].mean(axis=0), np.zeros(3), rated[RATED[0]].mean(axis=0)]
    np.testing.assert_allclose(tower.vectors_of(users), expected, rtol=1e-5, atol=1e-8)
    monkeypatch.setattr("transforms.train.user_towers._USERS_AT_ONCE", 2)
    np.testing.assert_array_equal(tower.vectors_of(users), tower.vectors_of(users[[0, 1, 2]]))
    assert tower.vectors_of(users[:0]).shape == (0, 3)


def test_both_are_the_sum() -> None:
    tower = make_user_tower("id+history", histories(), 6, 3, 10, 0.0, seed=0)
    assert isinstance(tower, IdAndHistoryTower)
    batch = batch_of([[0], [5, 6], [8]])
    np.testing.assert_allclose(tower(batch), tower.id_tower(batch) + tower.history_tower(batch), rtol=1e-6)


def test_some_users_of_a_batch_train_without_their_own_vector() -> None:
    tower = make_user_tower("id+history", histories(), 6, 3, 10, 0.3, seed=0)
    assert isinstance(tower, IdAndHistoryTower)
    batch = batch_of([[5]] * 2000, draw=4)
    difference = tower(batch) - tower.history_tower(batch)
    own = tower.id_tower(batch)
    has_own = np.isclose(difference, own, atol=1e-6).all(axis=1)
    assert (has_own | np.isclose(difference, 0, atol=1e-6).all(axis=1)).all()
    assert has_own.mean() == pytest.approx(0.7, abs=0.04)
    np.testing.assert_allclose(
        tower.vectors_of(np.array([2])), own[:1] + tower.history_tower.vectors_of(np.array([2])), rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["id", "history", "id+history"])
def test_towers_begin_with_the_vectors_of_a_start(kind: str) -> None:
    """What is a user's own beside its history is nothing, at first; and what is a user's own comes up seldom."""
    start = Start(*(np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32) for count in (5, 6, 6)))
    tower = make_user_tower(kind, histories(), 6, 3, 10, 0.2, seed=0)
    tower.begin(start)
    users = np.arange(5)
    means = np.array([start.rated[each].mean(axis=0) if each else np.zeros(3) for each in RATED])
    np.testing.assert_allclose(tower.vectors_of(users), start.users if kind == "id" else means, rtol=1e-5, atol=1e-7)
    assert [variable.shape for variable in tower.seldom] == ([] if kind == "history" else [(5, 3)])


@pytest.mark.parametrize("kind", ["id", "history", "id+history"])
def test_a_saved_tower_knows_users_by_id_or_by_history(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users of training, one who came later, one with no known item, one with neither."""
    user_ids, item_ids = [f"u{i}" for i in range(5)], ["i0", "0001", "a\nb", "é", "i4", "i5"]
    made = make_user_tower(kind, histories(), 6, 3, 2, 0.2, seed=0)
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
