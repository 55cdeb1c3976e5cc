"""Training: reading, the validation slice, quality against a plain oracle, checkpoints, determinism, bad input."""

import json
import math
import subprocess
import sys
from dataclasses import replace
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
from transforms.train.curves import CurveRow
from transforms.train.fit import epoch_order
from transforms.train.recency import PLAIN, item_bias, lift_items, lift_users
from transforms.train.rows import TrainingPaths, TrainingRows, read_rows
from transforms.train.settings import USER_TOWERS, TrainingSettings
from transforms.train.training import Trained, TrainTowers, train
from transforms.train.validation import Validation, make_validation, quality_of, validation_rows

SMALL = TrainingSettings(dim=8, batch_size=64, learning_rate=0.01, max_epochs=6, seed=3)


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
        ({"max_epochs": 0}, "max_epochs must be between 1 and 10000, got 0: change --max_epochs"),
        ({"patience": -1}, "patience must be between 1 and 10000, got -1: change --patience"),
        ({"seed": -1}, "seed must be between 0 and 2147483647, got -1: change --seed"),
        ({"learning_rate": 0.0}, "learning_rate must be a number above 0, got 0: change --learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate must be a number above 0, got nan: change --learning_rate"),
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


@pytest.mark.parametrize("user_tower", USER_TOWERS)
def test_training_learns_tastes(rows: TrainingRows, user_tower: str) -> None:
    settings = TrainingSettings(user_tower, dim=8, batch_size=64, learning_rate=0.01, max_epochs=30, seed=0)
    trained = train(rows, settings)
    scores = users_of(trained, rows) @ trained.model.item_tower.vectors.T
    own = np.arange(120)[:, None] % 4 == np.arange(60)[None, :] % 4
    # The 15 items of a user's own taste, out of 60, fill nearly all of the 15 best places.
    best = np.argsort(-scores, axis=1)[:, :15]
    assert np.take_along_axis(own, best, axis=1).mean() > 0.9
    search = [row for row in trained.curve if row["phase"] == "search"]
    assert search[trained.num_epochs - 1]["recall_at_100"] == trained.quality.recall_at_100  # type: ignore[union-attr]
    assert [row["epoch"] for row in trained.curve if row["phase"] == "full"] == list(range(1, trained.num_epochs + 1))


