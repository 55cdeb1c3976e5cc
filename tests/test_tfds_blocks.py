"""TFDS read through its own MovieLens builder, which finds a small archive of ML-100K's layout in its download cache."""

import importlib.util
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from schemas.errors import InputError
from tests.test_sources import read
from transforms.ingest import tfds_blocks
from transforms.ingest.read_source import ReadBlocks
from transforms.ingest.sources import resolve_items, resolve_ratings

URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
ITEMS = {"1": ("Toy Story (1995)", ["Animation", "Children"]), "2": ("Misérables, Les (1995)", []), "3": ("Heat", ["Action"])}
GENRES = ["Unknown", "Action", "Adventure", "Animation", "Children"]
RATINGS = [(str(1 + row % 7), str(1 + row % 3), float(1 + row % 5), 881250949 + row) for row in range(50)]


def archive(path: Path) -> None:
    """Writes a zip laid out as ML-100K's."""
    users = "".join(f"{user}|24|M|technician|85711\n" for user in range(1, 8))
    items = ""
    for item, (title, genres) in ITEMS.items():
        flags = "|".join("1" if genre in genres else "0" for genre in GENRES)
        items += f"{item}|{title}|01-Jan-1995||http://imdb|{flags}{'|0' * 14}\n"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("ml-100k/u.user", users)
        out.writestr("ml-100k/u.item", items.encode("latin-1"))
        out.writestr("ml-100k/u.data", "".join(f"{user}\t{item}\t{rating:g}\t{at}\n" for user, item, rating, at in RATINGS))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    """A TFDS folder whose download cache holds the archive, under the checksum that TFDS has on record for its URL."""
    from tensorflow_datasets.core.download import resource

    root = tmp_path_factory.mktemp("tfds")
    checksum = tfds_blocks.open_builder("movielens/100k-ratings", str(root)).url_infos[URL].checksum
    cached = root / "downloads" / "movielens" / resource.get_dl_fname(URL, checksum)
    cached.parent.mkdir(parents=True)
    archive(cached)
    Path(f"{cached}.INFO").write_text(json.dumps({"dataset_names": ["movielens"], "urls": [URL]}))
    return str(root)


def test_ratings(data_dir, monkeypatch):
    monkeypatch.setattr(tfds_blocks, "MAX_ROWS", 8)
    source = resolve_ratings("tfds:movielens/100k-ratings", tfds_data_dir=data_dir)
    assert source.columns == {"user_id": "user_id", "item_id": "movie_id", "rating": "user_rating", "timestamp": "timestamp"}
    whole, malformed = read(source)
    assert malformed == []
    found = zip(*(whole[name].to_pylist() for name in ("user_id", "item_id", "rating", "timestamp")), strict=True)
    assert sorted(found) == sorted(RATINGS)
    assert whole["position"].to_pylist() == list(range(50))
    pieces, _ = read(source, piece_bytes=64 * 7)
    assert pieces.drop_columns(["source"]).equals(whole.drop_columns(["source"]))
    assert source.description()["files"] == [{"path": "tfds:movielens/100k-ratings/0.1.1/train", "size": 50}]


def test_items(data_dir):
    source = resolve_items("tfds:movielens/100k-movies:0.1.1", tfds_data_dir=data_dir)
    table, _ = read(source)
    assert table.column_names == ["item_id", "title", "movie_genres", "position", "source"]
    assert table.select(["movie_genres"]).schema.types == source.other_columns.types
    rows = {row["item_id"]: (row["title"], row["movie_genres"]) for row in table.to_pylist()}
    assert rows == ITEMS


def test_read_blocks(data_dir):
    source = resolve_ratings("tfds:movielens/100k-ratings", {"rating": ""}, data_dir)
    with TestPipeline("FnApiRunner") as pipeline:
        raw = pipeline | ReadBlocks(source, piece_bytes=64 * 20)
        users = raw.blocks | beam.FlatMap(lambda block: block["user_id"].to_pylist())
        assert_that(users, equal_to([row[0] for row in RATINGS]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("movielenz", "TFDS has no dataset 'movielenz': did you mean movielens"),
        ("xqzjkw/a", "see tensorflow.org/datasets/catalog"),
        ("movielens/100k-rating", "did you mean tfds:movielens/100k-ratings"),
        ("movielens/100k-ratings:9.9.9", "cannot be loaded at version 9.9.9"),
    ],
)
def test_names_that_tfds_does_not_know(name, message, tmp_path):
    with pytest.raises(InputError) as error:
        resolve_ratings(f"tfds:{name}", tfds_data_dir=str(tmp_path))
    assert message in str(error.value)


def test_without_a_network_it_fails_soon_and_says_what_to_do(tmp_path, monkeypatch):
    for scheme in ("http", "https"):  # A proxy that refuses: no test reaches out.
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")
    tfds_blocks.open_builder("movielens/100k-ratings", str(tmp_path))  # To import TFDS takes its time, and is not meant.
    start = time.monotonic()
    with pytest.raises(InputError) as error:
        resolve_ratings("tfds:movielens/100k-ratings", tfds_data_dir=str(tmp_path))
    assert time.monotonic() - start < 60  # With its own retries TFDS would take minutes.
    text = str(error.value)
    assert f"not prepared in {tmp_path}" in text
    assert "could not be downloaded" in text
    assert "pass its --tfds_data_dir, or give" in text
    assert "\n" not in text


def test_tfds_is_not_imported_before_it_is_asked_for():
    code = (
        "import sys, transforms.ingest.sources; sys.exit('tensorflow' in sys.modules or 'tensorflow_datasets' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert importlib.util.find_spec("tensorflow_datasets") is not None
