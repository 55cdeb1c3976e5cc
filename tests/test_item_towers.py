"""Item towers: vectors and gradients against NumPy, dropout of ids, SavedModels, and items that nobody has rated."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from schemas.blocks import Block
from tests.made_stored import stored_folder
from tests.test_training import Interrupted, clustered_pairs, rows_of, weights_of
from transforms.index.embed import ItemTower
from transforms.train.curves import CurveRow
from transforms.train.encode_features import Bags, FeatureEncoder, ItemFeatures, encode_rated
from transforms.train.features import features_of
from transforms.train.fit_features import fit_features
from transforms.train.item_towers import FeatureTower, make_item_tower
from transforms.train.recency import lift_items, lift_users
from transforms.train.rows import TrainingRows
from transforms.train.settings import TrainingSettings
from transforms.train.spectral import Start
from transforms.train.towers import Batch, IdTower, SparseAdam, TwoTowers
from transforms.train.training import train
from transforms.train.user_towers import UserIdTower

TAGS = [["a", "b"], ["b"], None, ["a", "c"], ["c", "b", "a"], ["a"]]
PRICES = [1.0, None, 5.0, 2.0, 2.0, 2.0]
DECLARED = features_of("{tags: categories, price: {kind: number, buckets: 0}}")
DRAW = np.array([3, 14], np.int32)


def block_of(ids: list[str], tags: list[Any], prices: list[Any], train_count: int = 1) -> Block:
    return pa.RecordBatch.from_pydict(
        {
            "item_id": pa.array(ids),
            "train_count": pa.array([train_count] * len(ids), pa.int64()),
            "tags": pa.array(tags, pa.list_(pa.string())),
            "price": pa.array(prices, pa.float64()),
        }
    )


CATALOGUE = block_of(list("pqrstu"), TAGS, PRICES)


def features_of_catalogue() -> ItemFeatures:
    encoder = fit_features([CATALOGUE], DECLARED).encoder
    return ItemFeatures(encoder, encode_rated([CATALOGUE], encoder, CATALOGUE["item_id"]))


def tower_of(id_dropout: float = 0.5) -> FeatureTower:
    """Returns a tower of the catalogue with vectors that are not zero."""
    tower = FeatureTower(features_of_catalogue(), 3, id_dropout, seed=0)
    tower.of_codes.assign(np.random.default_rng(0).normal(size=tower.of_codes.shape).astype(np.float32))
    return tower


def dense(encoder: FeatureEncoder, bags: Bags) -> np.ndarray:
    """Returns [n, num_codes] float64: each bag as a row."""
    matrix = np.zeros((len(bags.lengths), encoder.num_codes))
    matrix[np.repeat(np.arange(len(bags.lengths)), bags.lengths), bags.codes] = bags.weights
    return matrix


def test_a_vector_is_the_own_one_and_the_weighted_features() -> None:
    tower, (encoder, bags) = tower_of(), features_of_catalogue()
    expected = tower.own.vectors + dense(encoder, bags) @ tower.of_codes.numpy()
    np.testing.assert_allclose(tower.vectors, expected, rtol=1e-5)
    items = np.array([5, 2, 2, 0], np.int32)
    np.testing.assert_allclose(tower(items), expected[items], rtol=1e-5)


def test_pieces_change_no_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tower_of().vectors
    monkeypatch.setattr("transforms.train.item_towers._ITEMS_AT_ONCE", 4)
    np.testing.assert_array_equal(tower_of().vectors, whole)


def test_gradients_touch_what_is_in_the_batch() -> None:
    tower, (encoder, bags) = tower_of(), features_of_catalogue()
    items = np.array([1, 3, 1], np.int32)
    direction = np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tower(items) * direction)
    variables = [tower.own.embeddings, tower.of_codes]
    own, of_codes = tape.gradient(loss, variables)
    assert isinstance(own, tf.IndexedSlices)
    assert isinstance(of_codes, tf.IndexedSlices)
    np.testing.assert_allclose(tf.convert_to_tensor(of_codes), dense(encoder, bags)[items].T @ direction, rtol=1e-5, atol=1e-6)
    expected = np.zeros((6, 3))
    np.add.at(expected, items, direction)
    np.testing.assert_allclose(tf.convert_to_tensor(own), expected, rtol=1e-5)
    before = tower.of_codes.numpy()
    SparseAdam(0.1, 10).apply_gradients(zip((own, of_codes), variables, strict=True))
    touched = (tower.of_codes.numpy() != before).any(axis=1)
    np.testing.assert_array_equal(touched, dense(encoder, bags)[[1, 3]].any(axis=0))


def test_l2_is_that_of_the_sums() -> None:
    """The penalty is on the vectors that scores are made of, not on their parts."""
    model = TwoTowers(UserIdTower(3, 3, seed=1), tower_of(id_dropout=0.0), np.full(6, -np.log(6)))
    users, items = np.array([2, 0], np.int32), np.array([0, 4, 4], np.int32)
    whose = np.array([0, 0, 1], np.int32)
    batch = Batch(users, items, whose, np.arange(3, dtype=np.int32), np.array([1, 2], np.int32), DRAW)
    losses = []
    for l2 in (0.0, 0.3):
        model.l2.assign(l2)
        losses.append(float(model.compute_loss(batch)))
    squares = (model.item_tower.vectors[items] ** 2).sum() + (model.user_tower.own.vectors[users[whose]] ** 2).sum()
    assert losses[1] - losses[0] == pytest.approx(0.3 / 2 * squares / 3, rel=1e-5)


def test_what_was_rated_and_the_candidates_are_looked_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one draw, so that an item that comes up twice in a step is not updated twice; users and negatives draw otherwise."""
    asked: list[tuple[list[int], list[int]]] = []
    call = FeatureTower.call

    def call_and_tell(tower: FeatureTower, items: tf.Tensor, draw: tf.Tensor | None = None) -> tf.Tensor:
        asked.append((np.array(items).tolist(), np.array(draw).tolist()))
        return call(tower, items, draw)

    monkeypatch.setattr(FeatureTower, "call", call_and_tell)
    model = TwoTowers(UserIdTower(3, 3, seed=1), tower_of(id_dropout=0.5), np.full(6, -np.log(6)))
    zero, rated = np.zeros(1, np.int32), np.array([4, 2, 1], np.int32)
    candidates = np.array([5, 2], np.int32)
    model.compute_loss(Batch(zero, rated, rated * 0, rated, candidates, DRAW))
    assert asked == [([4, 2, 1, 5, 2], [DRAW[0] + 2, DRAW[1]])]


