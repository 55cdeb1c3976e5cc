"""The benchmark of training: made ratings are what they are said to be, and the whole runs at a small scale."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.training_speed import NUM_USERS, SETTINGS, epoch_seconds, made_rows, main
from schemas.errors import InputError
from tests.made_data import write_ratings

pytestmark = pytest.mark.slow
"""These run whole jobs, or programs of their own: `make test-slow` runs them, and so does CI."""


def test_made_rows_have_every_item_and_popular_ones() -> None:
    rows = made_rows(num_items=1_000, num_rows=50_000)
    counts = np.bincount(rows.item, minlength=1_000)
    assert len(rows.item_ids) == len(counts) == 1_000
    assert len(rows.user_ids) == NUM_USERS
    assert counts.min() >= 1
    # A law of 1 / rank gives the first tenth of a thousand items about two thirds of the rows.
    assert 0.55 < counts[:100].sum() / 50_000 < 0.75
    assert (np.diff(rows.user) >= 0).all()


def test_every_epoch_but_the_first_is_timed() -> None:
    settings = replace(SETTINGS, validation_fraction=0, epochs=4, batch_size=64)
    seconds = epoch_seconds(made_rows(20, 300), settings)
    assert len(seconds) == 3
    assert min(seconds) > 0


def test_a_catalogue_larger_than_its_rows_is_refused() -> None:
    with pytest.raises(InputError, match="a catalogue of 500 items needs as many rows, got 100: raise --made_rows"):
        main(["--ratings=none.csv", "--catalogues=50,500", "--made_rows=100"])


def test_the_benchmark_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ratings = write_ratings(tmp_path, num_users=40, num_items=130)
    saved = tmp_path / "speed.json"
    main([f"--ratings={ratings}", "--repeats=1", "--catalogues=50,200", "--made_rows=2000", f"--save={saved}"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [json.loads(line) for line in saved.read_text().splitlines()] == lines
    loops, quality, small, large = lines
    assert set(loops["examples_per_second"]) == {
        "tutorial, batches of 8,192",
        "tutorial, batches of 512",
        "Shortlist, batches of 512",
        "Shortlist, batches of 8,192",
    }
    assert loops["against_tutorial"]["tutorial, batches of 8,192"] == 1
    assert set(quality["top_100_accuracy"]) == {"tutorial", "Shortlist"}
    assert (small["items"], large["items"]) == (50, 200)
    assert small["against_first"] == 1
