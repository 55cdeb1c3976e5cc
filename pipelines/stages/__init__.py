"""One module a stage: what it needs, what decides its result, and which steps build it."""
