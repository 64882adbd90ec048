"""Which passes may be CUDA graphs, and the book of graphs: bounded, warmed up first."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweave.graph_plan import MOST_ROWS, GraphBook, GraphRequest, decide_graph

GOOD = GraphRequest(
    asked="auto",
    device="cuda",
    reduction="fused",
    num_rows=1,
    cache="static",
    is_cache_ready=True,
    is_split=False,
    keeps_hidden=False,
    is_recorded=False,
    decided_on_host="",
    foreign_arguments=(),
)
OBSTACLES: list[tuple[dict[str, Any], str]] = [
    ({"device": "cpu"}, "on cpu"),
    ({"asked": "off"}, "graphs='off'"),
    ({"reduction": "gloo"}, "'gloo'"),
    ({"num_rows": MOST_ROWS + 1}, f"{MOST_ROWS + 1} tokens"),
    ({"cache": "other"}, "may grow"),
    ({"is_cache_ready": False}, "no memory yet"),
    ({"is_split": True}, "how a split pass is cut"),
    ({"keeps_hidden": True}, "hidden states"),
    ({"is_recorded": True}, "timed"),
    ({"decided_on_host": "the experts"}, "the experts"),
    ({"foreign_arguments": ("scale", "bias")}, "scale, bias"),
]


def test_small_passes_on_memory_that_stays_are_graphs() -> None:
    """Decoding on a static cache, and passes without one, split too."""
    for changes in ({}, {"num_rows": MOST_ROWS}, {"cache": "none"}):
        assert decide_graph(replace(GOOD, **changes)).may_capture
    assert decide_graph(replace(GOOD, cache="none", is_split=True)).may_capture


@pytest.mark.parametrize(("changes", "why"), OBSTACLES, ids=[it[1] for it in OBSTACLES])
def test_each_obstacle_alone_is_enough_and_is_named(changes: dict[str, Any], why: str) -> None:
    """The decision says which it was."""
    decision = decide_graph(replace(GOOD, **changes))
    assert not decision.may_capture
    assert why in decision.explain()


@given(keys=st.lists(st.integers(0, 6), max_size=60), most=st.integers(1, 4))
def test_book_warms_up_captures_and_replays(keys: list[int], most: int) -> None:
    """A key is captured at its second pass or when its graph is gone; never too many graphs."""
    book: GraphBook[tuple[int, int]] = GraphBook(most)
    passes: Counter[int] = Counter()
    kept: list[int] = []
    for number, key in enumerate(keys):
        step = book.next_step(key)
        expected = "replay" if key in kept else "capture" if passes[key] else "warm up"
        assert step == expected
        if step == "capture":
            book.add(key, (key, number))
            kept.append(key)
        if step != "warm up":
            assert book.graph(key)[0] == key
            kept.remove(key)
            kept.append(key)
        kept = kept[-most:]
        assert len(book) == len(kept) <= most
        passes[key] += 1
    book.clear()
    assert len(book) == 0
    assert book.next_step(1) == "warm up"


def test_book_forgets() -> None:
    """What was dropped starts again; what was warmed up long ago, too."""
    book: GraphBook[str] = GraphBook(2)
    assert [book.next_step("a") for _ in range(2)] == ["warm up", "capture"]
    book.add("a", "graph")
    book.drop("a")
    assert book.next_step("a") == "warm up"
    for key in range(1000):
        book.next_step(key)
    assert book.next_step("a") == "warm up"
