"""Measured comparisons, each one command; every figure is a ratio of things measured side by side in one run."""

import os

# Before TensorFlow is imported, whichever benchmark is the first to: it reads its log level once, and `transforms` chooses
# Keras 2.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import transforms as transforms
