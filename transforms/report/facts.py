"""What the page of a release is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transforms.report.numbers import (
    Row,
)
from transforms.train.curves import CurveRow


@dataclass(frozen=True)
class Report:
    """What a report is made from.

    Attributes:
      manifest: of the release.
      curves: for each model: what it is, its curve, and its best epoch, None without validation.
      described: rows of what `DescribeTable` wrote, by dataset; empty for a release that was never described.
    """

    manifest: Mapping[str, Any]
    curves: Sequence[tuple[str, Sequence[CurveRow], int | None]] = ()
    described: Mapping[str, Sequence[Row]] = field(default_factory=dict)
