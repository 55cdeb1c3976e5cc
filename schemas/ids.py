"""Ids that are whole numbers and were written as floats: text has no types, and `7.0` in it is what pandas writes of 7."""

import pyarrow as pa
import pyarrow.compute as pc

_ZERO_FRACTION = r"^(0|-?[1-9][0-9]*)\.0$"
"""What a whole number below 10^16 looks like after Python or pandas wrote it as a float; the group is the number."""

_EXPONENT = r"^-?[1-9](\.[0-9]+)?e\+[0-9]{2}$"
"""What a larger one looks like."""

_LARGEST = 2.0**63
"""Floats from here on are no 64-bit integers, and stay as they are."""


def as_whole_numbers(ids: pa.Array) -> pa.Array:
    """Returns [n] string ids, `7.0` as `7` and `1e+16` in full, others, null and empty ones among them, as they were."""
    if pc.any(pc.ends_with(ids, ".0")).as_py():
        ids = pc.replace_substring_regex(ids, _ZERO_FRACTION, r"\1")
        ids = pc.if_else(pc.equal(ids, "-0.0"), "0", ids)
    if pc.any(pc.match_substring(ids, "e+")).as_py():
        large = pc.fill_null(pc.match_substring_regex(ids, _EXPONENT), False)
        floats = pc.if_else(large, ids, "0").cast(pa.float64())
        large = pc.and_(large, pc.less(pc.abs(floats), _LARGEST))
        ids = pc.if_else(large, pc.if_else(large, floats, 0.0).cast(pa.int64()).cast(pa.string()), ids)
    return ids


def as_whole_number(text: str) -> str:
    """Returns one id as `as_whole_numbers` does."""
    return str(as_whole_numbers(pa.array([text], pa.string()))[0].as_py())