def test_a_part_of_the_rows_trains_without_own_vectors() -> None:
    tower, (encoder, bags) = tower_of(id_dropout=0.3), features_of_catalogue()
    items = np.tile(np.arange(6, dtype=np.int32), 2_000)
    of_features = (dense(encoder, bags) @ tower.of_codes.numpy())[items]
    vectors = tower(items, DRAW).numpy()
    left_out = np.isclose(vectors, of_features, rtol=1e-5, atol=1e-6).all(axis=1)
    assert left_out.mean() == pytest.approx(0.3, abs=0.02)
    np.testing.assert_allclose(vectors[~left_out], tower.vectors[items][~left_out], rtol=1e-5)
    np.testing.assert_array_equal(tower(items, DRAW), vectors)
    assert (tower(items, DRAW + 1).numpy() != vectors).any()


def test_features_begin_with_nothing_to_say() -> None:
    tower = FeatureTower(features_of_catalogue(), 4, 0.1, seed=3)
    np.testing.assert_array_equal(tower.vectors, IdTower(6, 4, seed=3).vectors)


def test_own_vectors_begin_with_those_of_a_start() -> None:
    start = Start(*(np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32) for _ in range(3)))
    tower = FeatureTower(features_of_catalogue(), 4, 0.1, seed=3)
    tower.begin(start)
    np.testing.assert_array_equal(tower.vectors, start.items)


def test_without_features_the_tower_is_by_id() -> None:
    assert isinstance(make_item_tower(None, 5, 4, 0.1, 0), IdTower)
    assert isinstance(make_item_tower(features_of_catalogue(), 6, 4, 0.1, 0), FeatureTower)


def test_a_saved_tower_knows_items_by_their_ids_or_their_features(tmp_path: Path) -> None:
    tower, (encoder, _) = tower_of(), features_of_catalogue()
    bias = np.arange(6, dtype=np.float32)
    tower.save(CATALOGUE["item_id"], tmp_path / "tower", 0.5, bias)
    saved = ItemTower(stored_folder(str(tmp_path / "tower")))
    # u is rated and says otherwise now; "new" has known values, "odd" none, r has neither tags nor price any more.
    block = block_of(["u", "new", "odd", "r"], [["c"], ["b", "zzz"], ["zzz"], None], [None, 5.0, None, None], 0)
    vectors, known = saved.embed(block)
    assert known.tolist() == [True, True, False, True]
    own = np.array([tower.own.vectors[5], np.zeros(3), np.zeros(3), tower.own.vectors[2]])
    expected = 0.5 * (own + dense(encoder, encoder.encode(block)) @ tower.of_codes.numpy())
    np.testing.assert_allclose(vectors[:, :3], expected, rtol=1e-5)
    assert vectors[:, 3].tolist() == [5, 0, 0, 2]
    np.testing.assert_array_equal(saved.embed(CATALOGUE)[0], lift_items(tower.vectors, 0.5, bias))
    empty, none = saved.embed(block.slice(0, 0))
    assert (empty.shape, none.shape) == ((0, 4), (0,))


