"""A question with its answer, as far as it goes over the wire in a few kilobytes."""

from dataclasses import dataclass, field

LARGEST_BYTES = 128 << 10
"""Of both together; a streamed token takes 200."""


@dataclass
class Seen:
    """One request whose answer is being looked at."""

    question: bytes
    """The body but for the model, as JSON's inside of an object."""
    pieces: list[bytes] = field(default_factory=list)
    size: int = 0

    def see(self, piece: bytes) -> None:
        """Of the answer, as vLLM sends it."""
        self.size += len(piece)
        if self.size <= LARGEST_BYTES:
            self.pieces.append(piece)
        else:
            self.pieces.clear()
