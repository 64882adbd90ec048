"""Training data: documents, packing, and rows that go on where they were left."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.training import documents
from launch.training.documents import Place, check_files, read_pieces
from launch.training.packing import Chunk, pack_rows
from launch.training.rows import RowStream
from tokenfabric.errors import ConfigError

EOS = 0


class CharacterTokenizer:
    """Token of a character: its code. Counts what it is asked."""

    eos_token_id: int | None = EOS

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        return [ord(c) for c in text]


def write_files(folder: Path) -> tuple[Path, ...]:
    (folder / "a.txt").write_text("one\ntwo\n" * 30)
    lines = [json.dumps({"text": word * 3}) for word in ("red", "green", "", "b")]
    (folder / "b.jsonl").write_text("\n".join([lines[0], "", *lines[1:]]))
    (folder / "c.txt").write_text("no line break at the end, caf\u00e9")
    return check_files([str(folder)])


@given(
    documents_=st.lists(st.lists(st.integers(1, 9), max_size=12), min_size=1, max_size=12),
    cuts=st.integers(1, 5),
    row_tokens=st.integers(1, 9),
)
def test_packing_keeps_every_token_in_order(
    documents_: list[list[int]], cuts: int, row_tokens: int
) -> None:
    """Whatever pieces documents come in; and no row mixes documents without saying so."""
    chunks = []
    for number, tokens in enumerate(documents_):
        parts = [tokens[i : i + cuts] for i in range(0, len(tokens), cuts)] or [[]]
        chunks += [
            Chunk((number, i), tuple(part), i == len(parts) - 1) for i, part in enumerate(parts)
        ]
    rows = list(pack_rows(chunks, row_tokens))
    whole = [token for tokens in documents_ for token in tokens]
    assert [t for row in rows for t in row.tokens] == whole[: len(rows) * row_tokens]
    assert len(whole) - len(rows) * row_tokens < row_tokens
    # The document of every token, once as packed and once as given.
    given = [number for number, tokens in enumerate(documents_) for _ in tokens]
    position = 0
    for row in rows:
        assert len(row.tokens) == sum(row.lengths) == row_tokens
        assert row.num_learned == row_tokens - len(row.lengths)
        for length in row.lengths:
            assert len(set(given[position : position + length])) == 1
            position += length
        ends = list(itertools.accumulate(row.lengths))[:-1]
        for end in ends:
            at = position - row_tokens + end
            assert given[at - 1] != given[at]


@settings(deadline=None, max_examples=25)
@given(
    context=st.integers(2, 50),
    taken=st.integers(0, 12),
    piece_bytes=st.sampled_from([1, 7, 1 << 18]),
)
def test_a_stream_goes_on_where_it_was_left(
    tmp_path_factory: pytest.TempPathFactory, context: int, taken: int, piece_bytes: int
) -> None:
    """Several epochs over three kinds of files, pieces of any size."""
    files = write_files(tmp_path_factory.mktemp("data"))

    def stream(progress: object = None) -> RowStream:
        return RowStream(
            files,
            CharacterTokenizer(),
            context=context,
            seed=3,
            progress=progress,  # type: ignore[arg-type]
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "PIECE_BYTES", piece_bytes)
        undisturbed = stream().take(taken + 20)
        first = stream()
        if taken:
            first.take(taken)
        again = stream(first.progress).take(20)
    assert [(r.tokens, r.lengths) for r in again] == [
        (r.tokens, r.lengths) for r in undisturbed[taken:]
    ]


def test_every_epoch_reads_every_file_in_an_order_of_its_own(tmp_path: Path) -> None:
    for name in "abcdefgh":
        (tmp_path / name).write_text(name)
    files = check_files([str(tmp_path)])
    pieces = list(itertools.islice(read_pieces(files, Place(), seed=1), 40))
    orders = ["".join(p.text for p in pieces[i : i + 8]) for i in range(0, 40, 8)]
    assert all(sorted(order) == list("abcdefgh") for order in orders)
    assert len(set(orders)) > 1
    assert [p.place.epoch for p in pieces] == [i // 8 for i in range(40)]
    assert orders[0] != "".join(p.text for p in itertools.islice(read_pieces(files, Place(), 2), 8))


def test_bad_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        check_files([str(tmp_path / "missing")])
    with pytest.raises(ConfigError, match="the folder has no files"):
        check_files([str(tmp_path)])
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ConfigError, match="the file is empty"):
        check_files([str(tmp_path)])
    with pytest.raises(ConfigError, match="at least one file"):
        check_files([])


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("x.jsonl", b'{"text": "fine"}\n{"body": 1}\n', "byte 17: a line must be a JSON object"),
        ("x.jsonl", b'{"text": "fine"}\n["text"]\n', "byte 17: a line must be a JSON object"),
        ("x.jsonl", b'{"text": 3}\n', "byte 0: text is int"),
        ("x.jsonl", b"{", "byte 0: a line must be a JSON object"),
        ("x.txt", b"good \xff bad", "byte 5: not UTF-8"),
        ("x.jsonl", b"\n\n", "no documents"),
    ],
)
def test_what_cannot_be_read_says_where(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=says):
        list(itertools.islice(read_pieces(check_files([str(tmp_path)]), Place(), 0), 5))


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokenizer = CharacterTokenizer()
    tokenizer.eos_token_id = None
    with pytest.raises(ConfigError, match="no end-of-sequence token"):
        RowStream([], tokenizer, context=4, seed=0)
