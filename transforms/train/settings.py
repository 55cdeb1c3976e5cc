"""How to train: the settings, what they may be, and what suits where nothing is said."""

import math
from dataclasses import dataclass

from schemas.errors import InputError
from transforms.train.features import Feature
from transforms.train.recency import MODES, Blend

USER_TOWERS = ("id", "history", "id+history")
"""The kinds of user tower: see `transforms.train.user_towers`."""

L2_OF = {"id": 0.1, "history": 0.04, "id+history": 0.1}
"""The weight of L2 that suits a user tower: on MovieLens-100K, validation, three seeds."""

ITEM_TOWERS = ("id", "id+features")
"""The kinds of item tower: see `transforms.train.item_towers`."""

VALIDATIONS = ("random", "temporal", "last")

CHECKPOINT_SECS = 5.0
"""How much work an interrupted training may lose, about."""


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
      user_tower: 'id': a vector of its own for each user; 'history': the mean of the vectors of what a user rated, which
        serves users that training never saw; 'id+history': their sum.
      item_tower: 'id': a vector of its own for each item; 'id+features': that and those of its features, which serves items
        that training never saw.
      features: what 'id+features' looks at; 'id' at none of them.
      id_dropout: the part of the training rows that leave the item's own vector out where there are features, and the user's
        where there are histories, so that these learn to do without.
      dim: of the vectors.
      learning_rate: of Adam; scale it with the batch size.
      batch_size: rows a step, and so negatives a row; cut down to the number of rows where there are fewer.
      mixed_negatives: candidates that are added to each batch's own, uniform from all items: they put what is rarely rated
        down, where the batch alone hardly meets it.
      history_sample: the most items of a user's history that a step looks at, drawn anew each time; it bounds a step's memory
        and time, not what is served, which is made of the whole history.
      l2: adds l2 / 2 times the mean squared length of a batch's user and item vectors to the loss; None for what suits the
        user tower.
      max_epochs: the most passes over the data; without a validation slice, exactly so many.
      patience: stops after so many epochs without a better validation quality (Recall@100 + NDCG@10), and not before twice as
        many.
      validation: how the validation slice is chosen, which should be as what is to come will be: 'random', by a stable hash
        of (user, item); 'temporal', the latest rows; 'last', the last rows of users. Without times it is random.
      validation_fraction: of the rows, at most; 0 turns early stopping, the second training and every choice off.
      include_validation: trains anew on every training row, the slice included, for the best number of epochs; without it,
        the best epoch's weights are kept.
      recency: 'auto': how much recent popularity and taste count is chosen on the validation slice, where there are times;
        'on': recent popularity counts in full, unchosen; 'off': not at all. See `transforms.train.recency`.
      half_life_days: how long it takes for a rating to count half towards recent popularity; 'auto' looks around it.
      blend: what another training has chosen, for one that has no slice to choose by.
      seed: of the first weights, the order of the rows and the validation slice.
    """

    user_tower: str = "id"
    item_tower: str = "id"
    features: tuple[Feature, ...] = ()
    id_dropout: float = 0.2
    dim: int = 64
    learning_rate: float = 0.003
    batch_size: int = 512
    mixed_negatives: int = 0
    history_sample: int = 200
    l2: float | None = None
    max_epochs: int = 50
    patience: int = 4
    validation: str = "random"
    validation_fraction: float = 0.1
    include_validation: bool = True
    recency: str = "auto"
    half_life_days: float = 7.0
    blend: Blend | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        if self.user_tower not in USER_TOWERS:
            raise InputError(
                f"user_tower must be one of {', '.join(USER_TOWERS)}, got {self.user_tower!r}: change --user_tower"
            )
        if self.item_tower not in ITEM_TOWERS:
            raise InputError(
                f"item_tower must be one of {', '.join(ITEM_TOWERS)}, got {self.item_tower!r}: change --item_tower"
            )
        if self.looks_at_features and not self.features:
            raise InputError(f"item_tower {self.item_tower} needs features: declare them, as in --features genres=categories")
        if not 0 <= self.id_dropout < 1:
            raise InputError(f"id_dropout must be at least 0 and below 1, got {self.id_dropout:g}: change --id_dropout")
        if self.recency not in MODES:
            raise InputError(f"recency must be one of {', '.join(MODES)}, got {self.recency!r}: change --recency")
        if self.validation not in VALIDATIONS:
            raise ValueError(f"validation must be one of {', '.join(VALIDATIONS)}, got {self.validation!r}")
        for name, low, high in [
            ("dim", 1, 4096),
            ("batch_size", 1, 65_536),
            ("mixed_negatives", 0, 65_536),
            ("history_sample", 1, 65_536),
            ("max_epochs", 1, 10_000),
            ("patience", 1, 10_000),
            ("seed", 0, 2**31 - 1),
        ]:
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} must be between {low} and {high}, got {getattr(self, name)}: change --{name}")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate must be a number above 0, got {self.learning_rate:g}: change --learning_rate")
        if not 0 <= self.l2_weight < math.inf:
            raise InputError(f"l2 must be a number of at least 0, got {self.l2_weight:g}: change --l2")
        if not 0 <= self.validation_fraction <= 0.5:
            raise InputError(
                f"validation_fraction must be between 0 and 0.5, got {self.validation_fraction:g}: change --validation_fraction"
            )

    @property
    def l2_weight(self) -> float:
        """The weight of the L2 penalty."""
        return L2_OF[self.user_tower] if self.l2 is None else self.l2

    @property
    def looks_at_features(self) -> bool:
        """Whether the item tower does."""
        return self.item_tower != "id"