@pytest.mark.parametrize("rows_together", [1, 5])
def test_an_epoch_takes_every_row_once_in_an_order_of_its_own(rows: TrainingRows, rows_together: int) -> None:
    first, again, second = (epoch_order(rows.user, rows_together, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != second).mean() > 0.9
    assert first.dtype == np.int32
    np.testing.assert_array_equal(np.sort(first), np.arange(len(rows.user)))
    # 12 rows a user: groups of 5, 5 and 2, each of the user's rows at random.
    runs = np.diff(np.flatnonzero(np.diff(rows.user[first], prepend=-1, append=-1)))
    assert (len(runs) > 1200) if rows_together == 1 else 320 < len(runs) <= 360
    places = first[rows.user[first] == 7] - 7 * 12
    assert places.tolist() != sorted(places)


@pytest.mark.parametrize("user_tower", USER_TOWERS)
def test_training_is_deterministic(rows: TrainingRows, user_tower: str) -> None:
    settings = replace(SMALL, user_tower=user_tower, history_sample=5)
    first, second = (weights_of(train(rows, settings), rows) for _ in range(2))
    assert first == second


def test_without_the_validation_slice_the_best_weights_are_kept(rows: TrainingRows) -> None:
    settings = TrainingSettings(
        dim=8, batch_size=64, learning_rate=0.05, l2=0.0, max_epochs=20, patience=2, include_validation=False
    )
    trained = train(rows, settings)
    assert trained.num_epochs < len(trained.curve) == trained.num_epochs + 2
    held_out, trained_on = validation_rows(rows, settings)
    validation = make_validation(rows, held_out, trained_on, settings.seed)
    users = lift_users(trained.model.user_tower.vectors_of(validation.users))
    items = lift_items(trained.model.item_tower.vectors, 1.0, item_bias(rows.where(trained_on).rated, PLAIN))
    assert quality_of(users, items, validation) == trained.quality


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(("after", "user_tower"), [(2, "id"), (8, "id"), (2, "id+history"), (8, "history")])
def test_an_interrupted_training_goes_on_to_the_same_bits(rows: TrainingRows, root: str, after: int, user_tower: str) -> None:
    """After 2 epochs the search is under way, after 8 the full training."""
    settings = replace(SMALL, user_tower=user_tower, history_sample=5)
    whole = train(rows, settings)
    assert len(whole.curve) > 8
    told = []

    def interrupt(curve: list[CurveRow]) -> None:
        told.append(curve[-1])
        if len(told) == after:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(rows, settings, root, checkpoint_secs=0, on_epoch=interrupt)
    (checkpoint,) = list_files(join(root, "*"))
    assert checkpoint.path.endswith(".npz")
    resumed = train(rows, settings, root, checkpoint_secs=0, on_epoch=lambda curve: told.append(curve[-1]))
    assert weights_of(resumed, rows) == weights_of(whole, rows)
    assert len(told) == len(whole.curve)
    assert resumed.curve == whole.curve


def test_a_training_interrupted_within_an_epoch_goes_on(rows: TrainingRows, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(rows, SMALL)
    monkeypatch.setattr("transforms.train.fit._STEPS_A_CALL", 5)
    saved = 0

    def write_some(path: str, checkpoint: Any) -> None:
        nonlocal saved
        saved += 1
        original(path, checkpoint)
        if saved == 7:
            assert checkpoint.progress.step == 10
            raise Interrupted

    from transforms.train import training

    original = training.write_checkpoint
    monkeypatch.setattr(training, "write_checkpoint", write_some)
    with pytest.raises(Interrupted):
        train(rows, SMALL, root, checkpoint_secs=0)
    resumed = train(rows, SMALL, root, checkpoint_secs=0)
    assert weights_of(resumed, rows) == weights_of(whole, rows)


def test_other_settings_do_not_find_the_checkpoint(rows: TrainingRows, tmp_path: object) -> None:
    train(rows, SMALL, str(tmp_path), checkpoint_secs=0)
    other = TrainingSettings(dim=4, batch_size=64, max_epochs=1, include_validation=False)
    assert len(train(rows, other, str(tmp_path), checkpoint_secs=0).curve) == 1


def test_a_loss_that_is_not_finite_names_the_step_and_the_repair(rows: TrainingRows) -> None:
    with pytest.raises(
        InputError, match=r"must be finite, got nan or inf at step \d+ of epoch 1: lower --learning_rate, which is 1e\+30"
    ):
        train(rows, TrainingSettings(dim=8, learning_rate=1e30, batch_size=64))


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
        def train_steps(self, *batches: np.ndarray) -> tf.Tensor:
            self.item_tower.embeddings.assign(self.item_tower.embeddings * math.nan)
            return tf.ones(len(batches[0]))

    monkeypatch.setattr(towers, "TwoTowers", Spoiling)
    with pytest.raises(InputError, match="the vectors must be finite, got nan or inf at step"):
        train(rows, SMALL, root, checkpoint_secs=0)
    assert not list_files(join(root, "*"))


@pytest.mark.parametrize(
    "pairs",
    [
        [("u", "i")],
        [("u", "a"), ("u", "b"), ("u", "c")],
        [("u", "i"), ("v", "i"), ("w", "i")],
        [(f"u{user}", f"i{item}") for user in range(4) for item in range(4)],
    ],
)
def test_very_little_data_still_gives_towers(pairs: list[tuple[str, str]]) -> None:
    rows = rows_of(pairs)
    trained = train(rows, TrainingSettings(dim=4, max_epochs=3))
    assert trained.num_epochs >= 1
    for vectors, ids in (
        (users_of(trained, rows), rows.user_ids),
        (trained.model.item_tower.vectors, rows.item_ids),
    ):
        assert vectors.shape == (len(ids), 4)
        assert np.isfinite(vectors).all()


def test_without_a_validation_slice_every_epoch_is_trained(rows: TrainingRows) -> None:
    trained = train(rows, TrainingSettings(dim=4, validation_fraction=0, max_epochs=3))
    assert trained.quality is None
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

    with TestPipeline("FnApiRunner") as p:
        trained = p | TrainTowers(
            TrainingPaths(paths, []), out, SMALL, join(root, "checkpoints"), 0, resource_hints={"min_ram": "4GB"}
        )
        assert_that(trained, check)

    assert not list_files(join(root, "checkpoints", "*"))

    rows = rows_of(pairs)
    expected = train(rows, SMALL)
    users = pa.record_batch({"user_id": pa.array(["u001", "nobody", "u000"])})
    vectors, known = UserTower(stored_folder(join(out, "user_tower"))).embed(users)
    assert known.tolist() == [True, False, True]
    np.testing.assert_array_equal(vectors[[2, 0]], lift_users(users_of(expected, rows)[:2]))
    assert (vectors[1] == 0).all()
    vectors, known = ItemTower(stored_folder(join(out, "item_tower"))).embed(pa.record_batch({"item_id": rows.item_ids}))
    assert known.all()
    bias = item_bias(rows.rated, PLAIN)
    np.testing.assert_array_equal(vectors, lift_items(expected.model.item_tower.vectors, 1.0, bias))

    assert {path.rpartition("/")[0] for path in log_paths(out)} == {"tensorboard/search", "tensorboard/full"}
    curves = json.loads(read_bytes(join(out, "curves.json")))
    assert not list_files(join(out, "*.svg")), "charts are drawn from the curve when a release is published"
    assert {row["phase"] for row in curves["epochs"]} == {"search", "full"}
    assert all(math.isfinite(row["loss"]) for row in curves["epochs"])


def test_a_pipeline_is_built_without_tensorflow() -> None:
    code = "import sys, transforms.train.training, transforms.index.embed; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
