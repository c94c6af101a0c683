"""The device: peak memory, time of calls, peak rates, and the record of the environment."""
