"""Fits a model: a given number of passes over the training rows, with a learning rate that falls to nothing.

TensorFlow is imported when a fit is made, not before.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from schemas.errors import InputError
from transforms.train.batches import group_starts, shuffled_groups, steps_of
from transforms.train.checkpoints import Checkpoint, TrainingState
from transforms.train.pace import Standing
from transforms.train.recency import (
    AFFINITY_WEIGHTS,
    PLAIN,
    Blend,
    BlendResult,
    blends_to_try,
    choose,
    item_bias,
    lift_items,
    lift_users,
)
from transforms.train.rows import TrainingRows
from transforms.train.settings import TrainingSettings
from transforms.train.spectral import spectral_start
from transforms.train.validation import Quality, Validation, qualities_of

if TYPE_CHECKING:
    import tensorflow as tf

    from transforms.train.towers import TwoTowers

FULL = "full"
"""The phase that trains on every row."""

_SCORES_TO_CHOOSE_BY = 1 << 24

_FEWEST_TO_CHOOSE_BY = 300
"""A blend is chosen by no more users than give so many scores each time, but not by fewer than so many."""

_SCORES_AN_EPOCH = 1 << 22
"""Quality is measured after each epoch where that takes no more scores than these, else after the last one."""

_STEPS_A_CALL = 64

_FEWEST_GROUPS_OF_HISTORIES = 4
"""Where the vectors of users are made of their histories, a step learns from no more than a part of one, and sees the rest."""


class Fit:
    """A model under training, and its optimizer. It can begin again, with another weight of L2: what was compiled is kept.

    Args:
      rows: what it is trained on.
      settings: how.
      dim: of the vectors.
      num_epochs: passes over the rows.
    """

    def __init__(self, rows: TrainingRows, settings: TrainingSettings, dim: int, num_epochs: int) -> None:
        from transforms.train import towers

        self.model = make_model(rows, settings, dim)
        self._starts = starts_of_groups(rows, settings)
        self._batch = settings.batch_of(len(self._starts) - 1)
        self.num_steps = steps_an_epoch(rows, settings)
        self.num_epochs = num_epochs
        self.dim = dim
        self.model.optimizer = towers.SparseAdam(
            settings.learning_rate, num_epochs * self.num_steps, self.model.user_tower.seldom
        )
        self.model.optimizer.build(self.model.trainable_variables)
        self.steps_done = 0
        self._rows, self._settings = rows, settings
        self._start = spectral_start(rows, dim, settings.seed)
        self._first = [variable.numpy() for variable in self.model.trainable_variables]

    def begin(self, l2: float, phase: str, progress: TrainingState) -> None:
        """Begins anew.

        Args:
          l2: the weight of the penalty.
          phase: what this training is called.
          progress: where it stands.
        """
        self.restore(self._first)
        for variable in self.model.optimizer.variables:
            # The learning rate is one of them: the optimizer sets it by the number of steps.
            variable.assign(np.zeros(variable.shape, variable.dtype.as_numpy_dtype))
        for tower in (self.model.user_tower, self.model.item_tower):
            tower.begin(self._start)
        self.model.l2.assign(l2)
        self._phase, self._progress = phase, progress

    def weights(self) -> list[np.ndarray]:
        """Returns what the model has learned."""
        return [variable.numpy() for variable in self.model.trainable_variables]

    def restore(self, weights: Sequence[np.ndarray]) -> None:
        """Goes back to what `weights` returned."""
        for variable, value in zip(self.model.trainable_variables, weights, strict=True):
            variable.assign(value)

    def _variables(self) -> list["tf.Variable"]:
        return [*self.model.trainable_variables, *self.model.optimizer.variables]

    def checkpoint(self, best: list[np.ndarray]) -> Checkpoint:
        """Returns where the training stands; one that has failed never takes the place of a good one.

        Args:
          best: the weights of the best of the trainings before.
        """
        variables = [variable.numpy() for variable in self._variables()]
        self._check(variables)
        return Checkpoint(self._progress, variables, best)

    def _check(self, variables: list[np.ndarray]) -> None:
        if not all(np.isfinite(variable).all() for variable in variables):
            self._fail(self._progress.step - 1, "vectors")

    def resume(self, checkpoint: Checkpoint) -> None:
        """Takes over the weights and the optimizer of an earlier attempt."""
        for variable, value in zip(self._variables(), checkpoint.variables, strict=True):
            variable.assign(value)

    def run(self, validation: Validation | None, blends: Sequence[Blend] = (PLAIN,)) -> Iterator[None]:
        """Trains; yields wherever it could go on from a checkpoint.

        Args:
          validation: what it is validated on, if anything.
          blends: ways to make scores; an epoch is as good as the best of them.
        """
        progress = self._progress
        while progress.epoch < self.num_epochs:
            for losses in self._steps():
                progress.loss += float(losses.sum(dtype=np.float64))
                progress.step += len(losses)
                self.steps_done += len(losses)
                yield
            self._end_epoch(validation, blends)
            yield

    def standing(self, done_before: int, later: int, more_may_follow: bool) -> Standing:
        """Returns how far training has come.

        Args:
          done_before: steps of this attempt in other fits.
          later: steps that follow after this training.
          more_may_follow: whether other settings may be tried after these.
        """
        progress = self._progress
        return Standing(
            phase=self._phase,
            epoch=progress.epoch + (progress.step > 0 or not progress.epoch),
            num_epochs=self.num_epochs,
            more_may_follow=more_may_follow,
            step=progress.step if progress.step or not progress.epoch else self.num_steps,
            num_steps=self.num_steps,
            steps_done=done_before + self.steps_done,
            steps_left=max(0, (self.num_epochs - progress.epoch) * self.num_steps - progress.step) + later,
            curve=progress.curve,
        )

    def _steps(self) -> Iterator[np.ndarray]:
        """Does what is left of the epoch; yields [num_steps] float32, the losses, some steps at a time."""
        settings, progress, rows = self._settings, self._progress, self._rows
        num_candidates = settings.candidates_of(len(rows.item_ids))
        # All fits of a training take the rows in the same order: settings are compared, not luck.
        groups = shuffled_groups(rows.user, self._starts, np.random.default_rng([settings.seed, progress.epoch]))
        while progress.step < self.num_steps:
            numbers = range(progress.step, min(progress.step + _STEPS_A_CALL, self.num_steps))
            steps = steps_of(groups, self._batch, numbers.start, len(numbers))
            candidates = np.stack(
                [
                    np.random.default_rng([settings.seed, progress.epoch, step]).integers(0, len(rows.item), num_candidates)
                    for step in numbers
                ]
            )
            losses = self.model.train_steps(
                rows.user[steps.first], rows.item[steps.rows], steps.group, steps.rows, steps.bounds, rows.item[candidates]
            ).numpy()
            if not np.isfinite(losses).all():
                self._fail(progress.step + int(np.argmin(np.isfinite(losses))), "loss")
            yield losses

    def _end_epoch(self, validation: Validation | None, blends: Sequence[Blend]) -> None:
        """Adds a row to the curve, with the quality where that is measured."""
        progress = self._progress
        self._check([variable.numpy() for variable in self._variables()])
        quality = None
        is_last = progress.epoch + 1 == self.num_epochs
        if validation is not None and (is_last or len(validation.users) * len(self._rows.item_ids) <= _SCORES_AN_EPOCH):
            quality = max((Quality(**each.means) for each in self.values_of(blends, validation)), key=sum)
        progress.curve.append(
            {
                "phase": self._phase,
                "epoch": progress.epoch + 1,
                "loss": progress.loss / progress.step,
                "recall_at_100": quality.recall_at_100 if quality else None,
                "ndcg_at_10": quality.ndcg_at_10 if quality else None,
            }
        )
        progress.epoch += 1
        progress.step, progress.loss = 0, 0.0

    def values_of(self, blends: Iterable[Blend], validation: Validation) -> list[BlendResult]:
        """Returns what each of `blends` is worth with the weights as they are."""
        users, items = lift_users(self.model.user_tower.vectors_of(validation.users)), self.model.item_tower.vectors
        bias_of = cache(lambda blend: bias_of_served(self._rows, self._settings, blend))  # Tastes share it.
        return [
            BlendResult(
                blend,
                *qualities_of(
                    users, lift_items(items, blend.affinity_weight, bias_of(replace(blend, affinity_weight=1.0))), validation
                ),
            )
            for blend in blends
        ]

    def choose_blend(self, validation: Validation) -> dict[str, Any]:
        """Returns how scores are best made with the weights as they are."""
        num_users = max(_FEWEST_TO_CHOOSE_BY, _SCORES_TO_CHOOSE_BY // len(self._rows.item_ids))
        blends = blends_to_try(self._settings.half_life_days)
        return choose(self.values_of(blends, validation.some(num_users, len(self._rows.item_ids)))).report()

    def _fail(self, step: int, what: str) -> NoReturn:
        epoch = self._progress.epoch + 1
        raise InputError(
            f"the {what} must be finite, got nan or inf at step {step + 1} of epoch {epoch}: "
            f"lower --learning_rate, which is {self._settings.learning_rate:g}"
        )


def make_model(rows: TrainingRows, settings: TrainingSettings, dim: int) -> "TwoTowers":
    """Returns towers for the users and items of some rows, which have learned nothing yet; the arguments are those of Fit."""
    from transforms.train import item_towers, towers, user_towers

    seed = 4 * settings.seed
    num_users, num_items = len(rows.user_ids), len(rows.item_ids)
    with np.errstate(divide="ignore"):  # What is in no row is never drawn from them.
        log_probability = np.log(rows.rated.counts) - np.log(len(rows.item))
    histories = user_towers.Histories(rows.user, rows.item, num_users)
    return towers.TwoTowers(
        user_towers.make_user_tower(
            settings.user_tower, histories, num_items, dim, settings.history_sample, settings.id_dropout, seed
        ),
        item_towers.make_item_tower(
            rows.features if settings.looks_at_features else None, num_items, dim, settings.id_dropout, seed + 1
        ),
        log_probability,
        settings.mixed_negatives,
        seed,
        item_bias(rows.rated, PLAIN),
    )


def starts_of_groups(rows: TrainingRows, settings: TrainingSettings) -> np.ndarray:
    """Returns where each group of an epoch begins: see `transforms.train.batches`."""
    lengths = np.bincount(rows.user, minlength=len(rows.user_ids))
    fewest = 1 if settings.user_tower == "id" else _FEWEST_GROUPS_OF_HISTORIES
    return group_starts(lengths, settings.group_of(len(rows.user), int(np.count_nonzero(lengths))), fewest)


def steps_an_epoch(rows: TrainingRows, settings: TrainingSettings) -> int:
    """Returns how many steps an epoch takes; the few groups that do not fill the last one are left out, others each time."""
    num_groups = len(starts_of_groups(rows, settings)) - 1
    return num_groups // settings.batch_of(num_groups)


def bias_of_served(rows: TrainingRows, settings: TrainingSettings, blend: Blend) -> np.ndarray:
    """Returns [num_items] float32: `item_bias`, -inf for items that no row has, unless their features speak for them."""
    rated = rows.rated
    bias = item_bias(rated, blend)
    return bias if settings.looks_at_features else np.where(rated.counts > 0, bias, np.float32(-np.inf))


def opening_blends(rows: TrainingRows, validation: Validation | None, settings: TrainingSettings) -> list[Blend]:
    """Returns how scores are made while settings are chosen: as would be chosen for users without an affinity, with any weight.

    Raises:
      InputError: if recency is asked for and there are no times.
    """
    if settings.blend:
        return [settings.blend]
    if settings.recency == "on":
        if rows.timestamp is None:
            raise InputError(
                "recency on needs times, and the ratings have no timestamp column: "
                "name it with --columns timestamp=…, or use --recency auto"
            )
        return [Blend(recency=1.0, half_life_days=settings.half_life_days)]
    if settings.recency == "off" or rows.timestamp is None or validation is None:
        return [PLAIN]
    users = np.ones((len(validation.users), 1), np.float32)
    best = choose(
        [
            BlendResult(blend, *qualities_of(users, bias_of_served(rows, settings, blend)[:, np.newaxis], validation))
            for blend in blends_to_try(settings.half_life_days, [1.0])
        ]
    ).chosen.blend
    return [replace(best, affinity_weight=weight) for weight in AFFINITY_WEIGHTS] if best.recency else [best]
