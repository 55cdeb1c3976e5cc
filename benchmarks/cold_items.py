"""What features do for items that nobody has rated, and what they cost the others.

    python -m benchmarks.cold_items --ratings FILE --items FILE --features "genres=categories, …" [--repeats 3] [--save FILE]

A tenth of the items is set aside: all their ratings are taken away, and they stay in the catalogue with what the items' source
says of them. The rest is split and trained on as in any run, once with the item tower by id and once with features. The users
who had rated what was set aside are judged by it twice: on lists of nothing but such items, beside chance, one list for
everybody (the mean user's), and how popular they turned out to be, which nobody could know; and on lists of the whole
catalogue, where an item without a vector cannot appear. And all users are judged by the held-out ratings of the other items.

Each repeat sets other items aside and trains with another seed. Prints Markdown: means, ± the standard error over the repeats.
Any flag of a run may follow.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.judging import METRICS, Model, Question, judge, read_question
from benchmarks.quality import Job, make_towers, towers_of
from pipelines.cli import logs
from pipelines.cli.command import run_command
from pipelines.cli.config import parse_command
from pipelines.cli.logs import LOGGER
from pipelines.cli.options import OneLineParser
from pipelines.cli.settings import Settings
from pipelines.engine.progress import Progress
from pipelines.engine.stage import Chain, run_stage
from pipelines.stages import ingest
from schemas.errors import InputError
from schemas.parquet_files import read_parquet_blocks
from schemas.workspace import Workspace
from transforms.io.partition import hash_ids
from transforms.search.top_k import Lists

AMONG_COLD = "lists of the items set aside"
WHOLE = "lists of the whole catalogue, judged by the items set aside"
WARM = "lists of the whole catalogue, judged by the other items"
SHOWN: dict[str, tuple[str, ...]] = {
    AMONG_COLD: ("recall@10", "recall@50", "ndcg@10"),
    WHOLE: ("recall@100", "recall@10"),
    WARM: ("recall@100", "ndcg@10"),
}

Figures = dict[str, dict[str, dict[str, float]]]
"""Group -> model -> metric."""


class Aside(NamedTuple):
    """Ratings without those of some items.

    Attributes:
      left: rows of INTERACTIONS.
      cold: the ratings taken away.
    """

    left: pa.Table
    cold: pa.Table


def main(argv: Sequence[str]) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--cold_fraction", type=float, default=0.1, help="of the items to set aside (default 0.1)")
    parser.add_argument("--repeats", type=int, default=3, help="how often, each time other items (default 3)")
    parser.add_argument("--save", type=Path, help="a file for all figures, as JSON")
    flags, job_flags = parser.parse_known_args(argv)
    if not 0 < flags.cold_fraction < 1:
        raise InputError(f"cold_fraction must be between 0 and 1, got {flags.cold_fraction:g}: change --cold_fraction")
    if flags.repeats < 1:
        raise InputError(f"repeats must be at least 1, got {flags.repeats}: raise --repeats")
    with tempfile.TemporaryDirectory(prefix="shortlist-") as scratch:
        settings, options = parse_command([*job_flags, f"--output={scratch}/all"], "")
        if not (settings.ingest.ratings and settings.ingest.items and settings.training.features):
            raise InputError("items are set aside by their features: give --ratings, --items and --features")
        logs.configure(settings.verbose)
        everything = replace(settings, ingest=replace(settings.ingest, split=replace(settings.ingest.split, split="none")))
        found = run_stage(ingest.plan(Chain(everything)), Workspace(everything.output), options, Progress())
        ratings = _table(found.paths(everything.output, "interactions/train"))
        described = _table(found.paths(everything.output, "items"))["item_id"]
        by_repeat = []
        for repeat in range(flags.repeats):
            aside = set_aside(ratings, described, flags.cold_fraction, settings.training.seed + repeat)
            by_repeat.append(measure(settings, options, aside, f"{scratch}/{repeat}", repeat))
    means = summary(by_repeat)
    for group, models in means.items():
        print(f"\n{group}:\n\n{table_of(models, SHOWN[group])}")
    if flags.save:
        flags.save.write_text(json.dumps({"repeats": by_repeat, "means": means}, indent=2) + "\n", encoding="utf-8")


def _table(paths: list[str]) -> pa.Table:
    return pa.Table.from_batches([block for path in paths for block in read_parquet_blocks(path)])


def set_aside(ratings: pa.Table, described: pa.ChunkedArray, fraction: float, seed: int) -> Aside:
    """Takes away the ratings of some items.

    Args:
      ratings: rows of INTERACTIONS.
      described: the ids that may be chosen.
      fraction: of them, by a hash.
      seed: of the hash.

    Raises:
      InputError: if there are none to take away.
    """
    ids = described.combine_chunks()
    chosen = ids.filter(pa.array(hash_ids(ids, 1_000 + seed) < np.uint64(fraction * 2**64)))
    is_cold = pc.is_in(ratings["item_id"], chosen)
    if not pc.any(is_cold).as_py():
        raise InputError(f"none of the {len(ids):,} items was set aside with its ratings: raise --cold_fraction")
    return Aside(ratings.filter(pc.invert(is_cold)), ratings.filter(is_cold))


def measure(settings: Settings, options: Any, aside: Aside, output: str, repeat: int) -> Figures:
    """Trains on what is left, by id and with features, and judges both."""
    Path(output).mkdir()
    path = f"{output}/ratings.parquet"
    pq.write_table(aside.left.select([name for name in aside.left.column_names if aside.left[name].null_count == 0]), path)
    asked = replace(settings.ingest, ratings=path, columns={}, max_rejected_fraction=0.0)
    settings = replace(settings, output=output, ingest=asked)
    workspace, progress = Workspace(output), Progress()
    job = Job(settings, options, workspace, run_stage(ingest.plan(Chain(settings)), workspace, options, progress), progress)
    question = read_question(output, job.ingested)
    training = replace(settings.training, seed=settings.training.seed + repeat)
    models = {
        item_tower: towers_of(job, make_towers(job, replace(training, item_tower=item_tower)), question)
        for item_tower in ("id", "id+features")
    }
    return judge_all(models, question, cold_lists(aside, question), training.seed)


def cold_lists(aside: Aside, question: Question) -> Lists:
    """Returns each user's ratings that were taken away, by code; those of items outside the catalogue are left out."""
    user = pc.index_in(aside.cold["user_id"], question.user_ids).fill_null(-1).to_numpy()
    item = pc.index_in(aside.cold["item_id"], question.item_ids).fill_null(-1).to_numpy()
    there = np.flatnonzero((user >= 0) & (item >= 0))
    there = there[np.lexsort((item[there], user[there]))]
    counts = np.bincount(user[there], minlength=len(question.user_ids))
    return Lists(item[there].astype(np.int64), np.concatenate([[0], np.cumsum(counts)]))


