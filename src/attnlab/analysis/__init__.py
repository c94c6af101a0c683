"""What the run folders say: tables and comparisons, without torch."""
