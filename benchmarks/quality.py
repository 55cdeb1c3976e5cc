"""How good the lists are, beside popularity, item-kNN, EASE and ALS: one split, one harness, one code for the metrics.

    python -m benchmarks.quality --ratings FILE --items FILE [--split random|temporal] [--seeds 3] [--save FILE] [--plot FILE]
    python -m benchmarks.quality --ratings FILE --split given --heldout FILE

Ratings are ingested once, as for a run. The anchors (benchmarks/anchors.py) are tuned on a validation slice of the training
ratings; the towers are trained by the job's own stages, with the flags' settings, and searched exactly. Every model lists items
that have training ratings, without what the user has seen, and is judged by the held-out ratings. Users without training
ratings get from every model what is recently popular, as in a run's table; where there are any, a second table has everyone.

Prints Markdown: means over users and seeds, ± their standard error over users, and the difference to the best anchor, user by
user. Any flag of a run may follow; with --features, towers are measured with and without them. Needs
requirements-benchmarks.txt.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from apache_beam.options.pipeline_options import PipelineOptions

from benchmarks.anchors import ANCHORS, Anchor, check_installed, tune
from benchmarks.judging import Model, Question, judge, objective, read_question, validation_of
from benchmarks.quality_report import OURS, Row, chart_of, figures, table_of
from pipelines.cli import logs
from pipelines.cli.command import run_command
from pipelines.cli.config import parse_command
from pipelines.cli.logs import LOGGER
from pipelines.cli.options import OneLineParser
from pipelines.cli.settings import Settings
from pipelines.engine.fingerprint import versions
from pipelines.engine.progress import Progress
from pipelines.engine.stage import Chain, run_stage
from pipelines.stages import embed, ingest, train
from schemas.errors import InputError
from schemas.manifest import StageManifest
from schemas.parquet_files import read_parquet_blocks
from schemas.stage_files import USER_TOWER
from schemas.workspace import Workspace
from transforms.index.build import vectors_of
from transforms.index.embed import UserTower
from transforms.train.settings import ITEM_TOWERS, USER_TOWERS, TrainingSettings

VALIDATION_FRACTION = 0.1


@dataclass(frozen=True)
class Job:
    """A finished ingest, and how to run the stages after it."""

    settings: Settings
    options: PipelineOptions
    workspace: Workspace
    ingested: StageManifest
    progress: Progress


def main(argv: Sequence[str]) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--output", help="keeps the stages here, so that they are not run again; or else nothing is kept")
    parser.add_argument("--seeds", type=int, default=3, help="trainings a model, over which means are taken (default 3)")
    parser.add_argument("--models", help=f"a part of: {', '.join([*anchors(), *USER_TOWERS])} (default: all)")
    parser.add_argument("--save", type=Path, help="a file for all figures, as JSON")
    parser.add_argument("--plot", type=Path, help="a file for a chart, as SVG")
    flags, job_flags = parser.parse_known_args(argv)
    if flags.seeds < 1:
        raise InputError(f"seeds must be at least 1, got {flags.seeds}: raise --seeds")
    models = chosen(flags.models)
    with tempfile.TemporaryDirectory(prefix="shortlist-") as scratch:
        settings, options = parse_command([f"--output={flags.output or scratch}", *job_flags], "")
        if not settings.ingest.ratings:
            raise InputError("no ratings: give --ratings FILE, FOLDER or tfds:NAME")
        if settings.ingest.split.split == "none":
            raise InputError("--split none holds nothing out to judge by: use --split random, temporal or last")
        logs.configure(settings.verbose)
        workspace, progress = Workspace(settings.output), Progress()
        ingested = run_stage(ingest.plan(Chain(settings)), workspace, options, progress)
        result = measure(Job(settings, options, workspace, ingested, progress), models, flags.seeds)
    print(result["title"], *(f"\n{group['name']}:\n\n{table_of(group)}" for group in result["groups"]), sep="\n")
    if flags.save:
        flags.save.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if flags.plot:
        flags.plot.write_text(chart_of(result), encoding="utf-8")


def anchors() -> dict[str, Anchor]:
    """Returns the anchors by name."""
    return {anchor.name: anchor for anchor in ANCHORS}


def chosen(models: str | None) -> list[str]:
    """Reads --models: names of anchors and of user towers, separated by commas; None for all.

    Raises:
      InputError: if there is no such model, or a package that it needs is missing.
    """
    every = [*anchors(), *USER_TOWERS]
    asked = [each.strip() for each in models.split(",")] if models else every
    for each in asked:
        if each not in every:
            raise InputError(f"there is no model {each!r}: --models takes {', '.join(every)}")
    check_installed([anchors()[each] for each in asked if each in anchors()])
    return asked


def measure(job: Job, models: Sequence[str], num_seeds: int) -> dict[str, Any]:
    """Trains and judges every model, and returns all figures, as JSON."""
    ask = job.settings.ingest
    question = read_question(job.settings.output, job.ingested)
    if not question.holdout.counts.any():
        raise InputError("nothing is held out to judge by: raise --holdout, or lower --min_rating")
    seeds = [job.settings.training.seed + index for index in range(num_seeds)]
    trial = validation_of(question, ask.split.split, VALIDATION_FRACTION, ask.split.seed)
    rows = []
    for name in models:
        LOGGER.info("%s", name)
        anchor = anchors().get(name)
        if anchor:
            rows.append(measure_anchor(anchor, question, trial, seeds))
            continue
        towers = replace(job.settings.training, user_tower=name)
        item_towers = ITEM_TOWERS if towers.features else ITEM_TOWERS[:1]
        rows += [measure_towers(job, replace(towers, item_tower=each), question, seeds) for each in item_towers]
    judged = np.flatnonzero(question.holdout.counts)
    warm = question.pairs.counts_of_users[judged] > 0
    groups = {"Users with training ratings": warm} | ({} if warm.all() else {"All users": np.ones(len(judged), bool)})
    positives = "ratings" if ask.split.min_rating is None else f"ratings of at least {ask.split.min_rating:g}"
    held_out = Path(ask.heldout).name if ask.heldout else f"{ask.split.holdout:g}"
    return {
        "title": f"{Path(str(ask.ratings)).name}: {positives}, {ask.split.split} split, {held_out} held out",
        "seeds": seeds,
        "users": len(question.user_ids),
        "items": len(question.item_ids),
        "training_pairs": len(question.pairs.user),
        "held_out_pairs": len(question.holdout.values),
        "versions": versions(),
        "groups": [{"name": name, **figures(rows, users)} for name, users in groups.items()],
    }


def measure_anchor(anchor: Anchor, question: Question, trial: Question, seeds: Sequence[int]) -> Row:
    """Tunes an anchor on the trial question, and judges it on the real one."""
    started = time.monotonic()
    settings: dict[str, Any] = {}
    quality = None
    if anchor.space:
        settings, quality = tune(anchor, lambda tried: objective(model_of(anchor, trial, tried, seeds[0]), trial))
        LOGGER.info("%s: %s, %.4f on validation", anchor.name, settings, quality)
    used = seeds if anchor.by_chance else seeds[:1]
    by_seed = [judge(model_of(anchor, question, settings, seed), question) for seed in used]
    return Row(anchor.name, settings, quality, time.monotonic() - started, by_seed)


def model_of(anchor: Anchor, question: Question, settings: Mapping[str, Any], seed: int) -> Model:
    """Fits an anchor to a question's pairs; it lists the items that have any."""
    pairs = question.pairs
    score = anchor.fit(pairs, settings, seed)
    listed = pairs.counts_of_items > 0
    return Model(lambda users: np.where(listed, score(users), -np.inf), pairs.counts_of_users > 0)


