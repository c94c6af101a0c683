"""The panels of every figure, each drawn on axes that it is given. One file, one kind."""
