"""Sets up logging: our own lines always, those of the libraries only with --verbose."""

import atexit
import logging
import os
import re
import sys
import threading

from schemas.printable import printable

LOGGER = logging.getLogger("shortlist")
_STDERR = 2
_LAST_LINES_SECONDS = 1.0
_NATIVE_LOG = re.compile(rb"[IWE]\d{4} [\d:.]+ +\d+ \S+\.(?:cc|h):\d+\]|WARNING: All log messages before absl::InitializeLog")
_NOISY = ("apache_beam", "absl", "tensorflow", "tf_keras", "h5py", "root")


def _filter_native_stderr() -> None:
    """Keeps what C++ libraries log (`I0000 00:00:… file.cc:58] …`) off the terminal; anything else they write passes.

    ScaNN and TensorFlow write to file descriptor 2 themselves, whatever Python's loggers are told. Our own output goes to a
    copy of it; what arrives at 2 goes through a thread that drops such lines.
    """
    native = sys.__stderr__
    if native is None or sys.stderr is not native or native.fileno() != _STDERR:
        return  # Someone else, such as a test, has taken standard error already.
    native.flush()
    terminal = os.dup(_STDERR)
    read_end, write_end = os.pipe()
    os.dup2(write_end, _STDERR)
    os.close(write_end)
    sys.stderr = os.fdopen(os.dup(terminal), "w", buffering=1, encoding=native.encoding, errors="backslashreplace")

    def forward() -> None:
        with os.fdopen(read_end, "rb") as lines:
            for line in lines:
                if not _NATIVE_LOG.match(line):
                    os.write(terminal, line)

    forwarder = threading.Thread(target=forward, daemon=True)
    forwarder.start()

    def stop() -> None:
        """Waits for what is on its way, and lets through what is said from now on, such as why a process aborts as it ends."""
        os.dup2(terminal, _STDERR)
        forwarder.join(_LAST_LINES_SECONDS)

    atexit.register(stop)


class _PrintableFormatter(logging.Formatter):
    """Writes out what is no mark, so that an id in a message cannot act on the terminal; a warning says that it is one."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        if record.levelno >= logging.WARNING:
            record.message = f"{record.levelname.lower()}: {record.message}"
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), "\n\t")


def is_verbose() -> bool:
    """Tells whether `configure` was asked to let everyone speak."""
    return LOGGER.isEnabledFor(logging.DEBUG)


def configure(verbose: bool) -> None:
    """Sets up logging on standard error; must come before TensorFlow is imported, which reads its level once.

    Args:
      verbose: let Beam, TensorFlow and absl speak too, and show tracebacks.
    """
    if not verbose:
        _filter_native_stderr()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PrintableFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
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