def measure_towers(job: Job, training: TrainingSettings, question: Question, seeds: Sequence[int]) -> Row:
    """Trains the towers with the job's stages, once a seed, and judges exact lists of their vectors."""
    started = time.monotonic()
    by_seed, qualities = [], []
    for seed in seeds:
        done = make_towers(job, replace(training, seed=seed))
        by_seed.append(judge(towers_of(job, done, question), question))
        metrics = done["train"].metrics
        if "validation_ndcg_at_10" in metrics:
            qualities.append(metrics["validation_recall_at_100"] + metrics["validation_ndcg_at_10"])
    name = OURS + training.user_tower + (f", items {training.item_tower}" if training.looks_at_features else "")
    facts = {each: value for each, value in done["train"].settings.items() if each != "seed"}
    return Row(name, facts, float(np.mean(qualities)) if qualities else None, time.monotonic() - started, by_seed)


def make_towers(job: Job, training: TrainingSettings) -> dict[str, StageManifest]:
    """Trains and embeds with the job's stages, and returns all that is done."""
    settings = replace(job.settings, training=training)
    done = {"ingest": job.ingested}
    for definition in (train.STAGE, embed.STAGE):
        stage = definition.plan(Chain(settings, done))
        done[definition.name] = run_stage(stage, job.workspace, job.options, job.progress)
    return done


def towers_of(job: Job, done: dict[str, StageManifest], question: Question) -> Model:
    """Returns the model of finished towers: the inner products of the vectors that a run would search with."""
    output = job.settings.output
    blocks = [each for path in done["embed"].paths(output, "embeddings") for each in read_parquet_blocks(path)]
    codes = np.concatenate([pc.index_in(block["item_id"], question.item_ids).to_numpy() for block in blocks])
    items = np.concatenate([vectors_of(block["embedding"]) for block in blocks])
    tower = UserTower(done["train"].stored(output, USER_TOWER))
    users, known = (np.concatenate(parts) for parts in zip(*map(tower.embed, question.users), strict=True))

    def score(chosen: np.ndarray) -> np.ndarray:
        scores = np.full((len(chosen), len(question.item_ids)), -np.inf, np.float32)
        scores[:, codes] = users[chosen] @ items.T
        return scores

    return Model(score, known)


if __name__ == "__main__":
    sys.exit(run_command(main))
