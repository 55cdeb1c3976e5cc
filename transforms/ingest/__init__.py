"""Reads ratings, catalogues and lists from outside, validates them, and splits them by user."""
