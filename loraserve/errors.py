"""The root of this package's errors."""


class LoraserveError(Exception):
    """Something a person or the agent can act on: the message says what is wrong and what to do next."""

    transient = False
    """Whether doing the same again later can help."""
