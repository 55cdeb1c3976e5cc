"""Writes numbers as people would: `1 file`, `2 files`, `about 3 minutes`."""

_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Returns '1 file', '1,682 files'.

    Args:
      count: how many there are.
      noun: of one.
      plural: of several, where it is not the noun with an s.
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def are(count: int) -> str:
    """Returns the verb that follows a count: 'is' or 'are'."""
    return "is" if count == 1 else "are"


def have(count: int) -> str:
    """Returns the verb that follows a count: 'has' or 'have'."""
    return "has" if count == 1 else "have"


def about(seconds: float) -> str:
    """Returns how long something takes, no more exactly than a guess deserves: 'about 3 minutes'."""
    for unit, noun in ((_DAY, "day"), (_HOUR, "hour"), (_MINUTE, "minute")):
        if seconds >= 1.5 * unit or unit == _MINUTE <= seconds:
            return f"about {counted(round(seconds / unit), noun)}"
    return "less than a minute"
