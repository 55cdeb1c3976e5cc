"""Finds the lists of some users in the table that is served, reading no more of it than their rows."""

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.lifecycle.why import Explainer, Why
from pipelines.stages.outputs import IngestOutputs
from schemas.errors import InputError
from schemas.manifest import StageManifest, read_manifest, users_of
from schemas.parquet_files import find_rows
from schemas.release import Latest, read_latest, read_release
from schemas.release_manifest import Release
from schemas.storage import join
from schemas.workspace import Workspace
from transforms.io.partition import bucket_of
from transforms.io.write import part_of
from transforms.lists.table import find_lists


@dataclass(frozen=True)
class Published:
    """The latest release, opened for reading.

    Attributes:
      workspace: where it is.
      release: its name.
      topk: the full paths of the table's files.
      ingest: the manifest of the stage that knows items.
      stages: all its stages, by their names, as its manifest tells of them.
    """

    workspace: Workspace
    release: str
    topk: list[str]
    ingest: StageManifest
    stages: Mapping[str, StageManifest]

    def stage(self, name: str) -> StageManifest:
        """Returns the manifest of one of its stages.

        Raises:
          InputError: if it is gone.
        """
        return _stage_of(self.workspace, self.release, name, self.stages[name])

    @cached_property
    def users(self) -> StageManifest:
        """The manifest of the stage that knows users: that of the lists, where one of them names any."""
        lists = {"lists": self.stage("lists")} if "lists" in self.stages else {}
        return users_of({"ingest": self.ingest, **lists})

    def topk_of(self, user_ids: Sequence[str]) -> pa.Table:
        """Returns rows of TOPK of some users, in whatever layout, reading only the files and row groups that can hold them."""
        ids = pa.array(user_ids, pa.string())
        return pa.Table.from_batches([find_lists(self._files_of(self.topk, ids), ids)])

    def users_of(self, user_ids: Sequence[str]) -> pa.Table:
        """Returns the histories of some users."""
        ids = pa.array(user_ids, pa.string())
        return find_rows(self._files_of(self._paths_of(self.users, "users"), ids), "user_id", ids)

    def titles_of(self, item_ids: Sequence[str]) -> dict[str, str]:
        """Returns the title of each item that has one."""
        if not item_ids:
            return {}
        paths = self._paths_of(self.ingest, "items")
        found = find_rows(paths, "item_id", pa.array(item_ids, pa.string()), ["item_id", "title"])
        titled = found.filter(pc.is_valid(found["title"]))
        return dict(zip(titled["item_id"].to_pylist(), titled["title"].to_pylist(), strict=True))

    def items_of(self, item_ids: Sequence[str]) -> list[str]:
        """Returns those of some items that are in the catalogue."""
        paths = self._paths_of(self.ingest, "items")
        return find_rows(paths, "item_id", pa.array(item_ids, pa.string()), ["item_id"])["item_id"].to_pylist()

    def _paths_of(self, stage: StageManifest, dataset: str) -> list[str]:
        paths = stage.paths(self.workspace.root, dataset)
        if not paths:
            raise InputError(f"release {self.release} names no {dataset} of its stage {stage.stage}: publish again")
        return paths

    def _files_of(self, paths: list[str], user_ids: pa.Array) -> list[str]:
        """Returns the files that can hold some users, at least one."""
        wanted = set(bucket_of(user_ids, IngestOutputs.of(self.ingest).num_buckets).tolist())
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


def open_release(workspace: Workspace, latest: Latest, release: Release) -> Published:
    """Opens a release for reading.

    Raises:
      InputError: if a file that it needs is gone.
    """
    stages = release.stages
    ingest = _stage_of(workspace, latest.release, "ingest", stages["ingest"])
    return Published(workspace, latest.release, [join(workspace.root, file) for file in latest.topk], ingest, stages)


def _stage_of(workspace: Workspace, release: str, name: str, told: StageManifest) -> StageManifest:
    """Returns a stage as the release tells of it: its own manifest has no checksum for its settings and metrics.

    Where the stage was made again since, in another folder, and came to the same, its files are there. Releases of schema
    version 1 left the files to the stage's manifest.
    """
    path = workspace.manifest(name, told.fingerprint)
    found = read_manifest(path)
    if found is None:
        raise InputError(f"release {release} needs {path}, which is gone: publish again")
    if found.digest != told.digest:
        raise InputError(f"release {release} needs other files of {name} than {path} names: publish again")
    if told.files and found.folder == told.folder:
        return told
    return replace(found, settings=told.settings, metrics=told.metrics, outputs=told.outputs)


