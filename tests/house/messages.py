"""The texts that Python and C++ sources can put into a message, and how much of one is theirs."""

import ast
import re
from collections.abc import Iterator
from functools import cache

from tests.house.tree import PACKAGES, native_files, python_files

_NATIVE_CALL = re.compile(r"(?:concat|TOKEN_CHECK|throw_system_failure)\((.*?)\);", re.DOTALL)
_LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"')
# Shorter texts are in too many sentences to say where one comes from.
_MIN_CHARACTERS = 12


def share_of_sources(message: str) -> float:
    """Return how much of a message, 0 to 1, is text that places in the sources have fixed.

    A place counts if all its fixed pieces are in the message, in order; values lie between them.
    """
    fixed: set[int] = set()
    for match in filter(None, (pattern.search(message) for pattern in _patterns())):
        fixed.update(*(range(*span) for span in match.regs[1:]))
    return len(fixed) / len(message)


@cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    return tuple(
        re.compile(".*?".join(f"({re.escape(piece)})" for piece in pieces))
        for pieces in _texts()
        if sum(map(len, pieces)) >= _MIN_CHARACTERS
    )


def _texts() -> Iterator[list[str]]:
    """Yield the fixed pieces, in order, of every string in Python and of every message in C++."""
    for path in python_files(*PACKAGES):
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            yield [
                it.value for it in parts if isinstance(it, ast.Constant) and type(it.value) is str
            ]
    for path in native_files():
        for call in _NATIVE_CALL.findall(path.read_text()):
            yield _LITERAL.findall(re.sub(r'"\s+"', "", call))
