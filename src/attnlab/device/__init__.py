"""The device: memory, time of calls, peak rates, child processes, and the environment of a run."""
