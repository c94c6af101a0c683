"""Fast implementations of operations, one file per operation, and the rule that selects one.

Each file opens with the definition that its fast implementations are tested against.
"""
