"""Makes towers and index one SavedModel that takes raw ids."""