def list_of(published: Published, user_id: str) -> tuple[dict, list[tuple[str, str, float]]]:
    """Returns a user's row of the table and its items: (item_id, title or '', score), best first.

    Raises:
      InputError: if the release has no such user.
    """
    (row,) = _rows_of(published, [user_id]).values()
    titles = published.titles_of([each["item_id"] for each in row["recommendations"]])
    return row, [(each["item_id"], titles.get(each["item_id"], ""), each["score"]) for each in row["recommendations"]]


def _rows_of(published: Published, user_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns the rows of the table of some users, by their ids.

    Raises:
      InputError: if the release has no such user.
    """
    rows = {row["user_id"]: row for row in published.topk_of(user_ids).to_pylist()}
    unknown = [each for each in user_ids if each not in rows]
    if unknown:
        near = near_ids(unknown[0], lambda ids: published.topk_of(ids)["user_id"].to_pylist())
        raise InputError(
            f"user {', '.join(map(repr, unknown))} is not in release {published.release} ({published.users.rows('users'):,} "
            f"users){near}: check --user; ids are text, so 7 and 007 are two users"
        )
    return rows


@dataclass(frozen=True)
class FoundUser:
    """A user of a release.

    Attributes:
      row: of TOPK.
      user: of USERS, with one row.
      titles: of the items in the list and in the history, where they have one.
      why: why an item is in the list, or is not; None where nobody asked.
    """

    row: Mapping[str, Any]
    user: pa.Table
    titles: Mapping[str, str]
    why: Why | None = None

    @property
    def history(self) -> list[str]:
        """The items in the history, the latest first."""
        return self.user["history"].to_pylist()[0][::-1]

    def described(self, top: int | None) -> dict[str, Any]:
        """Returns all of it as JSON; of the list and of the history so many items, or all."""
        scored_at = self.row["scored_at"]
        pairs = self.row["recommendations"][:top]
        return {
            "user_id": self.row["user_id"],
            "source": self.row["source"],
            "scored_at": scored_at.isoformat() if scored_at else None,
            "history_length": self.row["history_length"],
            "recommendations": [
                {"rank": rank, "item_id": each["item_id"], "title": self.titles.get(each["item_id"]), "score": each["score"]}
                for rank, each in enumerate(pairs, 1)
            ],
            "history": [{"item_id": each, "title": self.titles.get(each)} for each in self.history[:top]],
            **({"why": asdict(self.why)} if self.why else {}),
        }


def look_up(published: Published, user_ids: Sequence[str], why: str | None = None) -> list[FoundUser]:
    """Finds users in a release, in their order, each once.

    Args:
      published: the release.
      user_ids: who, at least one.
      why: an item: whether each of them has it in the list, and why.

    Raises:
      InputError: if the release has no such user, or no such item.
    """
    user_ids = list(dict.fromkeys(user_ids))
    rows = _rows_of(published, user_ids)
    if why is not None and not published.items_of([why]):
        near = near_ids(why, published.items_of)
        raise InputError(
            f"item {why!r} is not in the catalogue of release {published.release} ({published.ingest.rows('items'):,} "
            f"items){near}: check --why; ids are text, so 7 and 007 are two items"
        )
    users = published.users_of(user_ids)
    place = {user_id: at for at, user_id in enumerate(users["user_id"].to_pylist())}
    found = [FoundUser(rows[each], users.slice(place[each], 1), {}) for each in user_ids]
    listed = {pair["item_id"] for each in found for pair in each.row["recommendations"]}
    titles = published.titles_of(sorted(listed.union(*(each.history for each in found))))
    explained: list[Why | None] = [None] * len(found)
    if why is not None:
        stages = {
            name: published.stage(name)
            for name in ("ingest", "lists", "train", "embed", "recommend")
            if name in published.stages
        }
        explainer = Explainer(published.workspace.root, stages, why)
        explained = [explainer.explain(each.row, each.user) for each in found]
    return [FoundUser(each.row, each.user, titles, reason) for each, reason in zip(found, explained, strict=True)]


def near_ids(wanted: str, find: Callable[[list[str]], Iterable[str]]) -> str:
    """Returns which ids there are that may have been meant, as a part of a sentence; '' where none is.

    Args:
      wanted: an id that is not there.
      find: returns those of some ids that are.
    """
    plain = wanted.strip()
    number = plain.removesuffix(".0")
    spelt = {plain, plain.lower(), plain.upper(), plain.capitalize(), number}
    spelt |= {unicodedata.normalize(form, plain) for form in ("NFC", "NFD")}
    if number.isdecimal():
        spelt |= {number.lstrip("0") or "0", *(number.lstrip("0").zfill(width) for width in range(1, 13))}
    there = sorted(find(sorted(spelt - {wanted}))) if spelt - {wanted} else []
    return f"; there is {' and '.join(map(repr, there))}" if there else ""
