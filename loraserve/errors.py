"""The root of this package's errors."""


class LoraserveError(Exception):
    """Something a person or the agent can act on: the message says what is wrong and what to do next."""

    transient = False
    """Whether doing the same again later can help."""


def reason(error: Exception) -> str:
    """Why a file could not be read, without its name, which the message around it has."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
