"""How to train: the settings, what they may be, and what suits where nothing is said."""

from dataclasses import dataclass

from schemas.errors import InputError
from schemas.flags import ABOVE_0, NOT_NEGATIVE, Rule, between, check_fields, flag, one_of
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

    user_tower: str = flag("id", rule=one_of(*USER_TOWERS), help="what a user's vector is made of: id, history or id+history")
    item_tower: str = flag(
        "id",
        unset=None,
        rule=one_of(*ITEM_TOWERS),
        help="id, or id+features (default: id+features where features are declared)",
    )
    features: tuple[Feature, ...] = flag(
        (),
        unset="",
        help="column=kind,…: the columns that the item tower uses; a kind is category, categories, number or text",
    )
    id_dropout: float = flag(
        0.2,
        rule=Rule("at least 0 and below 1", lambda value: 0 <= value < 1),
        help="share of the rows that train on features, or histories, alone",
    )
    dim: int = flag(64, rule=between(1, 4096), help="dimensions of the embeddings")
    learning_rate: float = flag(0.003, rule=ABOVE_0, help="learning rate of Adam")
    batch_size: int = flag(512, rule=between(1, 65_536), help="rows in a step, and so the negatives of each row")
    mixed_negatives: int = flag(
        0, rule=between(0, 65_536), help="negatives drawn uniformly from the catalogue and added to each batch (default 0)"
    )
    history_sample: int = flag(200, rule=between(1, 65_536), help="the most items of a history that a training step looks at")
    l2: float | None = flag(
        None,
        rule=NOT_NEGATIVE,
        help="weight of the L2 penalty on a batch's embeddings (default "
        + ", ".join(f"{l2:g} for {tower}" for tower, l2 in L2_OF.items())
        + ")",
    )
    max_epochs: int = flag(50, rule=between(1, 10_000), help="the most epochs")
    patience: int = flag(4, rule=between(1, 10_000), help="epochs without a better validation result before training stops")
    validation: str = "random"
    validation_fraction: float = flag(0.1, rule=between(0, 0.5), help="share of the training rows to validate on")
    include_validation: bool = True
    recency: str = flag(
        "auto",
        rule=one_of(*MODES),
        help="whether recently popular items score higher: auto (chosen on the validation slice), on or off",
    )
    half_life_days: float = 7.0
    blend: Blend | None = None
    seed: int = flag(42, rule=between(0, 2**31 - 1), help="the seed of everything random")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.looks_at_features and not self.features:
            raise InputError(f"item_tower {self.item_tower} needs features: declare them, as in --features genres=categories")
        if self.validation not in VALIDATIONS:
            raise ValueError(f"validation must be one of {', '.join(VALIDATIONS)}, got {self.validation!r}")

    @property
    def l2_weight(self) -> float:
        """The weight of the L2 penalty."""
        return L2_OF[self.user_tower] if self.l2 is None else self.l2

    @property
    def looks_at_features(self) -> bool:
        """Whether the item tower does."""
        return self.item_tower != "id"
