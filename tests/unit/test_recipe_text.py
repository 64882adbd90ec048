"""Tokens become text piece by piece, and the pieces are the text."""

import pytest
import torch

from launch.recipes.text import TextStream
from launch.report import SilentReporter

SPECIAL = 1000


class ByteTokenizer:
    """A token is a byte; SPECIAL is skipped; bytes that are no character become U+FFFD."""

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return bytes(t for t in tokens if t != SPECIAL).decode("utf-8", errors="replace")


class Listener(SilentReporter):
    """Keeps the pieces."""

    def __init__(self) -> None:
        self.pieces: list[str] = []

    def text(self, piece: str) -> None:
        self.pieces.append(piece)


def stream(tokens: list[int]) -> list[str]:
    """Return what a stream hands on for a prompt of two tokens and then `tokens`, one by one."""
    listener = Listener()
    text_stream = TextStream(ByteTokenizer(), listener)  # type: ignore[arg-type]
    text_stream.put(torch.tensor([[65, 66]]))
    for token in tokens:
        text_stream.put(torch.tensor([token]))
    text_stream.end()
    return listener.pieces


TEXT = "na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve \N{SNOWMAN}, \N{GRINNING FACE}."


def test_pieces_are_the_text() -> None:
    """Nothing is lost, doubled or said before it is certain; the prompt is not repeated."""
    pieces = stream(list(TEXT.encode()))
    assert "".join(pieces) == TEXT + "\n"
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_characters_come_when_they_are_complete() -> None:
    """One byte at a time, a character of three bytes appears with its last."""
    assert stream(list("a\N{SNOWMAN}b".encode())) == ["a", "\N{SNOWMAN}", "b", "\n"]


def test_answer_may_end_inside_of_a_character() -> None:
    """What is left is shown as what it is."""
    assert "".join(stream([97, 0xE2, 0x98])) == "a\N{REPLACEMENT CHARACTER}\n"


@pytest.mark.parametrize("tokens", [[], [SPECIAL], [97, SPECIAL]])
def test_special_tokens_are_silent(tokens: list[int]) -> None:
    """The end-of-text token leaves no trace."""
    assert "".join(stream(tokens)) == ("a" * (97 in tokens)) + "\n"
