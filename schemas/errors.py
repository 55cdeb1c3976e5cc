"""The exceptions for mistakes in the input, a setting or the result, as opposed to faults of the program."""

import errno
from collections.abc import Sequence


class InputError(ValueError):
    """A mistake in what the user gave; its message names the value, the rule and the repair, on one line.

    Command lines print the message alone and exit with code 2. The message is kept to one line so that it can be found again
    in the text of a worker's failure, which is all that most Beam runners bring back.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class _Refused(OSError):
    """What the machine or a storage would not do. Command lines print the message alone, on one line, and exit with code 1.

    Args:
      message: the whole message; `of` makes it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class WriteRefused(_Refused):
    """A file that the machine would not write: a full disk, a folder that is read-only. It is mended outside the program."""

    @classmethod
    def of(cls, path: str, error: Exception, verb: str = "write") -> "WriteRefused":
        """Returns the error that says what was refused, why, and what to do.

        Args:
          path: the file that was to be.
          error: what the file system said.
          verb: what was to be done to it.
        """
        number, said = getattr(error, "errno", None), getattr(error, "strerror", None)
        reason = f"[Errno {number}] {said}" if said else str(error)
        repair = _REPAIRS.get(number or 0, "correct that")
        return cls(f"cannot {verb} {path} ({reason}): {repair}, then run the same command again; finished stages are kept")


class ReadRefused(_Refused):
    """What a storage did not say or give: it is away, too busy, or forbids it. That is never taken for "nothing is there"."""

    @classmethod
    def of(cls, path: str, error: Exception) -> "ReadRefused":
        """Returns the error that says what could not be read, why, and what to do.

        Args:
          path: the file, or the pattern of those that were looked for.
          error: what the file system said.
        """
        number, said = getattr(error, "errno", None), getattr(error, "strerror", None)
        reason = f"[Errno {number}] {said}" if said else f"{type(error).__name__}: {error}"
        repair = _REPAIRS.get(_number_of(error), "wait until the storage answers")
        return cls(f"cannot read {path} ({reason}): {repair}, then run the same command again; finished stages are kept")


_REPAIRS = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room, or have the quota raised",
    errno.EROFS: "make it writable",
    errno.EACCES: "change its rights",
    errno.EPERM: "change its rights",
}


def _number_of(error: Exception) -> int:
    """Returns the operating system's number for an error; object stores have those of HTTP."""
    code = next((getattr(error, name) for name in ("errno", "code", "status_code") if hasattr(error, name)), None)
    return errno.EACCES if code in (401, 403) else code if isinstance(code, int) else 0


ONLY_OF_WRITING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""The numbers of those errors of the operating system that reading never meets."""


class GatesFailed(Exception):
    """A table that must not be published; command lines print each message and exit with code 3."""

    def __init__(self, messages: Sequence[str]) -> None:
        super().__init__("\n".join(messages))
        self.messages = [" ".join(message.split()) for message in messages]
