"""The fast forms of an operation, one file an operation, with the one rule that picks among them.

Each file opens with the plain definition that its fast forms are tested against.
"""
