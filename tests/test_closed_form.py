"""The closed form: against NumPy's own decomposition, as a model to choose, and through a whole training."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import InputError
from tests.made_stored import stored_folder
from tests.test_training import clustered_pairs, rows_of
from transforms.index.embed import ItemTower, UserTower
from transforms.train import training as training_module
from transforms.train.choose_settings import FAR_BETTER, Candidate, CandidateResult, is_better
from transforms.train.closed_form import (
    EXPONENTS,
    best_closed_form,
    closed_form_model,
    closed_form_results,
    scale_items,
    scaled_start,
)
from transforms.train.curves import CurveRow
from transforms.train.rows import TrainingRows
from transforms.train.settings import TrainingSettings
from transforms.train.training import train, write_towers
from transforms.train.validation import make_validation, quality_of, validation_rows

UNTRAINED = TrainingSettings(dim=4, epochs=0, popularity_exponent=0.5)


@pytest.fixture(scope="module")
def rows() -> TrainingRows:
    return rows_of(clustered_pairs())


def scores_of(rows: TrainingRows, dim: int, exponent: float) -> np.ndarray:
    """Returns the scores by NumPy's decomposition of the whole matrix, whatever their scale."""
    matrix = np.zeros((len(rows.user_ids), len(rows.item_ids)))
    matrix[rows.user, rows.item] = 1
    of_user, of_item = (np.maximum(matrix.sum(axis=axis), 1) for axis in (1, 0))
    left, values, right = np.linalg.svd(matrix / np.sqrt(of_user)[:, np.newaxis] / np.sqrt(of_item), full_matrices=False)
    return (left[:, :dim] * values[:dim]) @ right[:dim] * of_item**exponent


def order_of(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, axis=1)[:, :8]


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_scores_are_those_of_the_decomposition_times_popularity(rows: TrainingRows, exponent: float) -> None:
    found = scaled_start(rows, 4, exponent, seed=3)
    scores, expected = found.users @ found.items.T, scores_of(rows, 4, exponent)
    # Vectors are scaled as a whole, which changes no order.
    np.testing.assert_allclose(scores / scores.std(), expected / expected.std(), atol=0.02)


def test_the_mean_item_keeps_its_length_and_one_without_ratings_has_none(rows: TrainingRows) -> None:
    start = scaled_start(rows, 4, 0.0, seed=3)
    counts = np.full(len(rows.item_ids), 6.0)
    np.testing.assert_array_equal(scale_items(start, counts, 0.5).items, start.items)
    counts[3] = 0
    assert not scale_items(start, counts, 0.5).items[3].any()


@pytest.mark.parametrize("user_tower", ["id", "history", "id+history"])
def test_every_user_tower_gives_the_same_lists(rows: TrainingRows, user_tower: str, tmp_path: Path) -> None:
    trained = train(rows, replace(UNTRAINED, user_tower=user_tower))
    assert (trained.num_epochs, trained.results) == (0, [])
    assert trained.curve == [{"phase": "full", "epoch": 0, "loss": None, "recall_at_100": None, "ndcg_at_10": None}]
    users = trained.model.user_tower.vectors_of(np.arange(len(rows.user_ids)))
    scores = users @ trained.model.item_tower.vectors.T
    assert np.mean(order_of(scores) == order_of(scores_of(rows, 4, 0.5))) > 0.9

    # What is served has no bias.
    write_towers(str(tmp_path), rows, trained)
    items = ItemTower(stored_folder(str(tmp_path / "item_tower")))
    assert items.dim == 5
    vectors = items.model.embed(np.array(rows.item_ids.to_pylist(), object))["embedding"].numpy()
    np.testing.assert_array_equal(vectors, np.hstack([trained.model.item_tower.vectors, np.zeros((len(vectors), 1))]))
    assert UserTower(stored_folder(str(tmp_path / "user_tower"))).dim == 5
    (row,) = json.loads((tmp_path / "curves.json").read_text())["epochs"]
    assert row["loss"] is None


