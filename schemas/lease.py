"""A lease: what a running command uses, or is about to delete, so that no other command deletes it meanwhile.

Object stores have no locks, but they show a file to whoever looks after it was written. So everyone first writes and then
looks: who wants to use a folder writes that, and then looks for those that delete it; who wants to delete one writes that, and
then looks for those that use it. Whichever wrote last sees the other. (Dekker's algorithm, with files for its flags.)
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from schemas.errors import InputError
from schemas.names import FOLDER, NAME, TIME
from schemas.shape import check_shape
from schemas.storage import join, list_files, read_json, write_json
from schemas.workspace import Workspace

SCHEMA_VERSION = 1

_SHAPE = {
    "lease": NAME,
    "command": str,
    "host": str,
    "started_at": TIME,
    "expires_at": TIME,
    "uses": [FOLDER],
    "deletes": [FOLDER],
}


@dataclass(frozen=True)
class Lease:
    """What one command uses, until when.

    Attributes:
      lease: its id.
      command: what runs, for people.
      host: where.
      started_at: when it began; UTC, ISO 8601.
      expires_at: when it counts no longer, unless it is written again before; UTC, ISO 8601.
      uses: folders, relative to the output root.
      deletes: folders that are about to be deleted.
    """

    lease: str
    command: str
    host: str
    started_at: str
    expires_at: str
    uses: tuple[str, ...] = ()
    deletes: tuple[str, ...] = ()


def write_lease(workspace: Workspace, lease: Lease) -> None:
    """Writes a lease in one piece, over what it was before."""
    write_json(join(workspace.root, workspace.lease(lease.lease)), {"schema_version": SCHEMA_VERSION, **asdict(lease)})


def read_leases(workspace: Workspace) -> list[Lease]:
    """Returns all leases, expired ones among them.

    Raises:
      InputError: if one cannot be understood: nobody knows then what is used.
    """
    found = []
    for file in list_files(join(workspace.root, workspace.lease("*"))):
        try:
            value = read_json(file.path)
            if value.pop("schema_version") != SCHEMA_VERSION:
                raise ValueError("another version of this program wrote it")
            check_shape(value, _SHAPE)
            if workspace.relative(file.path) != workspace.lease(value["lease"]):
                raise ValueError(f"it is the lease {value['lease']!r}")
            found.append(Lease(**value | {name: tuple(value[name]) for name in ("uses", "deletes")}))
        except FileNotFoundError:
            continue  # It has ended since the files were listed.
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{file.path} does not say which folders are in use ({error!r}): delete it once nothing runs here"
            ) from error
    return found


def living(leases: Iterable[Lease], now: str) -> list[Lease]:
    """Returns the leases that have not expired.

    Args:
      leases: some.
      now: UTC, ISO 8601, to the millisecond like the times in leases, so that text sorts as time.
    """
    return [lease for lease in leases if lease.expires_at > now]
