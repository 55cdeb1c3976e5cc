"""Equal towers give equal files, whatever else their process has traced; and the files compute what they did."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from transforms.train import served_ids, user_towers

ROOT = Path(__file__).parent.parent
USERS, ITEMS = pa.array([f"u{at}" for at in range(7)]), pa.array([f"i{at}" for at in range(9)])
VECTORS = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)

MADE: dict[str, Callable[[Path], tf.Module]] = {
    "id": lambda scratch: user_towers.ServedVectors(USERS, VECTORS[:7], scratch),
    "history": lambda scratch: user_towers._ServedHistories(ITEMS, VECTORS, scratch),
    "id+history": lambda scratch: user_towers._ServedHistories(ITEMS, VECTORS, scratch, USERS, VECTORS[:7]),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def save(kind: str, folder: Path) -> dict[str, bytes]:
    served_ids.save_served(MADE[kind], folder)
    return contents(folder)


@pytest.mark.parametrize("kind", MADE)
def test_equal_towers_give_equal_files(kind: str, tmp_path: Path) -> None:
    first = save(kind, tmp_path / "first")
    for number in range(3):  # Which moves the numbers of all that is traced after it.
        tf.function(lambda x, number=number: x + number).get_concrete_function(tf.TensorSpec([None]))
    assert save(kind, tmp_path / "again") == first
    there = str(tmp_path / "there")
    code = f"from pathlib import Path; from tests.test_canonical_model import save; save({kind!r}, Path({there!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    assert contents(tmp_path / "there") == first


@pytest.mark.parametrize("kind", MADE)
def test_a_tower_computes_what_it_did(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(served_ids, "make_canonical", lambda folder: None)
        save(kind, tmp_path / "plain")
    save(kind, tmp_path / "canonical")
    asked = {"ids": tf.constant(["u3", "nobody"])}
    if kind != "id":
        asked |= {"history": tf.constant(["i1", "i5", "none"]), "history_lengths": tf.constant([2, 1], tf.int64)}
    found = []
    for name in ("plain", "canonical"):
        signature = tf.saved_model.load(str(tmp_path / name)).signatures["serving_default"]
        wanted = signature.structured_input_signature[1]
        answer = signature(**{each: value for each, value in asked.items() if each in wanted})
        found.append({each: value.numpy() for each, value in answer.items()})
    assert found[0].keys() == found[1].keys()
    for each, value in found[0].items():
        np.testing.assert_array_equal(value, found[1][each])
    assert any(np.abs(value).sum() > 0 for value in found[0].values())
