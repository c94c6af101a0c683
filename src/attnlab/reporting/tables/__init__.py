"""Tables for papers and programs."""
