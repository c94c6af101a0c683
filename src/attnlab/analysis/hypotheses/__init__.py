"""Sentences that the data can judge."""
