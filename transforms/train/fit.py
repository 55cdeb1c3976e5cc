"""Fits a model, epoch by epoch, validates it after each, and stops when it gets no better.

TensorFlow is imported when a fit is made, not before.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from schemas.errors import InputError
from transforms.train.checkpoints import Checkpoint, TrainingState
from transforms.train.pace import Standing
from transforms.train.recency import PLAIN, TASTES, Blend, BlendResult, blends_to_try, choose, item_bias, lift_items, lift_users
from transforms.train.rows import TrainingRows
from transforms.train.settings import TrainingSettings
from transforms.train.validation import Quality, Validation, qualities_of

if TYPE_CHECKING:
    import tensorflow as tf

PHASES = ("search", "full")
_SCORES_TO_CHOOSE_BY = 1 << 24

_FEWEST_TO_CHOOSE_BY = 300
"""A blend is chosen by no more users than give so many scores each time, but not by fewer than so many."""

_STEPS_A_CALL = 64

_ROWS_TOGETHER = 4
"""Rows of a user that stay together in an epoch, where the user's history is looked at."""


def epoch_order(user: np.ndarray, rows_together: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the order in which an epoch takes the training rows: at random, but for some rows of a user that stay together.

    What is computed once for each user of a batch then costs less.

    Args:
      user: [n] int32, ascending.
      rows_together: so many rows of the same user stand side by side, fewer where its rows run out.
      rng: what decides.

    Returns:
      [n] int32.
    """
    order = rng.permutation(len(user)).astype(np.int32)
    if rows_together == 1:
        return order
    order = order[np.argsort(user[order], kind="stable")]
    starts = np.searchsorted(user, user)
    group = np.cumsum((np.arange(len(user)) - starts) % rows_together == 0) - 1
    place = rng.permutation(group[-1] + 1)
    return order[np.argsort(place[group], kind="stable")]


class Fit:
    """A model under training, its optimizer, and its best weights so far.

    Args:
      rows: what it is trained on.
      settings: how.
      progress: where it stands.
      validation: what it is validated on, if anything.
      blends: ways to make scores; an epoch is as good as the best of them.
    """

    def __init__(
        self,
        rows: TrainingRows,
        settings: TrainingSettings,
        progress: TrainingState,
        validation: Validation | None,
        blends: Sequence[Blend] = (PLAIN,),
    ) -> None:
        from transforms.train import item_towers, towers, user_towers

        seed = 8 * settings.seed + 4 * progress.phase
        num_items = len(rows.item_ids)
        with np.errstate(divide="ignore"):  # What is in no row is never drawn from them.
            log_probability = np.log(rows.rated.counts) - np.log(len(rows.item))
        histories = user_towers.Histories(rows.user, rows.item, len(rows.user_ids))
        self.model = towers.TwoTowers(
            user_towers.make_user_tower(
                settings.user_tower,
                histories,
                num_items,
                settings.dim,
                settings.history_sample,
                settings.id_dropout,
                settings.l2_weight,
                seed,
            ),
            item_towers.make_item_tower(
                rows.features if settings.looks_at_features else None,
                num_items,
                settings.dim,
                settings.id_dropout,
                settings.l2_weight,
                seed + 1,
            ),
            log_probability,
            settings.mixed_negatives,
            seed,
            item_bias(rows.rated, PLAIN),
        )
        self.model.optimizer = towers.SparseAdam(settings.learning_rate)
        self.model.optimizer.build(self.model.trainable_variables)
        self.best = self._weights()
        self.steps_done = 0
        self._rows, self._settings, self._progress, self._validation = rows, settings, progress, validation
        self._blends = blends

    def _weights(self) -> list[np.ndarray]:
        return [variable.numpy() for variable in self.model.trainable_variables]

    def _variables(self) -> list["tf.Variable"]:
        return [*self.model.trainable_variables, *self.model.optimizer.variables]

    def checkpoint(self) -> Checkpoint:
        """Returns where the training stands; one that has failed never takes the place of a good one."""
        variables = [variable.numpy() for variable in self._variables()]
        self._check(variables)
        return Checkpoint(self._progress, variables, self.best)

    def _check(self, variables: list[np.ndarray]) -> None:
        if not all(np.isfinite(variable).all() for variable in variables):
            self._fail(self._progress.step - 1, "vectors")

    def resume(self, checkpoint: Checkpoint) -> None:
        """Takes over the weights and the optimizer of an earlier attempt."""
        for variable, value in zip(self._variables(), checkpoint.variables, strict=True):
            variable.assign(value)
        self.best = checkpoint.best

    def restore_best(self) -> None:
        """Goes back to the weights of the best epoch."""
        for variable, value in zip(self.model.trainable_variables, self.best, strict=True):
            variable.assign(value)

    def run(self, num_epochs: int) -> Iterator[None]:
        """Trains for `num_epochs`, or until validation gets no better; yields wherever it could go on from a checkpoint."""
        progress = self._progress
        while progress.epoch < num_epochs and not self._is_out_of_patience():
            for losses in self._steps():
                progress.loss += float(losses.sum(dtype=np.float64))
                progress.step += len(losses)
                self.steps_done += len(losses)
                yield
            self._end_epoch()
            yield

    def _is_out_of_patience(self) -> bool:
        return self._validation is not None and self._progress.epoch >= self._end_of_patience

    @property
    def _end_of_patience(self) -> int:
        """How many epochs are done when training ends, if none that is yet to come is better."""
        # Vectors begin near zero, where a list is what is popular, and the first that they learn may be worse than that.
        return max(self._progress.best_epoch, self._settings.patience) + self._settings.patience

    def standing(self, num_epochs: int, done_before: int, rows_later: int) -> Standing:
        """Returns how far training has come.

        Args:
          num_epochs: of this phase, at most.
          done_before: steps of this attempt in phases before.
          rows_later: of the phase that follows, which takes as many epochs as the best one took; 0 if none does.
        """
        progress, num_steps = self._progress, steps_an_epoch(len(self._rows.user), self._settings)
        validates = self._validation is not None
        last = min(num_epochs, self._end_of_patience) if validates else num_epochs
        later = max(1, progress.best_epoch) * steps_an_epoch(rows_later, self._settings) if rows_later else 0
        return Standing(
            phase=PHASES[progress.phase],
            epoch=progress.epoch + (progress.step > 0 or not progress.epoch),
            num_epochs=num_epochs,
            may_end_sooner=validates,
            step=progress.step if progress.step or not progress.epoch else num_steps,
            num_steps=num_steps,
            steps_done=done_before + self.steps_done,
            steps_left=max(0, (last - progress.epoch) * num_steps - progress.step) + later,
            curve=progress.curve,
        )

    def _steps(self) -> Iterator[np.ndarray]:
        """Does what is left of the epoch; yields [num_steps] float32, the losses, some steps at a time.

        An epoch leaves out the few rows that do not fill a batch: others each time.
        """
        settings, progress, rows = self._settings, self._progress, self._rows
        num_rows = len(rows.user)
        batch_size = min(settings.batch_size, num_rows)
        num_steps = steps_an_epoch(num_rows, settings)
        rng = np.random.default_rng([settings.seed, progress.phase, progress.epoch])
        order = epoch_order(rows.user, 1 if settings.user_tower == "id" else _ROWS_TOGETHER, rng)
        batches = order[: num_steps * batch_size].reshape(num_steps, batch_size)
        while progress.step < num_steps:
            chosen = batches[progress.step : progress.step + _STEPS_A_CALL]
            losses = self.model.train_steps(rows.user[chosen], rows.item[chosen], chosen).numpy()
            if not np.isfinite(losses).all():
                self._fail(progress.step + int(np.argmin(np.isfinite(losses))), "loss")
            yield losses

    def _end_epoch(self) -> None:
        """Validates, and adds a row to the curve."""
        progress, variables = self._progress, [variable.numpy() for variable in self._variables()]
        self._check(variables)
        quality = None
        if self._validation is not None:
            quality = max((Quality(**each.means) for each in self.values_of(self._blends, self._validation)), key=sum)
        progress.curve.append(
            {
                "phase": PHASES[progress.phase],
                "epoch": progress.epoch + 1,
                "loss": progress.loss / progress.step,
                "recall_at_100": quality.recall_at_100 if quality else None,
                "ndcg_at_10": quality.ndcg_at_10 if quality else None,
            }
        )
        progress.epoch += 1
        progress.step, progress.loss = 0, 0.0
        if quality and sum(quality) > progress.best_quality:
            progress.best_quality, progress.best_epoch = sum(quality), progress.epoch
            self.best = variables[: len(self.model.trainable_variables)]

    def values_of(self, blends: Iterable[Blend], validation: Validation) -> list[BlendResult]:
        """Returns what each of `blends` is worth with the weights as they are."""
        users, items = lift_users(self.model.user_tower.vectors_of(validation.users)), self.model.item_tower.vectors
        bias_of = cache(lambda blend: bias_of_served(self._rows, self._settings, blend))  # Tastes share it.
        return [
            BlendResult(
                blend, *qualities_of(users, lift_items(items, blend.taste, bias_of(replace(blend, taste=1.0))), validation)
            )
            for blend in blends
        ]

    def choose_blend(self) -> dict[str, Any]:
        """Returns how scores are best made with the weights as they are."""
        assert self._validation is not None
        num_users = max(_FEWEST_TO_CHOOSE_BY, _SCORES_TO_CHOOSE_BY // len(self._rows.item_ids))
        blends = blends_to_try(self._settings.half_life_days)
        return choose(self.values_of(blends, self._validation.some(num_users, len(self._rows.item_ids)))).report()

    def _fail(self, step: int, what: str) -> NoReturn:
        epoch = self._progress.epoch + 1
        raise InputError(
            f"the {what} must be finite, got nan or inf at step {step + 1} of epoch {epoch}: "
            f"lower --learning_rate, which is {self._settings.learning_rate:g}"
        )


def steps_an_epoch(num_rows: int, settings: TrainingSettings) -> int:
    """Returns how many batches an epoch takes; the few rows that do not fill one are left out."""
    return num_rows // min(settings.batch_size, num_rows)


def bias_of_served(rows: TrainingRows, settings: TrainingSettings, blend: Blend) -> np.ndarray:
    """Returns [num_items] float32: `item_bias`, -inf for items that no row has, unless their features speak for them."""
    rated = rows.rated
    bias = item_bias(rated, blend)
    return bias if settings.looks_at_features else np.where(rated.counts > 0, bias, np.float32(-np.inf))


def opening_blends(rows: TrainingRows, validation: Validation | None, settings: TrainingSettings) -> list[Blend]:
    """Returns how scores are made until the best epoch is known: as would be chosen for users without a taste, with any taste.

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
    return [replace(best, taste=taste) for taste in TASTES] if best.recency else [best]
