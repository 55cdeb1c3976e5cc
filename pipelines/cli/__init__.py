"""What all commands share: flags, config files, settings, log lines, exit codes."""
