"""The language model around the mechanisms."""
