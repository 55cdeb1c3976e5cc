"""Works on releases: shows, compares, verifies, rolls back and deletes them, and forgets users and items."""
