"""What the stages do: plain functions on Arrow and NumPy, and the PTransforms that wire them."""

import os

# TensorFlow Recommenders needs Keras 2. The choice is made when TensorFlow is first imported, and `import scann` imports it
# too, so it is made here: every module of this package, and so every worker, passes through this line first.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
