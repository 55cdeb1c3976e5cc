"""Tries ways to build and search the index, and shows recall against time."""

import shlex
import sys
from collections.abc import Sequence

import pyarrow as pa
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.cli.command import Output, run_command, this_python
from pipelines.engine.lease import LeaseHolder
from pipelines.engine.progress import Progress
from pipelines.engine.stage import Chain, run_stage
from pipelines.job.finished import finished_before, keep_finished
from pipelines.job.prepare import prepare
from pipelines.stages.tune import plan
from schemas.blocks import one_block
from schemas.manifest import StageManifest
from schemas.parquet_files import read_parquet_blocks
from schemas.search_trials import SEARCH_TRIALS
from schemas.stage_files import TRIALS, TUNED_FILE
from schemas.storage import join, write_file
from schemas.words import counted
from schemas.workspace import Workspace
from transforms.report.tuning_chart import chart_of, group_of

_SHOWN = 16


def show(root: str, manifest: StageManifest, console: Console) -> None:
    """Draws all trials; prints the front, the choice, and where everything is."""
    paths = manifest.paths(root, TRIALS)
    trials = pa.Table.from_batches([block for path in paths for block in read_parquet_blocks(path)], SEARCH_TRIALS)
    rows = [row for row in one_block(trials.to_batches(), SEARCH_TRIALS).to_pylist() if row["is_front"] or row["is_chosen"]]
    rows.sort(key=lambda row: (-row["recall"], row["cost"]))
    k, target = (manifest.settings["calibration"][name] for name in ("k", "target_recall"))
    chart = Workspace(root).trials_chart(manifest.stage, manifest.fingerprint)
    write_file(root, chart, chart_of(trials, k, target, manifest.metrics["num_vectors"]).encode())
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
    console.print(f"bold: the cheapest whose recall@{k} is sure to reach {target:g}; users/s: of one core, by CPU time")
    console.print(f"[bold]table[/]    {escape(paths[0])}")
    console.print(f"[bold]plot[/]     {escape(join(root, chart))}")
    config = join(folder, TUNED_FILE)
    take = f"{this_python()} -m pipelines.index --output {shlex.quote(root)} --config {shlex.quote(config)}"
    console.print(f"[bold]take it[/]  {escape(take)}")


def main(argv: Sequence[str]) -> None:
    """Tunes the index of the newest run, or of the run with these flags where --ratings is among them."""
    job, options = prepare(argv, str(__doc__))
    workspace = Workspace(job.settings.output)
    with LeaseHolder(workspace, "tune") as lease:
        made = finished_before("index", job, "tune")
        keep_finished(workspace, made, lease)
        manifest = run_stage(plan(Chain(job.settings, made.published)), workspace, options, Progress(), lease)
    show(workspace.root, manifest, Output(highlight=False))


if __name__ == "__main__":
    sys.exit(run_command(main))
