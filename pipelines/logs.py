"""Decides what is said while a pipeline runs: our own lines, and the libraries' only when asked for."""

import logging
import os
import sys

LOGGER = logging.getLogger("shortlist")
_NOISY = ("apache_beam", "absl", "tensorflow", "tf_keras", "h5py", "root")


def is_verbose() -> bool:
    """Tells whether `configure` was asked to let everyone speak."""
    return LOGGER.isEnabledFor(logging.DEBUG)


def configure(verbose: bool) -> None:
    """Sets up logging on standard error; must come before TensorFlow is imported, which reads its level once.

    Args:
      verbose: let Beam, TensorFlow and absl speak too, and show tracebacks.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    LOGGER.handlers = [handler]
    LOGGER.setLevel(logging.DEBUG if verbose else logging.INFO)
    LOGGER.propagate = False
    if verbose:
        logging.getLogger().setLevel(logging.INFO)
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    logging.captureWarnings(True)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("py.warnings").setLevel(logging.CRITICAL)
