"""How good the towers are after how many seconds of training, beside implicit's ALS, on the same rows and threads.

    python -m benchmarks.training [--ratings FILE | --made USERS,ITEMS,RATINGS] [--save FILE] [--plot FILE]

Ratings are read as for a run, and a fifth of the pairs is held out by chance; without --ratings they are made: users like the
items of a few tastes, some items are popular, and some ratings say nothing. Each model is trained to several lengths, in turns
with the others: Shortlist with settings known (as on the nights after the first), Shortlist with its choice of settings
included, and ALS with what it is tuned to on a slice of the training ratings. Seconds are those of training alone, without
imports and reading; TensorFlow's compilation counts. Lists are exact, without what the user has rated.

Prints a table; needs requirements-benchmarks.txt.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.timing import num_threads
from pipelines.cli import logs
from pipelines.cli.command import run_command
from schemas.errors import InputError
from schemas.words import counted
from transforms.charts.draw import Axis, Marks, Panel, draw
from transforms.train.choose_settings import best_result
from transforms.train.recency import lift_items, lift_users
from transforms.train.rows import TrainingRows
from transforms.train.settings import TrainingSettings
from transforms.train.training import Trained, served_bias, train
from transforms.train.validation import Quality, Validation, make_validation, quality_of, validation_rows

EPOCHS = (1, 2, 4, 8)
ITERATIONS = (1, 3, 7, 15, 30)
FACTORS = 64
HELD_OUT = 0.2
TASTES, TASTES_A_USER, TASTED = 64, 3, 0.85
ALS_TRIED = [(alpha, regularization) for alpha in (1.0, 4.0, 16.0) for regularization in (0.01, 1.0, 30.0)]


@dataclass(frozen=True)
class Point:
    """A model after some training.

    Attributes:
      model: which one.
      length: how long it was trained, in its own words.
      seconds: that this took.
      cpu_seconds: likewise, of all threads.
      quality: on the held-out pairs.
    """

    model: str
    length: str
    seconds: float
    cpu_seconds: float
    quality: Quality


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratings", type=Path, help="a delimited file with a header whose first columns are user and item")
    parser.add_argument("--made", default="20000,20000,3000000", help="users, items, ratings (default 20000,20000,3000000)")
    parser.add_argument("--save", type=Path, help="a file for all figures, as JSON")
    parser.add_argument("--plot", type=Path, help="a file for a chart, as SVG")
    flags = parser.parse_args(argv)
    logs.configure(verbose=False)
    rows = read_pairs(flags.ratings) if flags.ratings else made_rows(*map(int, flags.made.split(",")))
    held_out, trained_on = validation_rows(rows, TrainingSettings(validation_fraction=HELD_OUT, seed=1))
    test, learned = make_validation(rows, held_out, trained_on, 0), rows.where(trained_on)
    title = (
        f"{len(learned.user):,} ratings, {len(rows.user_ids):,} users, {len(rows.item_ids):,} items, {num_threads()} threads"
    )
    print(
        f"{title}\n\n| model | trained | seconds | CPU seconds | Recall@100 | NDCG@10 |\n| --- | --- | --- | --- | --- | --- |"
    )
    points = []
    for point in measure(learned, test):
        points.append(point)
        quality = f"{point.quality.recall_at_100:.4f} | {point.quality.ndcg_at_10:.4f}"
        print(f"| {point.model} | {point.length} | {point.seconds:.1f} | {point.cpu_seconds:.1f} | {quality} |", flush=True)
    if flags.save:
        flags.save.write_text(json.dumps({"title": title, "points": [as_json(each) for each in points]}, indent=2) + "\n")
    if flags.plot:
        flags.plot.write_text(chart_of(title, points), encoding="utf-8")


def as_json(point: Point) -> dict[str, Any]:
    """Returns a point as JSON."""
    return {**vars(point), "quality": point.quality._asdict()}


def measure(rows: TrainingRows, test: Validation) -> Iterator[Point]:
    """Yields each model after each length of training: the short ones of all models first, so that a slow minute hits all.

    Args:
      rows: what to learn from.
      test: what to judge by.
    """
    chosen = train(rows, TrainingSettings())  # Also pays for what a process compiles only once.
    known = settings_known(chosen)
    trained = TrainingSettings(dim=chosen.candidate.dim, l2=best_l2(chosen))
    als = tuned_als(rows)
    for place in range(max(len(EPOCHS), len(ITERATIONS))):
        for epochs in EPOCHS[place : place + 1]:
            fit = partial(tower_vectors, rows, replace(trained, epochs=epochs))
            yield timed_point(f"Shortlist, trained, {trained.dim} dimensions", in_words(epochs), fit, test)
        for iterations in ITERATIONS[place : place + 1]:
            fit = partial(als_vectors, rows, *als, iterations)
            yield timed_point(f"implicit ALS, {FACTORS} factors", counted(iterations, "iteration"), fit, test)
    length = in_words(chosen.num_epochs)
    yield timed_point("Shortlist, settings known", length, partial(tower_vectors, rows, known), test)
    yield timed_point("Shortlist, settings chosen", length, partial(tower_vectors, rows, TrainingSettings()), test)


def in_words(epochs: int) -> str:
    """Returns how long something was trained."""
    return counted(epochs, "epoch") if epochs else "closed form"


def settings_known(chosen: Trained) -> TrainingSettings:
    """Returns the settings of the nights after the first, when these were chosen."""
    found, is_closed = chosen.candidate, chosen.candidate.is_closed_form
    return TrainingSettings(
        dim=found.dim, l2=found.l2, popularity_exponent=found.popularity_exponent, epochs=0 if is_closed else None
    )


def best_l2(chosen: Trained) -> float:
    """Returns the weight of L2 that was best among what was trained."""
    return best_result([each for each in chosen.results if not each.candidate.is_closed_form]).candidate.l2


Vectors = tuple[np.ndarray, np.ndarray]


def timed_point(model: str, length: str, fit: Callable[[], Vectors], test: Validation) -> Point:
    """Returns how long a model trains, and how good it is then."""
    cpu, started = time.process_time(), time.perf_counter()
    users, items = fit()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return Point(model, length, round(seconds, 2), round(cpu, 2), quality_of(users[test.users], items, test))


def tower_vectors(rows: TrainingRows, settings: TrainingSettings) -> Vectors:
    """Trains the towers; returns the vectors that are served."""
    trained = train(rows, settings)
    users = trained.model.user_tower.vectors_of(np.arange(len(rows.user_ids)))
    bias = served_bias(rows, trained)
    return lift_users(users), lift_items(trained.model.item_tower.vectors, trained.blend.affinity_weight, bias)


def als_vectors(rows: TrainingRows, alpha: float, regularization: float, iterations: int) -> Vectors:
    """Fits implicit's ALS."""
    import implicit
    import scipy.sparse

    shape = len(rows.user_ids), len(rows.item_ids)
    ratings = scipy.sparse.csr_matrix((np.ones(len(rows.user), np.float32), (rows.user, rows.item)), shape)
    model = implicit.als.AlternatingLeastSquares(
        factors=FACTORS, iterations=iterations, alpha=alpha, regularization=regularization, random_state=1
    )
    model.fit(ratings, show_progress=False)
    return model.user_factors, model.item_factors


