"""Forgets users and items: a new release without them, and every later run leaves them out.

First it is written down whom to leave out. Then the job of the served release is asked for again, with the model of that
release: what it reads is read without them, their lists are gone, the lists that held them are filled up again, and all others
are copied. The gates judge the new table as usual, and `LATEST` is replaced last.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from apache_beam.io.filesystem import BeamIOError
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.cli.logs import LOGGER
from pipelines.cli.read_flags import settings_of_job
from pipelines.engine.lease import LeaseHolder
from pipelines.engine.stage import now
from pipelines.job.prepare import Job
from pipelines.job.publishing import Outcome
from pipelines.job.reuse import find_base
from pipelines.job.runner import publish_when_judged, run
from pipelines.lifecycle.find_forgotten import NOBODY, Named, find_forgotten
from schemas.errors import GatesFailed, InputError
from schemas.forgotten import Forgotten, read_forgotten, write_forgotten
from schemas.ids import as_whole_number
from schemas.release import FoundRelease, find_releases, read_latest, read_release
from schemas.release_manifest import Release
from schemas.storage import exists, join, list_files, read_bytes
from schemas.workspace import Workspace


@dataclass(frozen=True)
class Remains:
    """What still holds somebody who was forgotten.

    Attributes:
      towers: folders of the served release's training, and of its exported model, relative to the output root; they have
        learned from whom was forgotten since.
      releases: the names of others that have rows or lists of them.
    """

    towers: tuple[str, ...]
    releases: tuple[str, ...]


@dataclass(frozen=True)
class Forgot:
    """What forgetting did.

    Attributes:
      before: the release that was served, None where none was.
      release: the one that is served now.
      unknown: those asked for, for the first time, that the release before had nothing of.
      served: what is served now.
      sources_changed: whether the new release is also of sources that have changed since the one before.
      remains: what is left of them, and where.
    """

    before: str | None
    release: str | None
    unknown: Named
    served: Release | None
    sources_changed: bool
    remains: Remains


def names_of(ids: list[str], file: str | None, kind: str) -> frozenset[str]:
    """Returns the ids that were given, and those of a file; of '7.0', '7' too, as which a text file's are read.

    Args:
      ids: some.
      file: one id a line, in UTF-8; None for none.
      kind: 'user' or 'item', for what is wrong.

    Raises:
      InputError: if the file cannot be read, or an id is empty or no UTF-8 text.
    """
    found = list(ids)
    if file is not None:
        flag = f"--{kind}s_file"
        if not exists(file):
            raise InputError(f"the file {file} does not exist: check {flag}")
        try:
            text = read_bytes(file).decode("utf-8-sig")
        except (OSError, BeamIOError, UnicodeDecodeError) as error:
            raise InputError(f"the file {file} cannot be read ({error}): {flag} takes UTF-8 text, one id a line") from error
        found += [line for line in (each.removesuffix("\r") for each in text.split("\n")) if line]
    for each in found:
        if not each.strip():
            raise InputError(f"an id must not be empty or white space, got {each!r}: check --{kind}")
        try:
            each.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the {kind} {each!r} is no UTF-8 text: check --{kind}") from error
    return frozenset(found) | frozenset(map(as_whole_number, found))


def _unknown(asked: frozenset[str], known: Collection[str]) -> frozenset[str]:
    """Returns who is not known under any name that was asked for."""
    as_floats = {as_whole_number(each) for each in asked if as_whole_number(each) != each}
    return frozenset(each for each in asked if each not in known and as_whole_number(each) not in known) - as_floats


def leave_out_from_now_on(workspace: Workspace, names: Named) -> Forgotten:
    """Writes down whom to leave out, and returns the whole list.

    Object stores have no locks: the list is read again until it has everyone, should another command write it at the same time.
    """
    while True:
        known = read_forgotten(workspace)
        wanted = known.with_others(names.users, names.items, now())
        if (wanted.users, wanted.items) == (known.users, known.items):
            return known
        write_forgotten(workspace, wanted)


def take_back(workspace: Workspace, names: Named) -> Named:
    """Takes some off the list again, and returns who of them was on it; they come back with the next run."""
    known = read_forgotten(workspace)
    left = known.without(names.users, names.items)
    if (left.users, left.items) != (known.users, known.items):
        write_forgotten(workspace, left)
    return Named(names.users & known.users.keys(), names.items & known.items.keys())


def forget(workspace: Workspace, names: Named, force: Sequence[str], options: PipelineOptions) -> Forgot:
    """Makes a release without some users and items, publishes it, and makes sure that nothing of it names them.

    Where what is served names nobody who is to be forgotten, no release is made.

    Args:
      workspace: the output.
      names: who.
      force: gates to override, NAME=REASON each.
      options: Beam's.

    Raises:
      InputError: if the list cannot be read, the job cannot be run again, or another run publishes meanwhile.
      GatesFailed: if the new table must not be published.
    """
    if not (exists(workspace.latest) or list_files(join(workspace.root, "stages", "*", "manifest.json"))):
        raise InputError(f"nothing was ever made below {workspace.root}: check --output, or run python -m pipelines.run first")
    with LeaseHolder(workspace, "releases forget") as lease:
        listed = read_forgotten(workspace)
        forgotten = leave_out_from_now_on(workspace, names)
        latest = read_latest(workspace)
        if latest is None:
            return Forgot(None, None, NOBODY, None, False, Remains((), ()))
        before = read_release(workspace, latest)
        there = find_forgotten(workspace, before, forgotten)
        # Who was on the list already may well be gone from what is served.
        unknown = Named(
            _unknown(names.users, there.users | listed.users.keys()), _unknown(names.items, there.items | listed.items.keys())
        )
        if not there:
            return Forgot(latest.release, latest.release, unknown, before, False, remains(workspace, before, forgotten))
        outcome = _saying_what_is_served(latest.release, lambda: _run(workspace, before, force, options, lease))
    leave_out_from_now_on(workspace, names)  # Should another command have written the list as it was before.
    changed = outcome.release.written["sources"] != before.written["sources"]
    served = read_latest(workspace)
    after = read_release(workspace, served) if served else outcome.release
    if find_forgotten(workspace, after, forgotten):
        raise InputError(
            f"another run has published release {after.name} in the meantime, which was begun before: run the same "
            "command again"
        )
    return Forgot(latest.release, after.name, unknown, after, changed, remains(workspace, after, forgotten))


def _run(workspace: Workspace, before: Release, force: Sequence[str], options: PipelineOptions, lease: LeaseHolder) -> Outcome:
    job = job_again(workspace, before, force)
    outcome = publish_when_judged(job, run(job, options, lease), options, lease)
    if outcome.failed:
        raise GatesFailed(outcome.failed)
    return outcome


def job_again(workspace: Workspace, release: Release, force: Sequence[str]) -> Job:
    """Returns the job that makes a release again from what its sources hold now, with its model.

    Raises:
      InputError: if the release does not say how it was made, or cannot be built on.
    """
    job = release.job
    if job is None:
        raise InputError(
            f"release {release.name} does not say which flags made it (an earlier version did, or single stages that "
            "were given no --ratings): run the command that made it again with --reuse_model_from LATEST, or train anew"
        )
    settings = settings_of_job(job, workspace.root, force=list(force), reuse_model_from=release.name)
    return Job(settings, find_base(settings))


def _saying_what_is_served(release: str, make: Callable[[], Outcome]) -> Outcome:
    """Makes sure that whoever sees an error knows that what is served still names those who were to be forgotten."""
    still = f"release {release} is still served, with those to be forgotten; the list of them is kept for every later run"
    try:
        return make()
    except GatesFailed as error:
        raise GatesFailed([*error.messages, still]) from error
    except InputError as error:
        raise InputError(f"{error} (relative paths are looked up from where this runs); {still}") from error
    except (Exception, KeyboardInterrupt):
        LOGGER.error("%s", still)
        raise


def remains(workspace: Workspace, release: Release, forgotten: Forgotten) -> Remains:
    """Returns what still holds somebody who was forgotten, beside the sources, which are not ours.

    Towers that began to learn before the last one was asked for may have learned from that one. Releases that cannot be read
    may hold anybody.

    Args:
      workspace: the output.
      release: the one that is served.
      forgotten: who.
    """
    last_asked = max([*forgotten.users.values(), *forgotten.items.values()], default="")
    is_old = any(name == "train" and stage.started_at < last_asked for name, stage in release.all_stages)
    towers = [stage.folder for name, stage in release.all_stages if is_old and name in ("train", "export")]
    others = [found for found in find_releases(workspace) if found.release != release.name]
    return Remains(tuple(towers), tuple(each.release for each in others if _may_name(workspace, each, forgotten)))


def _may_name(workspace: Workspace, found: FoundRelease, forgotten: Forgotten) -> bool:
    try:
        return found.manifest is None or bool(find_forgotten(workspace, found.manifest, forgotten))
    except InputError:
        return True