def test_quality_on_the_slice_is_that_of_the_vectors(rows: TrainingRows) -> None:
    settings = replace(UNTRAINED, popularity_exponent=None)
    held_out, trained_on = validation_rows(rows, settings)
    validation, learned = make_validation(rows, held_out, trained_on, settings.seed), rows.where(trained_on)
    results = closed_form_results(learned, settings, validation)
    assert [each.candidate.popularity_exponent for each in results] == list(EXPONENTS)
    for each in results:
        assert each.candidate.popularity_exponent is not None
        start = scaled_start(learned, 4, each.candidate.popularity_exponent, settings.seed)
        assert each.means == quality_of(start.users[validation.users], start.items, validation)
    trained = train(rows, settings)
    assert trained.candidate == best_closed_form(results).candidate
    assert trained.quality == best_closed_form(results).means
    assert trained.results == results
    on_slice = train(rows, replace(settings, include_validation=False))
    assert (on_slice.candidate, on_slice.quality) == (trained.candidate, trained.quality)
    assert on_slice.curve[-1]["recall_at_100"] == trained.quality.recall_at_100


def result(dim: int, exponent: float, quality: float) -> CandidateResult:
    return CandidateResult(Candidate(dim, 0.1, exponent), quality, 0.0)


@pytest.mark.parametrize(("of_twice", "chosen"), [(0.5, 64), (0.5049, 64), (0.506, 128)])
def test_twice_the_dimensions_must_be_worth_it(of_twice: float, chosen: int) -> None:
    assert best_closed_form([result(64, 0.3, 0.4), result(64, 0.5, 0.5), result(128, 0.5, of_twice)]).candidate.dim == chosen


@pytest.mark.parametrize(
    ("share", "is_twice_tried", "is_closed"),
    [(1.04, False, True), (1.02, True, True), (1.005, True, False), (0.9, True, False)],
)
def test_the_closed_form_is_chosen_where_it_is_clearly_better(
    rows: TrainingRows, share: float, is_twice_tried: bool, is_closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is far better than all with the usual dimensions, none with twice those is tried."""
    monkeypatch.setattr(training_module, "_ROWS_OF_A_TRIAL", 1)
    monkeypatch.setattr("transforms.train.choose_settings.ROWS_FOR_TWICE", 1)
    monkeypatch.setattr("transforms.train.settings.DIM", 4)
    settings = TrainingSettings(recency="off")
    alone = train(rows, replace(settings, epochs=12))
    assert not any(each.candidate.is_closed_form for each in alone.results)
    assert {each.candidate.dim for each in alone.results} == {4, 8}
    best = max(each.quality for each in alone.results)
    closed = [CandidateResult(Candidate(4, 0.12, 0.5), share * best, 0.0)]
    monkeypatch.setattr(training_module, "closed_form_results", lambda *_: closed)
    trained = train(rows, settings)
    assert trained.candidate.is_closed_form == is_closed
    assert (trained.num_epochs == 0) == is_closed
    assert trained.results[0] == closed[0]
    assert any(each.candidate.dim == 8 for each in trained.results) == is_twice_tried
    if is_closed:
        assert trained.quality == closed[0].means
        expected = closed_form_model(rows, settings, trained.candidate).item_tower.vectors
        np.testing.assert_array_equal(trained.model.item_tower.vectors, expected)


@pytest.mark.parametrize("given", [{"l2": 0.1}, {"epochs": 3}, {"recency": "on"}, {"item_tower": "id+features"}])
def test_what_speaks_of_a_training_rules_it_out(given: dict) -> None:
    given = given | ({"features": ("x",)} if "item_tower" in given else {})
    assert not TrainingSettings(**given).may_be_closed_form
    assert TrainingSettings().may_be_closed_form


def test_what_it_cannot_take_is_refused() -> None:
    with pytest.raises(InputError, match=r"^with epochs 0 popularity is not a bias, so recency cannot be on: leave"):
        TrainingSettings(epochs=0, recency="on")
    with pytest.raises(InputError, match=r"^with epochs 0 nothing is learned, of features neither: leave"):
        TrainingSettings(epochs=0, item_tower="id+features", features=("x",))  # type: ignore[arg-type]


def test_a_row_without_a_loss_can_be_told() -> None:
    from transforms.train.pace import describe

    row = CurveRow(phase="full", epoch=0, loss=None, recall_at_100=0.5, ndcg_at_10=0.25)
    assert describe(row) == "full: epoch 0, nothing trained, Recall@100 0.5000, NDCG@10 0.2500"


def test_a_slice_that_says_nothing_chooses_what_is_trained() -> None:
    nothing = CandidateResult(Candidate(4, 0.1), 0.0, 0.0)
    assert not is_better(result(4, 0.5, 0.0), [nothing], FAR_BETTER)
    assert is_better(result(4, 0.5, 0.1), [nothing], FAR_BETTER)
    assert not is_better(result(4, 0.5, 0.1), [], FAR_BETTER)
    assert not is_better(None, [nothing], FAR_BETTER)
