"""Tunes the index for the vectors of a run: which leaves, threshold, SOAR and search settings are worth having.

python -m pipelines.tune --output DIR [--target_recall 0.95]

Prints the Pareto front and where the table, the plot and the chosen settings are: python -m pipelines.index takes these with
--config.
"""

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import apache_beam as beam
import pyarrow as pa
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines import logs
from pipelines.command import Output, run_command
from pipelines.index import choose_shards, some_users
from pipelines.lease import Held
from pipelines.progress import Progress
from pipelines.results import this_python
from pipelines.reuse import with_base
from pipelines.run import finished_before, keep_finished
from pipelines.settings import Settings, parse_command
from pipelines.stage import Reports, Stage, run_stage
from schemas.blocks import one_block
from schemas.manifest import StageManifest
from schemas.search_trials import SEARCH_TRIALS
from schemas.storage import check_writable, join, read_parquet_blocks
from schemas.stored import StoredFolder
from schemas.words import counted
from schemas.workspace import Workspace
from transforms.index.calibrate import CalibrationSettings, DrawSample
from transforms.index.embed import EmbedUsers
from transforms.index.tune import Sweep, TuneIndex
from transforms.index.tuning_report import CHART, CONFIG, TRIALS, group_of, write_results
from transforms.io.read import ReadParquet
from transforms.search.scann_index import EXACT_BELOW, BuildSettings, plan_shard
from transforms.train.training import USER_TOWER

_SHOWN = 16


def stage(settings: Settings, done: Mapping[str, StageManifest]) -> Stage:
    """Chooses what is tried from the number of candidates, and returns the stage."""
    ingested, trained, embedded = (done[name] for name in ("ingest", "train", "embed"))
    num_candidates, dim = embedded.rows("embeddings"), embedded.metrics["dim"]
    num_shards = choose_shards(num_candidates, dim, settings.index)
    num_tried = shards_to_try(num_candidates, dim, num_shards, settings.recommend.max_worker_bytes)
    k = min(settings.recommend.k, num_candidates)
    ask = CalibrationSettings(
        # So many of a list lie in the shards that are tried.
        k=math.ceil(k * num_tried / num_shards),
        recommend_seen=settings.recommend.recommend_seen,
        target_recall=settings.index.target_recall,
    )
    builds = builds_to_try(math.ceil(num_candidates / num_shards), settings)
    job = {
        "dim": dim,
        "num_shards": num_shards,
        "num_tried": num_tried,
        "num_vectors": math.ceil(num_candidates * num_tried / num_shards),
        "seed": settings.index.seed,
        "embeddings": embedded.stored(settings.output, "embeddings"),
        "users": [
            join(settings.output, ingested.folder, file.path) for file in some_users(ingested.dataset("users"), ask.num_users)
        ],
        "tower": trained.stored(settings.output, USER_TOWER),
        "builds": builds,
        "sweep": settings.tune.sweep,
    }
    return Stage(
        name="tune",
        module=__name__,
        settings={
            "num_shards": num_shards,
            "num_tried": num_tried,
            "seed": settings.index.seed,
            "builds": [asdict(each) for each in builds],
            "sweep": asdict(settings.tune.sweep),
            "calibration": asdict(ask),
        },
        inputs={name: done[name] for name in ("ingest", "train", "embed")},
        reads={"ingest": ["users"], "train": [USER_TOWER], "embed": ["embeddings"]},
        build=lambda root, attempt: build(root, attempt, **job, ask=ask),
    )


def build(
    root: beam.Pipeline,
    attempt: str,
    dim: int,
    num_shards: int,
    num_tried: int,
    num_vectors: int,
    seed: int,
    embeddings: StoredFolder,
    users: list[str],
    tower: StoredFolder,
    builds: list[BuildSettings],
    sweep: Sweep,
    ask: CalibrationSettings,
) -> Reports:
    """Adds the stage's steps: some users are searched for in one build after another, or side by side on many workers."""
    known = root | "ReadUsers" >> ReadParquet(users) | "EmbedUsers" >> EmbedUsers(tower)
    items = root | "ReadItems" >> ReadParquet(embeddings.paths, ["item_id", "code"])
    sample = (known, items) | "DrawSample" >> DrawSample(ask, dim)
    trials = sample | "TuneIndex" >> TuneIndex(embeddings, num_shards, num_tried, seed, builds, ask, sweep)
    made = (
        trials
        | "GatherTrials" >> beam.combiners.ToList()
        | "WriteResults" >> beam.Map(lambda blocks: write_results(attempt, blocks, num_shards, num_vectors, ask))
    )
    return [made | "Files" >> beam.FlatMap(lambda made: made[0]), made | "Metrics" >> beam.Map(lambda made: made[1])]


