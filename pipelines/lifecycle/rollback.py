"""Points `LATEST` back to an earlier release, and keeps that what was served has been withdrawn.

First the release to be served is verified, then it is written down that the other is withdrawn, then the pointer moves. Dying
between the last two leaves a release that is served and withdrawn; the same command ends what was begun.
"""

from dataclasses import dataclass, replace

from pipelines.engine.lease import LeaseHolder
from pipelines.engine.stage import now
from pipelines.lifecycle.collect import folders_of
from pipelines.lifecycle.find_forgotten import find_forgotten
from pipelines.lifecycle.verify import verify_release
from schemas.errors import InputError
from schemas.forgotten import Forgotten, read_forgotten
from schemas.release import (
    Latest,
    Withdrawal,
    find_releases,
    find_withdrawals,
    pointer_to,
    read_latest,
    read_named,
    write_latest,
    write_withdrawal,
)
from schemas.release_manifest import PASSED
from schemas.storage import delete, join
from schemas.words import counted
from schemas.workspace import Workspace
from transforms.evaluate.verdicts import FAILED


@dataclass(frozen=True)
class RolledBack:
    """What a rollback did.

    Attributes:
      release: what is served now.
      before: what was served; None where the pointer named nothing that could be read.
      withdrawn: what a run must not serve again; None after going forward, which withdraws nothing.
    """

    release: str
    before: str | None
    withdrawn: str | None


def roll_back(workspace: Workspace, name: str | None = None, reason: str = "") -> RolledBack:
    """Serves another release.

    Going back withdraws what was served; going forward, to undo that, ends the withdrawal of what is served then.

    Args:
      workspace: the output.
      name: of the release to serve; by default the newest before the one that is served that passed its gates and was not
        withdrawn.
      reason: why.

    Raises:
      InputError: if there is no such release, it may not be served or names somebody who was forgotten, it is not whole, or
        another run publishes meanwhile.
    """
    if name == "":
        raise InputError("the release to serve is an empty text: name one, or leave it out to serve the last good one")
    with LeaseHolder(workspace, "releases rollback") as lease:
        return _roll_back(workspace, name, reason, lease)


def _roll_back(workspace: Workspace, name: str | None, reason: str, lease: LeaseHolder) -> RolledBack:
    latest = _pointer(workspace, must_be_read=name is None)
    seen = _Seen(latest, find_withdrawals(workspace), read_forgotten(workspace))
    before = latest.release if latest else None
    name = name or last_good(workspace, before)
    if latest and name == before and problem_of_pointer(workspace, latest) is None:
        raise InputError(
            f"release {name} is the one that is served: name another, which python -m pipelines.releases list shows"
        )
    lease.use(folders_of(workspace, read_named(workspace, name)))
    release = read_named(workspace, name)  # It might have been deleted until then.
    if release.status != PASSED:
        failed = [gate for gate, verdict in release.gates.items() if verdict.status == FAILED]
        raise InputError(
            f"release {name} failed its gates ({', '.join(failed)}) and may not be served: name another, or run the command "
            f"that made it with --force {(failed or ['GATE'])[0]}=REASON"
        )
    named = find_forgotten(workspace, release, seen.forgotten)
    if named:
        raise InputError(
            f"release {name} still has {counted(len(named.users), 'user')} and {counted(len(named.items), 'item')} "
            "that were forgotten since, so "
            "it may not be served: name another, or end that with python -m pipelines.releases forget --remember"
        )
    verdict = verify_release(workspace, release, before_serving=True)
    if verdict.problems:
        raise InputError(
            f"release {name} is damaged and cannot be served: {verdict.problems[0]}: name another, or restore "
            "its files from a copy"
        )
    if _Seen(_pointer(workspace), find_withdrawals(workspace), read_forgotten(workspace)) != seen:
        raise InputError(_MEANWHILE)
    withdrawn = before if before is not None and name < before else None
    if withdrawn:
        write_withdrawal(workspace, Withdrawal(withdrawn, _digest_of(workspace, withdrawn), name, now(), reason))
        if _pointer(workspace) != latest:
            if withdrawn not in {each.release for each in seen.withdrawals}:
                delete(join(workspace.root, workspace.withdrawal(withdrawn)))
            raise InputError(_MEANWHILE)
    write_latest(workspace, replace(pointer_to(workspace, release), rolled_back_from=before if before != name else None))
    delete(join(workspace.root, workspace.withdrawal(name)))
    return RolledBack(name, before, withdrawn)


_MEANWHILE = (
    "another release has been published or rolled back in the meantime, or somebody is to be forgotten since: look at it, and "
    "repeat this if need be"
)


@dataclass(frozen=True)
class _Seen:
    """What a rollback goes by, to be looked at again right before the pointer is written.

    Attributes:
      latest: what is served; None where the pointer cannot be read.
      withdrawals: what was rolled back.
      forgotten: who is to be left out.
    """

    latest: Latest | None
    withdrawals: list[Withdrawal]
    forgotten: Forgotten


def last_good(workspace: Workspace, before: str | None) -> str:
    """Returns the newest release before another one that passed its gates, and whose table was not withdrawn.

    Args:
      workspace: the output.
      before: the other one; with None, the newest of all.

    Raises:
      InputError: if there is none.
    """
    withdrawals = find_withdrawals(workspace)
    releases, tables = {each.release for each in withdrawals}, {each.digest for each in withdrawals}
    for found in find_releases(workspace):
        its_table = found.manifest.stages["recommend"].digest if found.manifest else None
        is_withdrawn = found.release in releases or its_table in tables
        if found.passed and not is_withdrawn and (before is None or found.release < before):
            return found.release
    where = f"before {before}" if before else f"below {workspace.root}"
    raise InputError(
        f"there is no release {where} that passed its gates and was not rolled back: name one that "
        "python -m pipelines.releases list shows, or publish a new one"
    )


def problem_of_pointer(workspace: Workspace, latest: Latest) -> str | None:
    """Returns why a pointer does not do, or None where it names a release that is there, and all its files."""
    try:
        release = read_named(workspace, latest.release)
    except InputError as error:
        return str(error)
    return None if pointer_to(workspace, release) == latest else "it names other files than the release has"


def _pointer(workspace: Workspace, must_be_read: bool = False) -> Latest | None:
    try:
        return read_latest(workspace)
    except InputError as error:
        if must_be_read:
            raise InputError(f"{error}; or name the release to serve, which writes it anew") from error
        return None


def _digest_of(workspace: Workspace, name: str) -> str | None:
    try:
        return read_named(workspace, name).stages["recommend"].digest
    except InputError:
        return None
