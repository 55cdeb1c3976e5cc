"""Trains the two towers, with features, histories and recency, and tries ways to train them."""