def shards_to_try(num_vectors: int, dim: int, num_shards: int, max_bytes: int) -> int:
    """Returns how many shards a trial takes: as many as fit a worker; items are hashed, so any shards are like all others."""
    # The vectors, an index of them, and what an exact search of it adds.
    of_shard = 12 * math.ceil(num_vectors / num_shards) * dim
    return max(1, min(num_shards, max_bytes // of_shard))


def builds_to_try(num_vectors: int, settings: Settings) -> list[BuildSettings]:
    """Returns the ways to build a shard of so many vectors; only the exact one, which is not listed, for a small shard."""
    if num_vectors < EXACT_BELOW and not settings.tune.small:
        logs.LOGGER.warning(
            "a shard of %s vectors is searched exactly, as all below %s are, so there is nothing to tune: "
            "--tune_small tries the other ways all the same",
            f"{num_vectors:,}",
            f"{EXACT_BELOW:,}",
        )
        return []
    # What cannot be built, such as a tree of fewer vectors than hashes need, is exact and need not be tried again.
    asked = settings.tune.sweep.builds(num_vectors)
    return [each for each in asked if each.applied_to(plan_shard(num_vectors, 1)).kind != "exact"]


def show(root: str, manifest: StageManifest, console: Console) -> None:
    """Prints the front, the choice, and where everything is."""
    paths = manifest.paths(root, TRIALS)
    trials = pa.Table.from_batches([block for path in paths for block in read_parquet_blocks(path)], SEARCH_TRIALS)
    rows = [row for row in one_block(trials.to_batches(), SEARCH_TRIALS).to_pylist() if row["is_front"] or row["is_chosen"]]
    rows.sort(key=lambda row: (-row["recall"], row["cost"]))
    target = manifest.settings["calibration"]["target_recall"]
    near = sorted(rows, key=lambda row: (not row["is_chosen"], abs(row["recall"] - target)))[:_SHOWN]
    title = f"the Pareto front of {counted(len(trials), 'trial')}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("index", no_wrap=True)
    for name in ("leaves", "threshold", "reorder", "recall", "at least", "cost", "users/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in (row for row in rows if row in near):
        table.add_row(
            group_of(row),
            f"{row['leaves_to_search']:,}/{row['leaves']:,}" if row["kind"] == "tree" else "",
            "" if row["quantization_threshold"] is None else f"{row['quantization_threshold']:g}",
            "" if row["reorder_per_neighbor"] is None else f"{row['reorder_per_neighbor']:g}",
            f"{row['recall']:.4f}",
            f"{row['lower_bound']:.4f}",
            f"{row['cost']:,.0f}",
            f"{row['users_per_second']:,.0f}",
            style="bold" if row["is_chosen"] else "",
        )
    console.print(table)
    folder = join(root, manifest.folder)
    console.soft_wrap = True
    console.print(
        f"bold: the cheapest whose recall@{manifest.settings['calibration']['k']} is sure to reach {target:g}; "
        "users/s: of one core, by CPU time"
    )
    console.print(f"[bold]table[/]    {escape(paths[0])}")
    console.print(f"[bold]plot[/]     {escape(join(folder, CHART))}")
    config = join(folder, CONFIG)
    take = f"{this_python()} -m pipelines.index --output {shlex.quote(root)} --config {shlex.quote(config)}"
    console.print(f"[bold]take it[/]  {escape(take)}")


def main(argv: Sequence[str]) -> None:
    """Tunes the index of the newest run, or of the run with these flags where --ratings is among them."""
    settings, options = parse_command(argv, str(__doc__))
    logs.configure(settings.verbose)
    check_writable(settings.output)
    settings = with_base(settings)
    workspace = Workspace(settings.output)
    with Held(workspace, "tune") as lease:
        made = finished_before("index", settings, "tune")
        keep_finished(workspace, made, lease)
        manifest = run_stage(stage(settings, made.published), workspace, options, Progress(), lease)
    show(settings.output, manifest, Output(highlight=False))


if __name__ == "__main__":
    sys.exit(run_command(main))
