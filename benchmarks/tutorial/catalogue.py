"""The catalogue times a thousand: every item once as it is, and many perturbed copies after them."""

import numpy as np

from benchmarks.tutorial import published


def enlarged(items: np.ndarray, copies: int) -> np.ndarray:
    """Returns [num_items * (copies + 1), dim] float32: the items, and their copies, perturbed as the tutorial perturbs them.

    Each number of a copy is multiplied by one drawn evenly from 0 to 1.

    Args:
      items: [num_items, dim] float32.
      copies: of each item.
    """
    rng = np.random.default_rng(published.SEED)
    vectors = np.tile(items, (copies + 1, 1))
    vectors[len(items) :] *= rng.random((len(items) * copies, items.shape[1]), np.float32)
    return vectors
