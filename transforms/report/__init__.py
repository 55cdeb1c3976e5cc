"""Writes the page that shows a release to people."""
