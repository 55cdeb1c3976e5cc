"""What the page of a release is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from schemas.release_manifest import Release
from transforms.report.numbers import (
    Row,
)
from transforms.train.curves import CurveRow


@dataclass(frozen=True)
class Report:
    """What a report is made from.

    Attributes:
      release: what its manifest says.
      curves: for each model: what it is, and its curve.
      described: rows of what `DescribeTable` wrote, by dataset; empty for a release that was never described.
    """

    release: Release
    curves: Sequence[tuple[str, Sequence[CurveRow]]] = ()
    described: Mapping[str, Sequence[Row]] = field(default_factory=dict)
