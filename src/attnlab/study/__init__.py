"""A study: a question, its variants and the runs that answer it.

Here are the events that any long call reports to its caller's `watch`: studies, checks and benches.
"""

from typing import NamedTuple


class Activity(NamedTuple):
    """The start of an activity that takes a while; it lasts until the next event."""

    description: str


class Notice(NamedTuple):
    """A message for the user about something that the call continues without."""

    text: str


def ignore(event: object) -> None:
    """Do nothing: the default of every `watch`."""
    del event
