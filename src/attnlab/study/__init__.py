"""A study: a question, its variants and the runs that answer it."""
