"""Names of what lies below the output root, as they are let in from a file that somebody may have altered.

A name becomes a path, and a path is read, or deleted with all that is below it. So none leads out of the root, none is two, and
none holds what a pattern of files would take for "any".
"""

from schemas.shape import Text

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}"
_FILE = r"[A-Za-z0-9_][A-Za-z0-9._=+-]*"
_ATTEMPT = rf"stages/{_NAME}/attempt-{_NAME}"

NAME = Text("a name of letters, digits, '.', '_' and '-'", _NAME)
"""Of a release, a stage, a fingerprint, a lease: one folder or file."""

STAGE = Text("a stage's folder, such as stages/train-0123456789abcdef", rf"stages/{_NAME}")

ATTEMPT = Text("an attempt's folder, such as stages/train-0123456789abcdef/attempt-0123456789ab", _ATTEMPT)

FILE = Text("a file's path below its folder, such as topk/part-000000.parquet", rf"{_FILE}(/{_FILE})*")

FILE_OF_ATTEMPT = Text("the path of an attempt's file, relative to the output", rf"{_ATTEMPT}(/{_FILE})+")

TOPK = Text(
    "a table's file, such as stages/recommend-0123456789abcdef/attempt-0123456789ab/topk/part-000000.parquet",
    rf"{_ATTEMPT}/topk/part-[0-9]{{6}}([_-][0-9]{{6}})?\.parquet",
)

FOLDER = Text("the folder of a stage or a release, such as stages/train-0123456789abcdef", rf"(stages|releases)/{_NAME}")
"""What a lease is on."""

SHA256 = Text("a SHA-256, 64 hex digits", "[0-9a-f]{64}")

TIME = Text("a time in UTC, such as 2026-01-31T09:30:00.000Z", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
"""ISO 8601, to the millisecond, so that text sorts as time."""
