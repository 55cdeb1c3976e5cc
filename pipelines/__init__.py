"""The stages: one module each, each a command, and the command that runs them in order."""

import logging

__version__ = "0.1.0"

# Beam warns on the root logger as it is imported, of clients that nothing here uses. `pipelines.cli.logs` decides from then on.
logging.getLogger().setLevel(logging.ERROR)
