"""Training of one run: settings, steps, evaluation and checkpoints."""
