"""Where the tokens come from: one file, one source."""
