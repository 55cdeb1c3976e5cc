"""What happens to releases: shown, looked into, compared, verified, rolled back, deleted, and users forgotten."""
