"""What the tutorials say: the figures on their pages, and the settings of their code."""

ACCURACY = {1: 0.0013, 5: 0.0099, 10: 0.0219, 50: 0.1248, 100: 0.2322}
"""How often the item of a test row is among the first so many, after three epochs."""

BRUTE_FORCE_SECONDS = 3 * 60 + 35.0
"""What evaluating 20,000 queries on about 1.7 million candidates takes by brute force."""
SCANN_SECONDS = 1.95
"""And with ScaNN."""

LAYERS = {(100, 10, 1000): 0.938, (1000, 100, 1000): 0.974, (1000, 70, 400): 0.969}
"""Leaves, leaves searched and candidates reordered, and the recall@10 that they give."""

SPEEDUP_OF_ONE_QUERY = 15.0
"""How many times sooner than brute force ScaNN answers for one user."""

DIM = 32
LEARNING_RATE = 0.1
"""Of Adagrad."""
BATCH_SIZE, EVALUATION_BATCH_SIZE = 8192, 4096
EPOCHS = 3
COPIES = 1_000
"""How many times the catalogue is copied, each copy perturbed."""
SEED = 42
USER = "42"
"""Whom the tutorial asks for."""
