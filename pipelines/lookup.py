"""Shows one user's list from the latest release: `python -m pipelines.lookup --output DIR --user 42`."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.command import Output, run_command
from pipelines.settings import OneLineParser, check_root
from schemas.errors import InputError
from schemas.manifest import StageManifest, read_manifest
from schemas.release import Latest, read_latest, read_release
from schemas.storage import find_rows, join
from schemas.workspace import Workspace
from transforms.partition import bucket_of
from transforms.table import find_lists
from transforms.write import part_of


@dataclass(frozen=True)
class Published:
    """The latest release, opened for reading.

    Attributes:
      workspace: where it is.
      release: its name.
      topk: the full paths of the table's files.
      ingest: the manifest of the stage that knows users and items.
    """

    workspace: Workspace
    release: str
    topk: list[str]
    ingest: StageManifest

    def topk_of(self, user_ids: Sequence[str]) -> pa.Table:
        """Returns rows of TOPK of some users, in whatever layout, reading only the files and row groups that can hold them."""
        ids = pa.array(user_ids, pa.string())
        return pa.Table.from_batches([find_lists(self._files_of(self.topk, ids), ids)])

    def users_of(self, user_ids: Sequence[str]) -> pa.Table:
        """Returns the histories of some users."""
        ids = pa.array(user_ids, pa.string())
        return find_rows(self._files_of(self.ingest.paths(self.workspace.root, "users"), ids), "user_id", ids)

    def titles_of(self, item_ids: Sequence[str]) -> dict[str, str]:
        """Returns the title of each item that has one."""
        if not item_ids:
            return {}
        found = find_rows(
            self.ingest.paths(self.workspace.root, "items"), "item_id", pa.array(item_ids, pa.string()), ["item_id", "title"]
        )
        titled = found.filter(pc.is_valid(found["title"]))
        return dict(zip(titled["item_id"].to_pylist(), titled["title"].to_pylist(), strict=True))

    def _files_of(self, paths: list[str], user_ids: pa.Array) -> list[str]:
        """Returns the files that can hold some users, at least one."""
        wanted = set(bucket_of(user_ids, self.ingest.metrics["num_buckets"]).tolist())
        return [path for path in paths if part_of(path) in wanted] or paths[:1]


def open_latest(workspace: Workspace) -> Published:
    """Opens the latest release.

    Raises:
      InputError: if there is none, or a file that it needs is gone.
    """
    latest = read_latest(workspace)
    if latest is None:
        raise InputError(f"there is no release below {workspace.root}: check --output, or run python -m pipelines.run first")
    return open_release(workspace, latest, read_release(workspace, latest))


def open_release(workspace: Workspace, latest: Latest, manifest: Mapping[str, Any]) -> Published:
    """Opens a release, given where it is and its manifest.

    Raises:
      InputError: if a file that it needs is gone.
    """
    path = join(workspace.root, manifest["stages"]["ingest"]["manifest"])
    ingest = read_manifest(path)
    if ingest is None:
        raise InputError(f"release {latest.release} needs {path}, which is gone: publish again")
    return Published(workspace, latest.release, [join(workspace.root, file) for file in latest.topk], ingest)


def list_of(published: Published, user_id: str) -> tuple[dict, list[tuple[str, str, float]]]:
    """Returns a user's row of the table and its items: (item_id, title or '', score), best first.

    Raises:
      InputError: if the release has no such user.
    """
    rows = published.topk_of([user_id]).to_pylist()
    if not rows:
        raise InputError(
            f"user {user_id!r} is not in release {published.release} ({published.ingest.rows('users'):,} users): "
            "check --user; ids are text, so 7 and 007 are two users"
        )
    titles = published.titles_of([each["item_id"] for each in rows[0]["recommendations"]])
    items = [(each["item_id"], titles.get(each["item_id"], ""), each["score"]) for each in rows[0]["recommendations"]]
    return rows[0], items


def show(published: Published, user_id: str, top: int, console: Console) -> None:
    """Prints a user's list."""
    row, items = list_of(published, user_id)
    table = Table(
        title=f"user {escape(user_id)}: {row['source']}, {row['history_length']} in the history", title_justify="left"
    )
    for name, justify in (("rank", "right"), ("item", "left"), ("title", "left"), ("score", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for rank, (item, title, score) in enumerate(items[:top], 1):
        table.add_row(str(rank), escape(item), escape(title), f"{score:.3f}")
    console.print(table)


def main(argv: Sequence[str]) -> None:
    parser = OneLineParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--output", required=True, help="the output root")
    parser.add_argument("--user", required=True, help="the user's id")
    parser.add_argument("--top", type=int, default=20, help="how many items to show (default 20)")
    flags: argparse.Namespace = parser.parse_args(list(argv))
    if flags.top < 1:
        raise InputError(f"top must be at least 1, got {flags.top}: raise --top")
    check_root(flags.output)
    show(open_latest(Workspace(flags.output)), flags.user, flags.top, Output())


if __name__ == "__main__":
    sys.exit(run_command(main))
