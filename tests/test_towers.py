"""The towers: their loss and gradient against NumPy, their optimizer against NumPy and Keras's, their SavedModels."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from transforms.train.spectral import Start
from transforms.train.towers import SELDOM_RATE, Batch, IdTower, SparseAdam, TwoTowers, mixed_log_probability
from transforms.train.user_towers import UserIdTower

USERS = np.array([2, 0, 1, 2], np.int32)
ITEMS = np.array([0, 1, 2, 0, 3, 1, 2], np.int32)
WHOSE = np.array([0, 0, 0, 1, 2, 3, 3], np.int32)
CANDIDATES = np.array([0, 3, 0, 1, 2], np.int32)
# User 2 is in the batch twice, items 0 to 2 are rated twice, and item 0 is twice among the candidates.
BATCH = Batch(*(tf.constant(each, tf.int32) for each in (USERS, ITEMS, WHOSE, range(7), CANDIDATES, [0, 0])))
PROBABILITIES = [0.4, 0.2, 0.2, 0.2]


def bias_of(num_items: int) -> np.ndarray:
    return np.linspace(-2, 3, num_items)


def two_towers(probabilities: list[float], l2: float, scale: float = 20.0, mixed_negatives: int = 0) -> TwoTowers:
    """Returns towers of 4 users and as many items as probabilities, with vectors of a length near 1."""
    user_tower, item_tower = UserIdTower(4, 3, seed=1), IdTower(len(probabilities), 3, seed=2)
    for tower in (user_tower.own, item_tower):
        tower.embeddings.assign(tower.embeddings * scale)
    model = TwoTowers(user_tower, item_tower, np.log(probabilities), mixed_negatives, bias=bias_of(len(probabilities)))
    model.l2.assign(l2)
    return model


def listen(model: TwoTowers) -> list[np.ndarray]:
    """Returns a list to which the item tower adds what it is asked for."""
    asked, call = [], model.item_tower.call

    def call_and_tell(codes: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
        asked.append(codes.numpy())
        return call(codes, draw)

    model.item_tower.call = call_and_tell
    return asked


def by_hand(
    model: TwoTowers, probabilities: list[float], l2: float, more: np.ndarray | tuple[()] = ()
) -> tuple[float, np.ndarray, np.ndarray]:
    """Returns the loss and its gradients by the user and item vectors, in float64, a rating at a time."""
    users, items = (tower.vectors.astype(float) for tower in (model.user_tower.own, model.item_tower))
    candidates = np.array([*CANDIDATES, *more])
    mixture = (len(CANDIDATES) * np.array(probabilities) + len(more) / len(probabilities)) / len(candidates)
    bias = bias_of(len(probabilities))
    loss, by_users, by_items = 0.0, np.zeros_like(users), np.zeros_like(items)
    for item, user in zip(ITEMS, USERS[WHOSE], strict=True):
        # The softmax over the candidates and, once, the item itself.
        codes = np.array([*candidates, item])
        score = users[user] @ items[item] + bias[item]
        weights = np.exp(items[codes] @ users[user] + bias[codes] - np.log(mixture[codes]))
        loss += np.log(weights.sum() / len(candidates)) - score
        error = weights / weights.sum()
        error[-1] -= 1
        by_users[user] += error @ items[codes] + l2 * users[user]
        np.add.at(by_items, codes, error[:, None] * users[user])
        by_items[item] += l2 * items[item]
        loss += l2 / 2 * (users[user] @ users[user] + items[item] @ items[item])
    return loss / len(ITEMS), by_users / len(ITEMS), by_items / len(ITEMS)


@pytest.mark.parametrize("mixed_negatives", [0, 7])
@pytest.mark.parametrize(("probabilities", "l2"), [(PROBABILITIES, 0.0), (PROBABILITIES, 0.3), ([0.9, 1e-3, 1e-8, 3e-7], 0.1)])
def test_loss_and_gradient_equal_the_formula(probabilities: list[float], l2: float, mixed_negatives: int) -> None:
    model = two_towers(probabilities, l2, mixed_negatives=mixed_negatives)
    asked = listen(model)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(BATCH)
    gradients = [tf.convert_to_tensor(each).numpy() for each in tape.gradient(loss, model.trainable_variables)]
    (codes,) = asked
    assert codes[:12].tolist() == [*ITEMS, *CANDIDATES]
    assert len(codes) == 12 + mixed_negatives
    expected, user_gradient, item_gradient = by_hand(model, probabilities, l2, codes[12:])
    assert loss.numpy() == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(gradients[0], user_gradient, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradients[1], item_gradient, rtol=1e-4, atol=1e-6)


def test_l2_is_no_part_of_what_is_learned_and_only_its_own_vectors_are_penalised() -> None:
    """Candidates that nobody of the batch rated do not count, and a user counts as often as it has ratings in it."""
    model = two_towers(PROBABILITIES, 0.0)
    assert all(variable is not model.l2 for variable in model.trainable_variables)
    losses = []
    for l2 in (0.0, 0.5):
        model.l2.assign(l2)
        losses.append(float(model.compute_loss(BATCH)))
    users, items = model.user_tower.own.vectors[USERS[WHOSE]], model.item_tower.vectors[ITEMS]
    assert losses[1] - losses[0] == pytest.approx(0.25 * ((users**2).sum() + (items**2).sum()) / len(ITEMS), rel=1e-5)


def test_candidates_in_proportion_give_the_full_softmax_of_ten_million_items() -> None:
    """A hundred items that are rated often, each once a candidate, and 9,999,900 alike, of which 900 are candidates.

    The candidates then hold each kind as often as is expected, so the sampled softmax must equal that over the whole
    catalogue, which is written out here, with the rated item once more. Clipping a probability of 9e-8 at 1e-6, as TFRS does,
    would show.
    """
    often, rare, num_drawn = 100, 9_999_900, 1000
    rng = np.random.default_rng(0)
    probabilities = np.where(np.arange(num_drawn) < often, 1e-3, 0.9 / rare)
    user_tower, item_tower = UserIdTower(num_drawn, 4, seed=1), IdTower(num_drawn, 4, seed=2)
    user_tower.own.embeddings.assign(rng.normal(size=(num_drawn, 4)))
    item_vectors = rng.normal(size=(num_drawn, 4))
    item_vectors[often:] = item_vectors[often]
    item_tower.embeddings.assign(item_vectors)
    codes = tf.range(num_drawn)

    def loss_of(log_probability: np.ndarray) -> tuple[float, np.ndarray]:
        with tf.GradientTape() as tape:
            loss = TwoTowers(user_tower, item_tower, log_probability).compute_loss(
                Batch(codes, codes, codes, codes, codes, tf.constant([0, 0]))
            )
        return float(loss), tf.convert_to_tensor(tape.gradient(loss, user_tower.own.embeddings)).numpy()

    loss, gradient = loss_of(np.log(probabilities))
    users, items = user_tower.own.vectors.astype(float), item_tower.vectors.astype(float)
    kinds, how_many = items[: often + 1], np.array([1.0] * often + [rare])
    weights = how_many * np.exp(users @ kinds.T)
    # A rated item is among the candidates, and once more as itself.
    own = np.exp((users * items).sum(axis=1)) / (num_drawn * probabilities)
    totals = weights.sum(axis=1) + own
    assert loss == pytest.approx((np.log(totals) - (users * items).sum(axis=1)).mean(), rel=1e-5)
    expected = (weights @ kinds + own[:, None] * items) / totals[:, None] - items
    np.testing.assert_allclose(gradient, expected / num_drawn, rtol=1e-3, atol=1e-7)
    assert abs(loss_of(np.log(np.maximum(probabilities, 1e-6)))[0] - loss) > 0.1


def test_a_mixture_of_candidates_has_the_mixtures_probability() -> None:
    probabilities = np.array([0.5, 1e-7, 3e-9, 0.0])
    found = mixed_log_probability(tf.constant(np.log(np.maximum(probabilities, 1e-300)), tf.float32), 512, 64, 10_000_000)
    expected = np.log((512 * probabilities + 64 / 10_000_000) / 576)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    alone = mixed_log_probability(tf.constant([-30.0]), 512, 0, 10_000_000)
    assert alone.numpy().tolist() == [-30.0]


@pytest.mark.parametrize("mixed_negatives", [0, 3])
def test_an_item_without_ratings_may_be_in_the_catalogue(mixed_negatives: int) -> None:
    """Its probability is 0, whose log is not finite: a validation slice may hold all of its ratings out."""
    with np.errstate(divide="ignore"):
        log_probability = np.log(np.array([0.4, 0.2, 0.2, 0.2, 0.0]))
    user_tower, item_tower = UserIdTower(4, 3, seed=1), IdTower(5, 3, seed=2)
    model = TwoTowers(user_tower, item_tower, log_probability, mixed_negatives)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(BATCH)
    assert np.isfinite(loss)
    assert all(np.isfinite(tf.convert_to_tensor(each)).all() for each in tape.gradient(loss, model.trainable_variables))


def test_uniform_candidates_are_new_at_each_step_and_follow_from_the_seed() -> None:
    asked: list[np.ndarray] = []
    for draw in (1, 1, 2):
        model = two_towers([0.001] * 1000, 0.0, mixed_negatives=5000)
        heard = listen(model)
        model.compute_loss(BATCH._replace(draw=tf.constant([3, draw])))
        asked += heard
    np.testing.assert_array_equal(asked[0], asked[1])
    assert (asked[0] != asked[2]).any()
    counts = np.bincount(asked[0][12:] // 100, minlength=10)
    np.testing.assert_allclose(counts, 500, rtol=0.2)


def steps_of_batch(num_steps: int) -> list[np.ndarray]:
    """Returns what `train_steps` takes for the batch again and again."""
    users, candidates = (np.tile(each, (num_steps, 1)) for each in (USERS, CANDIDATES))
    flat = [np.tile(each, num_steps) for each in (ITEMS, WHOSE, np.arange(7, dtype=np.int32))]
    return [users, *flat, np.arange(num_steps + 1, dtype=np.int32) * 7, candidates]


def test_the_loss_is_a_mean_of_each_step_before_it() -> None:
    model = two_towers(PROBABILITIES, 0.1)
    model.optimizer = SparseAdam(0.1, 100)
    model.optimizer.build(model.trainable_variables)
    before = by_hand(model, PROBABILITIES, 0.1)[0]
    first = model.train_steps(*steps_of_batch(1)).numpy()
    after = by_hand(model, PROBABILITIES, 0.1)[0]
    second = model.train_steps(*steps_of_batch(2)).numpy()
    assert first == pytest.approx([before], rel=1e-6)
    assert second[0] == pytest.approx(after, rel=1e-6)
    assert second[1] < second[0] < first[0]


def test_steps_of_different_sizes_are_those_of_each_alone() -> None:
    """A batch of seven ratings, then one of four users with a rating each: at once, or one after the other."""
    fewer = np.array([3, 0, 1], np.int32), np.array([0, 1, 2], np.int32), np.array([8, 9, 7], np.int32)
    small = np.array([[1, 3, 0, 2]], np.int32), np.array([2, *fewer[0]], np.int32), np.arange(4, dtype=np.int32)
    losses, vectors = [], []
    for together in (True, False):
        model = two_towers(PROBABILITIES, 0.1)
        model.optimizer = SparseAdam(0.1, 100)
        model.optimizer.build(model.trainable_variables)
        users, items, whose, rows, _, candidates = steps_of_batch(1)
        other = [*small, np.arange(4, dtype=np.int32), np.array([0, 4], np.int32), candidates[:, ::-1]]
        if together:
            found = model.train_steps(
                np.concatenate([users, other[0]]),
                np.concatenate([items, other[1]]),
                np.concatenate([whose, other[2]]),
                np.concatenate([rows, other[3]]),
                np.array([0, 7, 11], np.int32),
                np.concatenate([candidates, other[5]]),
            ).numpy()
        else:
            found = np.concatenate([model.train_steps(*each).numpy() for each in (steps_of_batch(1), other)])
        losses.append(found)
        vectors.append(model.item_tower.vectors)
    np.testing.assert_array_equal(*losses)
    np.testing.assert_array_equal(*vectors)


def adam_by_hand(start: np.ndarray, gradients: list[dict[int, np.ndarray]], rate: float, num_steps: int) -> np.ndarray:
    """Returns the rows after Adam (betas 0.5 and 0.99) whose rate falls in a straight line; rows that are away stand still."""
    vectors, first, second = start.astype(float), np.zeros(start.shape), np.zeros(start.shape)
    for step, by_row in enumerate(gradients):
        falling = rate * max(0.0, 1 - step / num_steps)
        for row, gradient in by_row.items():
            first[row] = 0.5 * first[row] + 0.5 * gradient
            second[row] = 0.99 * second[row] + 0.01 * gradient**2
            mean, square = first[row] / (1 - 0.5 ** (step + 1)), second[row] / (1 - 0.99 ** (step + 1))
            vectors[row] -= falling * mean / (np.sqrt(square) + 1e-7 / np.sqrt(1 - 0.99 ** (step + 1)))
    return vectors


@pytest.mark.parametrize("num_steps", [6, 30])
@pytest.mark.parametrize("is_seldom", [False, True])
def test_sparse_adam_equals_adam_by_hand_with_a_falling_rate_and_faster_rows_of_what_is_seldom(
    num_steps: int, is_seldom: bool
) -> None:
    rng = np.random.default_rng(0)
    start = rng.normal(size=(5, 2)).astype(np.float32)
    variable, other = tf.Variable(start), tf.Variable(start)
    optimizer = SparseAdam(0.01, num_steps, [variable] if is_seldom else [other])
    optimizer.build([variable, other])
    gradients = []
    for _ in range(6):
        rows = rng.choice(4, 3)  # Some twice; the fifth never.
        values = rng.normal(size=(3, 2)).astype(np.float32)
        summed: dict[int, np.ndarray] = {}
        for row, value in zip(rows.tolist(), values.astype(float), strict=True):
            summed[row] = summed.get(row, 0.0) + value
        gradients.append(summed)
        slices = tf.IndexedSlices(values, rows, start.shape)
        optimizer.apply_gradients([(slices, variable), (slices, other)])
    fast, slow = (adam_by_hand(start, gradients, rate, num_steps) for rate in (0.01 * SELDOM_RATE, 0.01))
    assert np.abs(fast - slow).max() > 0.05
    np.testing.assert_allclose(variable, fast if is_seldom else slow, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(other, slow if is_seldom else fast, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(variable.numpy()[4], start[4])


def test_after_the_last_step_nothing_is_learned() -> None:
    variable = tf.Variable(np.ones((2, 2), np.float32))
    optimizer = SparseAdam(0.5, 3, [variable])
    found = []
    for _ in range(5):
        optimizer.apply_gradients([(tf.IndexedSlices(np.ones((1, 2), np.float32), [0], [2, 2]), variable)])
        found.append(float(variable.numpy()[0, 0]))
    assert 1 > found[0] > found[1] > found[2] == found[3] == found[4]
    # A constant gradient moves a row by the rate, whatever its size.
    np.testing.assert_allclose(-np.diff([1.0, *found[:3]]), 0.5 * SELDOM_RATE * np.array([1, 2 / 3, 1 / 3]), rtol=1e-4)


def keras_adam(learning_rate: float, num_steps: int) -> tf.keras.optimizers.Adam:
    falling = tf.keras.optimizers.schedules.PolynomialDecay(learning_rate, num_steps, end_learning_rate=0.0)
    return tf.keras.optimizers.Adam(falling, beta_1=0.5, beta_2=0.99)


def test_sparse_adam_equals_keras_when_every_row_is_in_the_batch() -> None:
    start = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    ours, theirs = tf.Variable(start), tf.Variable(start)
    optimizers = [(SparseAdam(0.01, 8), ours), (keras_adam(0.01, 8), theirs)]
    for step in range(5):
        values = np.random.default_rng(step).normal(size=(4, 2)).astype(np.float32)
        for optimizer, variable in optimizers:
            optimizer.apply_gradients([(tf.IndexedSlices(values, [0, 1, 2, 1], [3, 2]), variable)])
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-7)


def test_sparse_adam_leaves_rows_alone_that_are_not_in_the_batch() -> None:
    variable = tf.Variable(np.ones((3, 2), np.float32))
    optimizer = SparseAdam(0.01, 10)
    optimizer.apply_gradients([(tf.IndexedSlices(np.ones((1, 2), np.float32), [0], [3, 2]), variable)])
    once = variable.numpy()
    optimizer.apply_gradients([(tf.IndexedSlices(np.ones((1, 2), np.float32), [1], [3, 2]), variable)])
    np.testing.assert_array_equal(variable.numpy()[0], once[0])
    assert (once[0] < 1).all()
    assert (once[1:] == 1).all()
    assert (variable.numpy()[2] == 1).all()


def test_sparse_adam_updates_all_of_what_is_not_an_embedding() -> None:
    ours, theirs = tf.Variable([[1.0, 2.0]]), tf.Variable([[1.0, 2.0]])
    for optimizer, variable in ((SparseAdam(0.01, 5), ours), (keras_adam(0.01, 5), theirs)):
        for _ in range(3):
            optimizer.apply_gradients([(tf.constant([[0.5, -3.0]]), variable)])
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-6)


def test_towers_begin_with_the_vectors_of_a_start() -> None:
    start = Start(*(np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32) for count in (4, 5, 5)))
    user_tower, item_tower = UserIdTower(4, 3, seed=0), IdTower(5, 3, seed=0)
    user_tower.begin(start)
    item_tower.begin(start)
    np.testing.assert_array_equal(user_tower.vectors_of(np.array([3, 0])), start.users[[3, 0]])
    np.testing.assert_array_equal(item_tower.vectors, start.items)
    assert user_tower.seldom == [user_tower.own.embeddings]


def test_first_vectors_come_from_the_seed() -> None:
    np.testing.assert_array_equal(IdTower(5, 4, seed=3).vectors, IdTower(5, 4, seed=3).vectors)
    assert (IdTower(5, 4, seed=3).vectors != IdTower(5, 4, seed=4).vectors).any()


def test_a_saved_tower_takes_ids(tmp_path: Path) -> None:
    ids = ["0002", "2", "a\nb", "a\r\nb", "é", "tab\there", " padded "]
    tower = IdTower(len(ids), 3, seed=0)
    bias = np.linspace(-1, 5, len(ids), dtype=np.float32)
    tower.save(pa.array(ids), tmp_path / "tower", 0.5, bias)
    served = tf.saved_model.load(str(tmp_path / "tower")).signatures["serving_default"]
    output = served(tf.constant([*reversed(ids), "a", "", "02"]))
    lifted = np.hstack([tower.vectors / 2, bias[:, np.newaxis]])
    np.testing.assert_array_equal(output["embedding"], np.concatenate([lifted[::-1], np.zeros((3, 4))]))
    assert output["embedding"].dtype == tf.float32
    assert output["known"].numpy().tolist() == [True] * len(ids) + [False] * 3
    assert served(tf.constant([], tf.string))["embedding"].shape == (0, 4)


def test_equal_towers_are_saved_as_equal_files(tmp_path: Path) -> None:
    for name in ("one", "other"):
        IdTower(2, 3, seed=0).save(pa.array(["a", "b"]), tmp_path / name, 1.0, np.ones(2, np.float32))
    one, other = (
        {
            file.relative_to(tmp_path / name).as_posix(): file.read_bytes()
            for file in (tmp_path / name).rglob("*")
            if file.is_file()
        }
        for name in ("one", "other")
    )
    assert one.keys() == other.keys()
    # Functions are numbered through a process, so the graphs' names differ here; in a process of its own they are equal.
    assert {name for name in one if one[name] != other[name]} <= {"saved_model.pb"}
