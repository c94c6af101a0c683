"""The studies that attnlab ships: one file, one question."""
