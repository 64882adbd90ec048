"""Documents of text and JSON-lines files, streamed, from any place in them.

A `.jsonl` file has one JSON object a line, whose "text" is a document; any other file is one
document in UTF-8. Large text comes in pieces that end at a line break, so that memory does not grow
with the file; where pieces begin depends on the file alone, never on where reading was resumed.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenfabric.errors import ConfigError

PIECE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a piece begins."""

    epoch: int = 0
    """How many times all files have been read."""
    file: int = 0
    """Index into this epoch's order of files."""
    offset: int = 0
    """Byte of the file."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that follows the piece before, unless that one ended its document."""

    place: Place
    text: str
    ends_document: bool


def check_files(paths: Sequence[str]) -> tuple[Path, ...]:
    """Return the files, those of folders included, in order of name.

    Raises:
        ConfigError: one is missing or empty, or there is none.
    """
    found: list[Path] = []
    for name in paths:
        path = Path(name)
        if not path.exists():
            raise ConfigError(f"data {name}: there is no such file or folder")
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        if not inside:
            raise ConfigError(f"data {name}: the folder has no files")
        found += inside
    if not found:
        raise ConfigError("data: pass at least one file")
    for path in found:
        if path.stat().st_size == 0:
            raise ConfigError(f"data {path}: the file is empty")
    return tuple(found)


def read_pieces(files: Sequence[Path], start: Place, seed: int) -> Iterator[Piece]:
    """Yield the documents of all files again and again, in an order of its own each epoch.

    Args:
        files: as `check_files` returns them.
        start: the first piece to yield.
        seed: of the orders.

    Raises:
        ConfigError: a line is not JSON with a "text", a file is not UTF-8, or there is no document.
    """
    place = start
    while True:
        order = list(files)
        random.Random(f"{seed} {place.epoch}").shuffle(order)
        is_empty = place == Place(place.epoch)
        for index in range(place.file, len(order)):
            offset = place.offset if index == place.file else 0
            read = _read_lines if order[index].suffix == ".jsonl" else _read_text
            for begin, text, ends_document in read(order[index], offset):
                is_empty = False
                yield Piece(Place(place.epoch, index, begin), text, ends_document)
        if is_empty:
            raise ConfigError("data: the files have no documents")
        place = Place(place.epoch + 1, 0, 0)


def _read_text(path: Path, offset: int) -> Iterator[tuple[int, str, bool]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(offset)
        while offset < size:
            data = file.read(PIECE_BYTES) + file.readline()
            yield offset, _decode(data, path, offset), offset + len(data) >= size
            offset += len(data)


def _read_lines(path: Path, offset: int) -> Iterator[tuple[int, str, bool]]:
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if line.strip():
                yield offset, _text_of(line, path, offset), True
            offset += len(line)


def _text_of(line: bytes, path: Path, offset: int) -> str:
    try:
        text = json.loads(_decode(line, path, offset))["text"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}, byte {offset}: a line must be a JSON object with a text, like "
            f'{{"text": "..."}}; {error}'
        ) from None
    if not isinstance(text, str):
        raise ConfigError(f"{path}, byte {offset}: text is {type(text).__name__}, not a string")
    return text


def _decode(data: bytes, path: Path, offset: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}, byte {offset + error.start}: not UTF-8: convert the file, or leave it out"
        ) from None
