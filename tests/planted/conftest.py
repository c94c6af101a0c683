"""Imported by the tests that want them alone: importing a kind adds it to the zoo."""

collect_ignore_glob = ["*.py"]
