"""Lengths of sequences, as people type them: 4k is 4,096 tokens."""

import re
from typing import Annotated

TokenCount = Annotated[int, "tokens"]
# ^ the type of a field whose value may be typed with a k; a record has whole numbers alone


def token_count(text: str) -> int | None:
    """The count that a text names; None for any other text.

    >>> token_count("512"), token_count("4k"), token_count(" 16K "), token_count("2x")
    (512, 4096, 16384, None)
    """
    match = re.fullmatch(r"\s*(\d+)([kK]?)\s*", text)
    return int(match[1]) * (1024 if match[2] else 1) if match else None
