"""How far a training has come, and how long it may yet take: in words, for those who wait."""

from typing import NamedTuple

from schemas.words import about
from transforms.train.curves import CurveRow


class Standing(NamedTuple):
    """How far a training has come.

    Attributes:
      phase: what this training is called.
      epoch: the one under way, from 1.
      num_epochs: of this training.
      more_may_follow: whether other settings may be tried after these.
      step: how many of the epoch's steps are done.
      num_steps: of the epoch.
      steps_done: by this attempt, in all trainings.
      steps_left: in all trainings, if no other settings are tried.
      curve: a row for each epoch that is done.
    """

    phase: str
    epoch: int
    num_epochs: int
    more_may_follow: bool
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
        text = f"{now.phase}: epoch {now.epoch} of {now.num_epochs}, step {now.step:,} of {now.num_steps:,}"
        if now.steps_done > done:
            left = now.steps_left * (seconds - began) / (now.steps_done - done)
            text += f", {about(left)} left" + (" if no other settings are tried" if now.more_may_follow else "")
        return f"{text}; {describe(now.curve[-1])}" if now.curve else text


def describe(row: CurveRow) -> str:
    """Returns a row of the curve in a few words."""
    loss = "nothing trained" if row["loss"] is None else f"loss {row['loss']:.4f}"
    text = f"{row['phase']}: epoch {row['epoch']}, {loss}"
    if row["recall_at_100"] is not None:
        text += f", Recall@100 {row['recall_at_100']:.4f}, NDCG@10 {row['ndcg_at_10']:.4f}"
    return text
