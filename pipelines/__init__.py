"""The stages: one module each, each a command, and the command that runs them in order."""
