"""Makes small ratings with a taste in them: users of one half like items of the same half."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ODD_IDS = ["007", "7", "with space", 'quo"te', "new\nline", "emoji 🙂", "x" * 10_000, "<script>alert(1)</script>"]
"""User and item ids that must survive the whole way."""


def ratings(num_users: int = 60, num_items: int = 40, seed: int = 0) -> list[tuple[str, str, float, int]]:
    """Returns rows of (user_id, item_id, rating, timestamp), the odd ids among them."""
    rng = np.random.default_rng(seed)
    users = [*ODD_IDS, *(f"u{i}" for i in range(num_users - len(ODD_IDS)))]
    items = [*ODD_IDS, *(f"i{i}" for i in range(num_items - len(ODD_IDS)))]
    rows = []
    for at, user in enumerate(users):
        weights = np.where(np.arange(num_items) % 2 == at % 2, 10.0, 1.0)
        chosen = rng.choice(num_items, int(rng.integers(5, 15)), replace=False, p=weights / weights.sum())
        stars = rng.integers(1, 6, len(chosen)).astype(float)
        times = rng.integers(1_500_000_000, 1_600_000_000, len(chosen))
        rows += [
            (user, items[item], star, time) for item, star, time in zip(chosen, stars.tolist(), times.tolist(), strict=True)
        ]
    return rows


def write_csv(path: Path, header: list[str], rows: list[tuple]) -> Path:
    """Writes a CSV file, quoting what needs it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def write_ratings(folder: Path, **arguments: int) -> Path:
    """Writes `ratings` to ratings.csv."""
    return write_csv(folder / "ratings.csv", ["user_id", "item_id", "rating", "timestamp"], ratings(**arguments))


def write_items(folder: Path, num_items: int = 40) -> Path:
    """Writes items with titles and genres to items.csv; one of them nobody has rated."""
    ids = [*ODD_IDS, *(f"i{i}" for i in range(num_items - len(ODD_IDS))), "unrated"]
    rows = [(each, f"Title of {each[:20]} <b>é</b>", "a|b") for each in ids]
    return write_csv(folder / "items.csv", ["item_id", "title", "genres"], rows)


def with_flags(flags: Sequence[str], *changes: str) -> list[str]:
    """Returns a command line in which `changes`, as `--name=value` each, stand in place of flags of the same names."""
    named = {change.partition("=")[0] for change in changes}
    return [*(flag for flag in flags if flag.partition("=")[0] not in named), *changes]