def test_equal_towers_are_saved_as_equal_files(tmp_path: Path) -> None:
    files = []
    for name in ("one", "other"):
        tower_of().save(CATALOGUE["item_id"], tmp_path / name, 1.0, np.zeros(6, np.float32))
        paths = [path for path in (tmp_path / name).rglob("*") if path.is_file() and path.name != "saved_model.pb"]
        files.append({path.relative_to(tmp_path / name): path.read_bytes() for path in paths})
    assert files[0] == files[1]


NUM_ITEMS, NUM_TASTES = 60, 4
COLD = {f"i{item:03d}" for item in range(0, NUM_ITEMS, 5)}


def taste_rows(leave_out: set[str]) -> TrainingRows:
    """Returns ratings of users of four tastes, and the tastes of items as their features."""
    rows = rows_of([pair for pair in clustered_pairs() if pair[1] not in leave_out])
    catalogue = block_of(
        rows.item_ids.to_pylist(), [[taste_of(item)] for item in rows.item_ids.to_pylist()], [None] * len(rows.item_ids)
    )
    encoder = fit_features([catalogue], features_of("tags=categories")).encoder
    return rows._replace(features=ItemFeatures(encoder, encode_rated([catalogue], encoder, rows.item_ids)))


def taste_of(item: str) -> str:
    return f"taste {int(item[1:]) % NUM_TASTES}"


SETTINGS = TrainingSettings(
    item_tower="id+features",
    features=features_of("tags=categories"),
    dim=8,
    l2=0.1,
    batch_size=64,
    learning_rate=0.01,
    epochs=6,
    seed=3,
)


def test_items_that_nobody_rated_go_to_those_who_like_their_kind(tmp_path: Path) -> None:
    rows = taste_rows(leave_out=COLD)
    trained = train(rows, SETTINGS)
    trained.model.item_tower.save(rows.item_ids, tmp_path / "tower", 1.0, np.zeros(len(rows.item_ids), np.float32))
    cold = sorted(COLD)
    vectors, known = ItemTower(stored_folder(str(tmp_path / "tower"))).embed(
        block_of(cold, [[taste_of(item)] for item in cold], [None] * len(cold), 0)
    )
    assert known.all()
    users = trained.model.user_tower.vectors_of(np.arange(len(rows.user_ids), dtype=np.int32))
    own = np.arange(len(users))[:, None] % NUM_TASTES == [int(item[1:]) % NUM_TASTES for item in cold]
    best = np.argsort(-lift_users(users) @ vectors.T, axis=1, kind="stable")[:, : len(cold) // NUM_TASTES]
    # By chance it would be a quarter.
    assert np.take_along_axis(own, best, axis=1).mean() > 0.9


@pytest.mark.parametrize("after", [2, 8])
def test_training_with_features_goes_on_to_the_same_bits(tmp_path: Path, after: int) -> None:
    """After 2 of 6 epochs, or, where L2 is chosen by several trainings, in the second of them."""
    rows, settings = taste_rows(leave_out=set()), SETTINGS if after == 2 else replace(SETTINGS, l2=None)
    whole = train(rows, settings)
    assert len(whole.curve) > after
    told: list[CurveRow] = []

    def tell(curve: list[CurveRow]) -> None:
        told.append(curve[-1])

    def interrupt(curve: list[CurveRow]) -> None:
        tell(curve)
        if len(told) == after:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(rows, settings, str(tmp_path), checkpoint_secs=0, on_epoch=interrupt)
    resumed = train(rows, settings, str(tmp_path), checkpoint_secs=0, on_epoch=tell)
    assert len(told) == len(whole.curve)
    assert weights_of(resumed, rows) == weights_of(whole, rows)
    assert resumed.model.item_tower.own.vectors.tobytes() == whole.model.item_tower.own.vectors.tobytes()


def test_other_features_do_not_find_the_checkpoint(tmp_path: Path) -> None:
    rows = taste_rows(leave_out=set())
    train(rows, SETTINGS, str(tmp_path), checkpoint_secs=0)
    encoder, bags = rows.features or pytest.fail("no features")
    other = rows._replace(features=ItemFeatures(encoder, bags._replace(weights=bags.weights / 2)))
    told: list[CurveRow] = []
    train(other, SETTINGS, str(tmp_path), checkpoint_secs=0, on_epoch=lambda curve: told.append(curve[-1]))
    assert told[0]["epoch"] == 1
