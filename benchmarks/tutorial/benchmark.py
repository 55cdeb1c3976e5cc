"""Runs what TFRS's tutorial on efficient serving shows, and compares: one command.

    python -m benchmarks.tutorial --ratings ml-100k.inter --items ml-100k.item --output DIR [--copies 1000] [--rows 1,2,…]

Prints a table of what was measured beside what the tutorial says, as Markdown, and writes to DIR: `tutorial.md`, the same;
`tutorial.json`, every figure; `accuracy.svg`, `times.svg` and `libraries.svg`. Row 9 needs requirements-benchmarks.txt.

The rows: 1 the two towers as published, and Shortlist's job on the same ratings; 2 brute force for one user; 3 the same on the
catalogue times 1,000; 4 ScaNN on it; 5 evaluating the test rows with both; 7 settings of ScaNN; 9 other libraries.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.timing import num_threads
from benchmarks.tutorial import libraries, published, serving
from benchmarks.tutorial.accuracy import measure_model, train_model
from benchmarks.tutorial.figures import Figure, table_of
from benchmarks.tutorial.libraries import Comparison, check_installed
from benchmarks.tutorial.plots import draw_accuracy, draw_libraries, draw_times
from benchmarks.tutorial.ratings import read_ratings
from benchmarks.tutorial.serving import Bench
from pipelines.cli import logs
from pipelines.cli.logs import LOGGER
from pipelines.engine.fingerprint import versions
from schemas.errors import InputError

SERVING: Mapping[int, Callable[[Bench], Iterator[Figure]]] = {
    2: serving.measure_small,
    3: serving.measure_brute_force,
    4: serving.measure_scann,
    5: serving.measure_evaluation,
    7: serving.measure_settings,
}
LIBRARIES = 9
ROWS = (1, *SERVING, LIBRARIES)
NUM_QUERIES = 2_048
"""With so many users speed is measured."""


def main(argv: Sequence[str]) -> None:
    """Measures the rows that were asked for, says each figure as it is found, and writes everything to the output."""
    flags = parse(argv)
    logs.configure(verbose=False)
    ratings = read_ratings(flags.ratings, flags.items)
    flags.output.mkdir(parents=True, exist_ok=True)
    LOGGER.info(f"{len(ratings.user):,} ratings, {len(ratings.item_ids):,} items: training the tutorial's model")
    model = train_model(ratings)
    bench = Bench(ratings, model, *model.vectors(ratings), flags.copies)
    figures = []
    for row in flags.rows:
        for figure in figures_of(row, bench):
            LOGGER.info(" | ".join(figure.cells()))
            figures.append(figure)
    compared = compare(bench, flags.small_catalogue) if LIBRARIES in flags.rows else []
    tables = [table_of(figures)] if figures else []
    tables += [f"{each.catalogue}:\n\n{each.table(flags.target_recall)}" for each in compared]
    text = "\n".join(tables)
    print(text, end="")
    write(flags, bench, figures, compared, text)


def figures_of(row: int, bench: Bench) -> Iterator[Figure]:
    """Measures one row, row 9 excepted: it is no matter of the tutorial's code and has a table of its own."""
    if row == 1:
        yield from measure_model(bench.ratings, bench.model)
    elif row in SERVING:
        yield from SERVING[row](bench)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the flags, and refuses at once what would fail later."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.tutorial", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ratings", required=True, help="a file, a folder or tfds:NAME, as for a run")
    parser.add_argument("--items", help="likewise: the items' titles")
    parser.add_argument("--output", required=True, type=Path, help="a local folder for the table, the JSON and the plots")
    parser.add_argument("--copies", type=int, default=published.COPIES, help="perturbed copies of each item (default 1000)")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)), help="which to measure (default all)")
    parser.add_argument("--small_catalogue", type=int, default=300_000, help="vectors for row 9 with hnswlib (default 300000)")
    parser.add_argument("--target_recall", type=float, default=0.95, help="at which row 9 compares (default 0.95)")
    flags = parser.parse_args(argv)
    if flags.copies < 1:
        raise InputError(f"copies must be at least 1, got {flags.copies}: raise --copies")
    names = [each.strip() for each in flags.rows.split(",")]
    unknown = [each for each in names if each not in map(str, ROWS)]
    if unknown:
        raise InputError(f"rows must be some of {', '.join(map(str, ROWS))}, got {', '.join(unknown)}: change --rows")
    flags.rows = [row for row in ROWS if str(row) in names]
    if LIBRARIES in flags.rows:
        check_installed()
    return flags


def compare(bench: Bench, small_catalogue: int) -> list[Comparison]:
    """Row 9: the large catalogue, and a part of it with hnswlib too, which takes too long to build on all of it."""
    queries = bench.queries[:NUM_QUERIES]
    makers = [libraries.shortlist, libraries.faiss_ivf, libraries.plain_scan, libraries.faiss_scan]
    layers = libraries.tutorial_layers(bench.layers)
    small = np.ascontiguousarray(bench.catalogue[:small_catalogue])
    return [
        libraries.compare(small, [*makers, libraries.hnsw], [], bench.users, queries),
        libraries.compare(bench.catalogue, makers, [layers], bench.users, queries),
    ]


def write(flags: argparse.Namespace, bench: Bench, figures: list[Figure], compared: list[Comparison], table: str) -> None:
    """Writes the table, the JSON and the plots."""
    facts = {
        "versions": versions() | libraries.versions(),
        "threads": num_threads(),
        "test_rows": len(bench.ratings.item[bench.ratings.test]),
        "vectors": len(bench.items) * (bench.copies + 1),
        "figures": [asdict(each) for each in figures],
        "libraries": [each.report(flags.target_recall) for each in compared],
    }
    files = {"tutorial.md": table, "tutorial.json": json.dumps(facts, indent=2) + "\n"}
    if 1 in flags.rows:
        files["accuracy.svg"] = draw_accuracy(figures)
    if any(row in SERVING for row in flags.rows):
        files["times.svg"] = draw_times(figures)
    if compared:
        files["libraries.svg"] = draw_libraries(compared, flags.target_recall)
    for name, text in files.items():
        (flags.output / name).write_text(text, encoding="utf-8")
