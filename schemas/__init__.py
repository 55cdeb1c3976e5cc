"""Every dataset on disk: its Arrow schema, its manifest, and where it lives."""
