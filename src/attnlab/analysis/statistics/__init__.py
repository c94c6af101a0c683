"""Estimates, simultaneous intervals, tests and power."""
