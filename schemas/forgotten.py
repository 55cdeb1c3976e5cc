"""Tombstones: the users and items that every run of an output leaves out, until somebody asks to have them back.

A list of whom to leave out has to remember them: the file holds their ids as plain text, and nothing else of them. What is
made without them carries a digest of the list, not the ids.
"""

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from schemas.errors import InputError
from schemas.ids import as_whole_number
from schemas.manifest import fingerprint_of
from schemas.names import TIME
from schemas.shape import Text, check_shape
from schemas.storage import exists, read_json, write_json
from schemas.workspace import Workspace

SCHEMA_VERSION = 1

_ID = Text("an id, as text that UTF-8 can write", r"[^\ud800-\udfff]+")

_SHAPE = {"users": [{"id": _ID, "asked_at": TIME}], "items": [{"id": _ID, "asked_at": TIME}], "salt": str}

_SALT_BYTES = 16


@dataclass(frozen=True)
class Forgotten:
    """Whom and what to leave out.

    Attributes:
      users: when each was asked for (UTC, ISO 8601), by id.
      items: the same of items.
      salt: makes the digest say nothing to whoever does not have the list: one id alone could else be guessed from it.
    """

    users: Mapping[str, str] = field(default_factory=dict)
    items: Mapping[str, str] = field(default_factory=dict)
    salt: str = ""

    @property
    def digest(self) -> str | None:
        """16 hex digits that stand for the ids; None where there are none."""
        if not (self.users or self.items):
            return None
        return fingerprint_of([self.salt, sorted(self.users), sorted(self.items)])

    def with_others(self, users: Collection[str], items: Collection[str], asked_at: str) -> "Forgotten":
        """Returns the list with some more; who is on it already keeps the time that it was asked first."""
        return replace(
            self,
            users=dict.fromkeys(users, asked_at) | dict(self.users),
            items=dict.fromkeys(items, asked_at) | dict(self.items),
            salt=self.salt or secrets.token_hex(_SALT_BYTES),
        )

    def without(self, users: Collection[str], items: Collection[str]) -> "Forgotten":
        """Returns the list without some."""
        return replace(
            self,
            users={each: at for each, at in self.users.items() if each not in users},
            items={each: at for each, at in self.items.items() if each not in items},
        )


def read_forgotten(workspace: Workspace) -> Forgotten:
    """Reads the list; where there is no file, nobody is to be forgotten.

    Raises:
      InputError: if it cannot be understood, or a newer program wrote it: whom it names must not slip through.
    """
    path = workspace.forgotten
    if not exists(path):
        return Forgotten()
    try:
        value = read_json(path)
        version = value["schema_version"]
        if version > SCHEMA_VERSION:
            raise InputError(
                f"{path} has schema version {version}, this program knows versions up to {SCHEMA_VERSION}: "
                "use the program that wrote it"
            )
        check_shape(value, _SHAPE)
        users, items = ({each["id"]: each["asked_at"] for each in value[name]} for name in ("users", "items"))
        return Forgotten(_with_whole_numbers(users), _with_whole_numbers(items), value["salt"])
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError, IsADirectoryError) as error:
        raise InputError(
            f"{path} does not say which users and items to leave out ({error!r}): restore it from a copy; to delete it would "
            "bring back everyone who was forgotten"
        ) from error


def _with_whole_numbers(ids: Mapping[str, str]) -> dict[str, str]:
    """Adds '7' to '7.0': what was asked for as a text file had it is left out as it is read."""
    return {as_whole_number(each): at for each, at in ids.items()} | dict(ids)


def write_forgotten(workspace: Workspace, forgotten: Forgotten) -> None:
    """Writes the list in one piece, over what it was before."""
    lists = {
        name: [{"id": each, "asked_at": at} for each, at in sorted(ids.items())]
        for name, ids in (("users", forgotten.users), ("items", forgotten.items))
    }
    write_json(workspace.forgotten, {"schema_version": SCHEMA_VERSION, **lists, "salt": forgotten.salt})
