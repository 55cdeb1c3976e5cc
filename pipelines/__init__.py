"""The commands, a few lines each, and the packages that they call: flags, stages, the job, and the life of its releases."""

import logging

__version__ = "0.1.0"

# Beam warns on the root logger as it is imported, of clients that nothing here uses. `pipelines.cli.logs` decides from then on.
logging.getLogger().setLevel(logging.ERROR)
