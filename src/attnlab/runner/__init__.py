"""Studies in progress: run, plan and extend, from a request to a report."""
