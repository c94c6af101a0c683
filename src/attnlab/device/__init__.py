"""The device: memory, time, peak rates, environment."""