def tuned_als(rows: TrainingRows) -> tuple[float, float]:
    """Returns the alpha and the regularization of ALS that are best on a slice of the training rows, after 7 iterations."""
    held_out, trained_on = validation_rows(rows, TrainingSettings())
    slice_of, learned = make_validation(rows, held_out, trained_on, 0), rows.where(trained_on)

    def quality(tried: tuple[float, float]) -> float:
        users, items = als_vectors(learned, *tried, 7)
        return sum(quality_of(users[slice_of.users], items, slice_of))

    return max(ALS_TRIED, key=quality)


def read_pairs(path: Path) -> TrainingRows:
    """Reads the first two columns of a delimited file with a header, each pair once.

    Raises:
      InputError: if there are none.
    """
    with path.open(encoding="utf-8") as file:
        delimiter = next((each for each in "\t,;|" if each in file.readline()), None)
    if delimiter is None:
        raise InputError(f"{path} has no header with two columns: give a delimited file of users and items")
    pairs = np.loadtxt(path, str, delimiter=delimiter, skiprows=1, usecols=(0, 1), ndmin=2)
    users, user = np.unique(pairs[:, 0], return_inverse=True)
    items, item = np.unique(pairs[:, 1], return_inverse=True)
    return _rows_of(pa.array(users), pa.array(items), user, item)


def made_rows(num_users: int, num_items: int, num_ratings: int) -> TrainingRows:
    """Makes ratings of users who like the items of a few tastes each, some users rating more than others."""
    rng = np.random.default_rng(0)
    activity = rng.lognormal(0, 0.8, num_users)
    user = rng.choice(num_users, round(1.25 * num_ratings), p=activity / activity.sum())
    liked = np.argsort(rng.random((num_users, TASTES)), axis=1)[:, :TASTES_A_USER]
    taste = liked[user, rng.choice(TASTES_A_USER, len(user), p=[0.6, 0.25, 0.15])]
    taste = np.where(rng.random(len(user)) < TASTED, taste, rng.integers(0, TASTES, len(user)))
    taste_of_item = np.sort(rng.integers(0, TASTES, num_items))
    sizes = np.bincount(taste_of_item, minlength=TASTES)
    # Zipf's law within a taste: the inverse of a law of 1 / rank.
    rank = np.minimum((np.maximum(sizes, 1)[taste] ** rng.random(len(user))).astype(np.int64) - 1, sizes[taste] - 1)
    item = np.maximum((np.cumsum(sizes) - sizes)[taste] + rank, 0)
    digits = len(str(max(num_users, num_items)))
    ids = [pa.array(np.char.zfill(np.arange(count).astype(str), digits)) for count in (num_users, num_items)]
    return _rows_of(ids[0], ids[1], user, item)


def _rows_of(user_ids: pa.Array, item_ids: pa.Array, user: np.ndarray, item: np.ndarray) -> TrainingRows:
    pairs = np.unique(user.astype(np.int64) * len(item_ids) + item)
    user, item = np.divmod(pairs, len(item_ids))
    return TrainingRows(user_ids, item_ids, user.astype(np.int32), item.astype(np.int32))


def chart_of(title: str, points: Sequence[Point]) -> str:
    """Returns an SVG: quality against seconds, a line a model."""
    models = list(dict.fromkeys(point.model for point in points))
    panels = []
    for name, shown in (("recall_at_100", "Recall@100"), ("ndcg_at_10", "NDCG@10")):
        marks = []
        for color, model in enumerate(models):
            of_model = sorted((each for each in points if each.model == model), key=lambda each: each.seconds)
            seconds, values = [each.seconds for each in of_model], [getattr(each.quality, name) for each in of_model]
            tips = [f"{model}, {each.length}: {value:.4f}" for each, value in zip(of_model, values, strict=True)]
            marks.append(Marks(seconds, values, model, color, is_line=len(of_model) > 1, tips=tips))
        panels.append(Panel(shown, marks, Axis("seconds of training")))
    return draw("Quality against seconds", panels, note=title)


if __name__ == "__main__":
    sys.exit(run_command(main))
