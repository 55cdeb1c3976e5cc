"""Ids that are whole numbers and were written as floats: text has no types, and `7.0` in it is what pandas writes of 7."""

import re

ZERO_FRACTION = r"^(0|-?[1-9][0-9]*)\.0$"
"""What a whole number below 10^16 looks like after Python or pandas wrote it as a float; the group is the number."""

EXPONENT = r"^-?[1-9](\.[0-9]+)?e\+[0-9]{2}$"
"""What a larger one looks like."""

LARGEST = 2.0**63
"""Floats from here on are no 64-bit integers, and stay as they are."""


def as_whole_number(text: str) -> str:
    """Returns '7' for '7.0', and any other text as it is."""
    found = re.match(ZERO_FRACTION, text)
    if found:
        return found[1]
    if text == "-0.0":
        return "0"
    return str(int(float(text))) if re.match(EXPONENT, text) and abs(float(text)) < LARGEST else text
