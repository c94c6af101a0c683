"""The analysis of run folders: tables, comparisons, hypotheses. Nothing here imports torch."""
