"""Other engines read the latest release, with the very code of docs/reference/data-contract.md, and get what was written."""

import os
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.contract import PAGE
from schemas.topk import LAYOUTS, LONG, NESTED
from tests.made_table import Row, made_rows, pairs_of, write_latest, write_table

ENGINES = ("DuckDB", "Polars", "pandas", "PyArrow", "Spark")


@pytest.fixture(scope="module", params=list(LAYOUTS))
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, list[str]]:
    """A layout, a folder whose output/ml-100k has a release in that layout, and the full paths of its files."""
    folder = tmp_path_factory.mktemp(request.param)
    root = folder / "output" / "ml-100k"
    files = write_table(root, made_rows(), request.param)
    write_latest(root, files)
    assert len(files) == 3
    return request.param, folder, [str(root / file) for file in files]


def snippets() -> dict[tuple[str, str], str]:
    """The page's Python, by the heading above and the layout."""
    found = {}
    for section in re.split(r"^##+ ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE):
        for layout, code in re.findall(r"```python ?(\w*)\n(.*?)```", section, re.DOTALL):
            found[section.partition("\n")[0], layout] = code
    return found


def pairs_in(table: Any) -> list[tuple[str, int, str, float]]:
    """Returns the rows of what any engine calls a table."""
    if isinstance(table, pa.Table):
        rows = [tuple(row.values()) for row in table.to_pylist()]
    elif isinstance(table, pl.DataFrame):
        rows = table.rows()
    elif isinstance(table, pd.DataFrame):
        rows = list(table.itertuples(index=False, name=None))
    elif isinstance(table, duckdb.DuckDBPyRelation):
        rows = table.fetchall()
    else:
        rows = [tuple(row) for row in table.collect()]
    return sorted(rows)


def names_in(table: Any) -> list[str]:
    return list(table.column_names if isinstance(table, pa.Table) else table.columns)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_pages_code_reads_what_was_written(
    engine: str, published: tuple[str, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "Spark":
        pytest.importorskip("pyspark", reason="pyspark is not installed: pip install -r requirements-spark.txt")
        monkeypatch.setitem(os.environ, "SPARK_LOCAL_IP", "127.0.0.1")
    layout, folder, files = published
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(snippets()["Reading the latest release", ""], names)
    assert [str(Path(file).absolute()) for file in names["files"]] == files
    names["files"] = files  # Spark's other process stays where the first test was.
    exec(snippets()[engine, layout], names)
    assert names_in(names["table"]) == ["user_id", "rank", "item_id", "score"]
    assert pairs_in(names["table"]) == pairs_of(made_rows())


def test_the_page_has_code_for_every_engine_and_layout() -> None:
    assert {key for key in snippets() if key[0] in ENGINES} == {(engine, layout) for engine in ENGINES for layout in LAYOUTS}


def users_of(rows: list[Row], layout: str) -> dict[str, tuple[str, int, datetime | None]]:
    return {
        row["user_id"]: (row["source"], row["history_length"], row["scored_at"])
        for row in rows
        if row["recommendations"] or layout == NESTED
    }


def test_every_engine_sees_the_same_types(published: tuple[str, Path, list[str]]) -> None:
    layout, _, files = published
    expected = users_of(made_rows(), layout)
    columns = ["user_id", "source", "history_length", "scored_at"]
    relation = duckdb.sql(f"SELECT {', '.join(columns)} FROM read_parquet($files)", params={"files": files})
    assert relation is not None
    tables = {
        "DuckDB": relation.to_arrow_table(),
        "Polars": pl.read_parquet(files, columns=columns).to_arrow(),
        "pandas": pa.Table.from_pandas(pd.read_parquet(files, columns=columns), preserve_index=False),
        "PyArrow": pq.read_table(files[0].rpartition("/")[0], columns=columns),
    }
    for engine, table in tables.items():
        assert {
            row["user_id"]: (row["source"], row["history_length"], row["scored_at"]) for row in table.to_pylist()
        } == expected, engine
        assert pa.types.is_timestamp(table.schema.field("scored_at").type), engine
        assert table.schema.field("scored_at").type.tz, engine


def test_a_user_without_items_has_an_empty_list_or_no_row(published: tuple[str, Path, list[str]]) -> None:
    layout, _, files = published
    (user,) = (row["user_id"] for row in made_rows() if not row["recommendations"])
    found = pa.concat_tables(pq.read_table(file) for file in files).filter(pa.compute.field("user_id") == user).to_pylist()
    assert [row.get("recommendations") for row in found] == ([] if layout == LONG else [[]])
