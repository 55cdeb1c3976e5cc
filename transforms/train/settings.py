"""How to train: the settings, what they may be, and what suits where nothing is said."""

from dataclasses import dataclass

from schemas.errors import InputError
from schemas.flags import ABOVE_0, NOT_NEGATIVE, Rule, between, check_fields, flag, one_of
from transforms.train.features import Feature
from transforms.train.recency import MODES, Blend

USER_TOWERS = ("id", "history", "id+history")
"""The kinds of user tower: see `transforms.train.user_towers`."""

L2_OF = {"id": 0.12, "history": 0.05, "id+history": 0.12}
"""The weight of L2 where there is nothing to choose it by, and the first that is tried where there is."""

DIM = 64
"""The dimensions where there is nothing to choose them by, and the first that are tried where there is."""

ITEM_TOWERS = ("id", "id+features")
"""The kinds of item tower: see `transforms.train.item_towers`."""

VALIDATIONS = ("random", "temporal", "last")

_ROWS_TO_LEARN_FROM = 11_000_000
_FEWEST_EPOCHS, _MOST_EPOCHS = 2, 12
_GROUPS_A_USER = 8
_SMALLEST_GROUP, _LARGEST_GROUP = 4, 32
_SMALLEST_BATCH = 32
_STEPS_AN_EPOCH = 32
_FEWEST_CANDIDATES, _MOST_CANDIDATES = 1024, 4096

POPULARITY_EXPONENT = 0.5
"""Of the closed form, where it is not chosen."""

CHECKPOINT_SECS = 5.0
"""How much work an interrupted training may lose, about."""


