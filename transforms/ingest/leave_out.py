"""Leaves out the rows of whom and what is to be forgotten, right after they are read: nothing later knows of them.

A row whose user or item is to be forgotten goes, be it good or bad. A line that could not be split into columns may name one
in its text; whose row it was, nobody knows. It stays among the rejected, with its reason and its place, since a source of bad
lines must not pass for a good one; its text goes. An id stands in a text where no letter, digit or underscore touches it: `7`
stands in `7;11`, not in `17`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import Block
from schemas.forgotten import Forgotten
from transforms.ingest.validate import RawBlocks
from transforms.ingest.values import as_text

TEXT_LEFT_OUT = "(left out: it names a user or an item that is to be forgotten)"
"""What stands for the text of such a line."""

_WORDS = re.compile(r"\w+")


class Remaining(NamedTuple):
    """What is left of a source."""

    raw: RawBlocks
    left_out: beam.PCollection[int]
    """One element: how many rows are gone."""


@dataclass(frozen=True)
class Unwanted:
    """Whose rows are left out.

    Attributes:
      users: [n] string.
      items: [n] string.
    """

    users: pa.Array
    items: pa.Array

    @classmethod
    def of(cls, forgotten: Forgotten) -> "Unwanted":
        """Returns those who are to be forgotten."""
        return cls(pa.array(forgotten.users, pa.string()), pa.array(forgotten.items, pa.string()))

    def names(self, block: Block) -> np.ndarray:
        """Returns [n] bool: which rows of a block have such a user or item, whatever type of column its ids have."""
        named = np.zeros(block.num_rows, bool)
        for column, ids in (("user_id", self.users), ("item_id", self.items)):
            if len(ids) and column in block.schema.names:
                named |= pc.is_in(as_text(block[column]), ids).to_numpy(zero_copy_only=False)
        return named

    def without_texts(self, malformed: Block) -> Block:
        """Returns REJECTED rows; the text of those that name an id in it is `TEXT_LEFT_OUT`."""
        texts = malformed["text"].to_pylist()
        words = {word for text in texts if text for word in _WORDS.findall(text)}
        ids = {each for ids in (self.users, self.items) for each in ids.to_pylist()}
        # Only an id whose words are there can be there; most of a long list are not.
        there = [_standing(each) for each in sorted(ids) if words.issuperset(_WORDS.findall(each))]
        named = [
            text is not None and any(each.search(text) or each.search(text.replace('""', '"')) for each in there)
            for text in texts
        ]
        if not any(named):
            return malformed
        kept = pc.if_else(pa.array(named, pa.bool_()), TEXT_LEFT_OUT, malformed["text"])
        return malformed.set_column(malformed.schema.get_field_index("text"), malformed.schema.field("text"), kept)


def _standing(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(text)}(?!\w)")


class _LeaveOut(beam.DoFn):
    """Drops rows, and counts them."""

    def __init__(self, unwanted: Unwanted, has_texts: bool) -> None:
        self._unwanted = unwanted
        self._has_texts = has_texts

    def process(self, element: Block) -> Iterator[Any]:
        named = self._unwanted.names(element)
        count = int(named.sum())
        if count:
            yield beam.pvalue.TaggedOutput("left_out", count)
            element = element.filter(pa.array(~named))
        if element.num_rows:
            yield self._unwanted.without_texts(element) if self._has_texts else element


@dataclass
class LeaveOut(beam.PTransform):
    """Leaves rows out of what was read of a source.

    Attributes:
      unwanted: whose.
    """

    unwanted: Unwanted

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, raw: RawBlocks) -> Remaining:
        blocks, malformed = (
            rows
            | f"LeaveOut{name}"
            >> beam.ParDo(_LeaveOut(self.unwanted, has_texts))
            .with_output_types(Block, left_out=int)
            .with_outputs("left_out", main="rows")
            for name, rows, has_texts in (("Rows", raw.blocks, False), ("Malformed", raw.malformed, True))
        )
        counts = (
            (blocks.left_out, malformed.left_out) | "AllLeftOut" >> beam.Flatten() | "CountLeftOut" >> beam.CombineGlobally(sum)
        )
        return Remaining(RawBlocks(blocks.rows, malformed.rows), counts)
