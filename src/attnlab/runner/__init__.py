"""Run, extend, plan: from a request to a report."""