@dataclass(frozen=True)
class ChosenBy:
    """Which training chose the settings of another.

    Attributes:
      asked: a digest of what it was asked for.
      data: a digest of the ratings.
      rows: how many ratings it had.
    """

    asked: str
    data: str
    rows: int


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
      dim: of the vectors; None for what the validation slice shows to be best.
      learning_rate: of Adam at the first step; it falls in a straight line to nothing after the last.
      batch_size: users a step, each with some of the items that it rated; fewer where there are few, see `batch_of`.
      candidates: what a step's users are scored against, shared by all of them; None for what suits the catalogue.
      mixed_negatives: candidates that are added to these, uniform from all items: they put what is rarely rated down, where
        training rows alone hardly bring it up.
      history_sample: the most items of a user's history that a step looks at, drawn anew each time; it bounds a step's memory
        and time, not what is served, which is made of the whole history.
      l2: adds l2 / 2 times the mean squared length of a batch's user and item vectors to the loss; None for what the
        validation slice shows to be best.
      epochs: passes over the data; 0 for the closed form, which is not trained: see `transforms.train.closed_form`. None for
        the closed form where the validation slice shows it to be clearly better, else for what suits the size: `epochs_of`.
      popularity_exponent: in the closed form items' vectors are multiplied by their number of ratings to this power; None for
        what the validation slice shows to be best.
      validation: how the validation slice is chosen, which should be as what is to come will be: 'random', by a stable hash
        of (user, item); 'temporal', the latest rows; 'last', the last rows of users. Without times it is random.
      validation_fraction: of the rows, at most; 0 turns every choice off.
      include_validation: chooses what is to be chosen on the slice, and then trains on every training row, the slice included;
        without it, trains once, on the others.
      recency: 'auto': how much recent popularity and affinity (the inner product of the towers) count is chosen on the
        validation slice, where there are times; 'on': recent popularity counts in full, unchosen; 'off': not at all. See
        `transforms.train.recency`.
      half_life_days: how long it takes for a rating to count half towards recent popularity; 'auto' looks around it.
      blend: what another training has chosen.
      chosen_by: which one chose that, the dimensions and the weight of L2, where it is of an earlier release.
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
    dim: int | None = flag(None, rule=between(1, 4096), help="dimensions of the embeddings (default: chosen, 64 or 128)")
    learning_rate: float = flag(0.01, rule=ABOVE_0, help="learning rate of Adam at the first step; it falls to 0")
    batch_size: int = flag(512, rule=between(1, 65_536), help="the most users in a step")
    candidates: int | None = flag(
        None,
        rule=between(1, 65_536),
        help="items that all users of a step are scored against (default: a twentieth of the items, 1024 to 4096)",
    )
    mixed_negatives: int = flag(
        0, rule=between(0, 65_536), help="candidates drawn uniformly from the catalogue and added to each step (default 0)"
    )
    history_sample: int = flag(200, rule=between(1, 65_536), help="the most items of a history that a training step looks at")
    l2: float | None = flag(
        None,
        rule=NOT_NEGATIVE,
        help="weight of the L2 penalty on a batch's embeddings (default: chosen on the validation slice)",
    )
    epochs: int | None = flag(
        None,
        rule=between(0, 10_000),
        help="passes over the training ratings; with 0, vectors are those of a singular value decomposition, untrained "
        "(default: by the number of ratings, 2 to 12, or 0 where that is better on the validation slice)",
    )
    popularity_exponent: float | None = flag(
        None,
        rule=between(0, 1),
        help="without training, items' vectors are multiplied by their number of ratings to this power (default: chosen on the "
        "validation slice)",
    )
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
    chosen_by: ChosenBy | None = None
    seed: int = flag(42, rule=between(0, 2**31 - 1), help="the seed of everything random")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.looks_at_features and not self.features:
            raise InputError(f"item_tower {self.item_tower} needs features: declare them, as in --features genres=categories")
        if self.epochs == 0 and self.looks_at_features:
            raise InputError("with epochs 0 nothing is learned, of features neither: leave --epochs out, or --features")
        if self.epochs == 0 and self.recency == "on":
            raise InputError("with epochs 0 popularity is not a bias, so recency cannot be on: leave --epochs or --recency out")
        if self.validation not in VALIDATIONS:
            raise ValueError(f"validation must be one of {', '.join(VALIDATIONS)}, got {self.validation!r}")

    @property
    def l2_weight(self) -> float:
        """The weight of the L2 penalty where it is not chosen."""
        return L2_OF[self.user_tower] if self.l2 is None else self.l2

    @property
    def dimensions(self) -> int:
        """Of the vectors, where they are not chosen."""
        return DIM if self.dim is None else self.dim

    def epochs_of(self, num_rows: int) -> int:
        """Returns how many passes to make over some rows: the more there are, the less often each is needed."""
        if self.epochs is not None:
            return self.epochs
        return min(max(round(_ROWS_TO_LEARN_FROM / max(1, num_rows)), _FEWEST_EPOCHS), _MOST_EPOCHS)

    def group_of(self, num_rows: int, num_users: int) -> int:
        """Returns how many of a user's rows are learned from at once, at most: the longer histories are, the more."""
        return min(max(round(num_rows / max(1, num_users) / _GROUPS_A_USER), _SMALLEST_GROUP), _LARGEST_GROUP)

    def batch_of(self, num_groups: int) -> int:
        """Returns how many groups a step takes: so few that an epoch has some steps, where there are enough."""
        return min(self.batch_size, num_groups, max(_SMALLEST_BATCH, num_groups // _STEPS_AN_EPOCH))

    def candidates_of(self, num_items: int) -> int:
        """Returns how many candidates a step draws."""
        return self.candidates or min(max(num_items // 20, _FEWEST_CANDIDATES), _MOST_CANDIDATES)

    @property
    def may_be_closed_form(self) -> bool:
        """Whether the closed form is a model to choose: nothing is said of a training, nor of what it cannot take."""
        if self.epochs is not None:
            return self.epochs == 0
        return self.l2 is None and self.recency != "on" and self.blend is None and not self.looks_at_features

    @property
    def leaves_open(self) -> bool:
        """Whether there is anything to choose."""
        if self.epochs == 0:
            return self.dim is None or self.popularity_exponent is None
        return self.dim is None or self.l2 is None or (self.recency == "auto" and self.blend is None)

    @property
    def looks_at_features(self) -> bool:
        """Whether the item tower does."""
        return self.item_tower != "id"