def judge_all(models: Mapping[str, Model], question: Question, cold: Lists, seed: int) -> Figures:
    """Judges the two models, and beside them what needs none.

    Args:
      models: by item tower.
      question: of what is left.
      cold: for each user, the items set aside that it had rated.
      seed: of chance.
    """
    num_items = len(question.item_ids)
    turned_out = np.bincount(cold.values, minlength=num_items).astype(np.float32)
    is_cold = turned_out > 0
    known = models["id+features"].known
    users = np.flatnonzero((cold.counts > 0) & known)
    of_cold = question._replace(holdout=cold)
    rng = np.random.default_rng(seed)
    by_chance = rng.random((len(known), num_items)).astype(np.float32)
    features = models["id+features"]
    everyone = features.score(np.flatnonzero(known)).mean(axis=0)

    def among_cold(scores: Any) -> Model:
        return Model(lambda asked: np.where(is_cold, scores(asked), -np.inf).astype(np.float32), known)

    LOGGER.info("%d items set aside, %d users had rated them", int(is_cold.sum()), len(users))
    scores_of = {
        "id+features": features.score,
        "one list for everybody": lambda asked: np.broadcast_to(everyone, (len(asked), num_items)),
        "chance": lambda asked: by_chance[asked],
        "what was popular in the end": lambda asked: np.broadcast_to(turned_out, (len(asked), num_items)),
    }
    whole = {**models, "chance": Model(scores_of["chance"], known)}
    return {
        AMONG_COLD: {name: _means(among_cold(scores), of_cold, users) for name, scores in scores_of.items()},
        WHOLE: {name: _means(model, of_cold, users) for name, model in whole.items()},
        WARM: {name: _means(model, question) for name, model in models.items()},
    }


def _means(model: Model, question: Question, users: np.ndarray | None = None) -> dict[str, float]:
    return dict(zip(METRICS, judge(model, question, users).of_users.mean(axis=0).tolist(), strict=True))


def summary(by_repeat: Sequence[Figures]) -> dict[str, dict[str, dict[str, dict[str, float | None]]]]:
    """Returns means over the repeats and their standard errors (None for a single one)."""
    count = len(by_repeat)

    def of_values(values: list[float]) -> dict[str, float | None]:
        error = float(np.std(values, ddof=1) / np.sqrt(count)) if count > 1 else None
        return {"mean": float(np.mean(values)), "standard_error": error}

    return {
        group: {
            name: {metric: of_values([each[group][name][metric] for each in by_repeat]) for metric in METRICS}
            for name in models
        }
        for group, models in by_repeat[0].items()
    }


def table_of(models: Mapping[str, Mapping[str, Mapping[str, float | None]]], shown: Sequence[str]) -> str:
    """Returns a Markdown table, a row a model."""
    lines = [f"| | {' | '.join(shown)} |", f"|---{'|---' * len(shown)}|"]
    for name, means in models.items():
        cells = [f"{means[metric]['mean']:.3f}" for metric in shown]
        errors = [means[metric]["standard_error"] for metric in shown]
        cells = [cell if error is None else f"{cell} ± {error:.3f}" for cell, error in zip(cells, errors, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(main))
