"""How far a training has come, and how long it may yet take: in words, for those who wait."""

from typing import NamedTuple

from schemas.words import about
from transforms.train.curves import CurveRow


class Standing(NamedTuple):
    """How far a training has come.

    Attributes:
      phase: one of PHASES.
      epoch: the one under way, from 1.
      num_epochs: of the phase, at most.
      may_end_sooner: whether the phase ends when validation gets no better.
      step: how many of the epoch's steps are done.
      num_steps: of the epoch.
      steps_done: by this attempt, in all phases.
      steps_left: in all phases, if validation gets no better from now on.
      curve: a row for each epoch that is done.
    """

    phase: str
    epoch: int
    num_epochs: int
    may_end_sooner: bool
    step: int
    num_steps: int
    steps_done: int
    steps_left: int
    curve: list[CurveRow]


class Pace:
    """Says how far a training has come and how long it may yet take, from the steps that it has seen done."""

    def __init__(self) -> None:
        self._began: tuple[float, int] | None = None

    def describe(self, now: Standing, seconds: float) -> str:
        """Returns a line for those who wait.

        Args:
          now: how far the training is.
          seconds: the time, on any clock; the first steps, which wait for TensorFlow to compile, do not count.
        """
        began, done = self._began = self._began or (seconds, now.steps_done)
        most = "at most " if now.may_end_sooner else ""
        text = f"{now.phase}: epoch {now.epoch} of {most}{now.num_epochs}, step {now.step:,} of {now.num_steps:,}"
        if now.steps_done > done:
            left = now.steps_left * (seconds - began) / (now.steps_done - done)
            text += f", {about(left)} left" + (" if it gets no better" if now.may_end_sooner else "")
        return f"{text}; {describe(now.curve[-1])}" if now.curve else text


def describe(row: CurveRow) -> str:
    """Returns a row of the curve in a few words."""
    text = f"{row['phase']}: epoch {row['epoch']}, loss {row['loss']:.4f}"
    if row["recall_at_100"] is not None:
        text += f", Recall@100 {row['recall_at_100']:.4f}, NDCG@10 {row['ndcg_at_10']:.4f}"
    return text
