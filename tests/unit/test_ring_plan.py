"""Plans of attention calls: every pair once, bytes as the formulas say, work in balance. Pure."""

from typing import Any

import pytest
from hypothesis import given, settings

from tests.unit.ring_cases import calls
from tokenring.blocks import RankPlan
from tokenring.partition import partition_tokens
from tokenring.plan import RingPlan, plan_attention
from tokenring.problem import ElementSizes, deal_heads

ROWS, HEADS, WIDTH = 64, 8, 32
X = ROWS * HEADS * WIDTH * 2
"""Bytes of one rank's q in the formulas below; each of k and v has as many with MHA."""
LSE = ROWS * HEADS * 4


def plan_of(strategy: str, **arguments: Any) -> RingPlan:
    """Plan 64 tokens a rank, 8 heads of 32, 8 ranks unless told otherwise."""
    settings_: dict[str, Any] = {
        "world_size": 8, "causal": True, "heads_q": HEADS, "heads_kv": HEADS, "head_dim": WIDTH,
        "strategy": strategy, **arguments,
    }  # fmt: skip
    return plan_attention(tokens=ROWS * settings_["world_size"], **settings_)


def received(plan: RankPlan) -> int:
    return sum(arrival.transfer.num_bytes for arrival in plan.arrivals)


def pairs_of(plan: RingPlan) -> dict[tuple[int, int, int, int], int]:
    """Return how often (q sequence, q position, kv position, q head) is computed.

    By enumeration, from pieces and bands alone.
    """
    problem = plan.problem
    q_positions = [problem.q_layout.positions(r) for r in range(problem.world_size)]
    kv_positions = [problem.kv_layout.positions(r) for r in range(problem.world_size)]
    sequences = [
        [chunk.sequence for chunk in chunks for _ in range(chunk.count)]
        for chunks in problem.q_layout.ranks
    ]
    kv_sequences = [
        [chunk.sequence for chunk in chunks for _ in range(chunk.count)]
        for chunks in problem.kv_layout.ranks
    ]
    found: dict[tuple[int, int, int, int], int] = {}
    for compute in (compute for part in plan.ranks for compute in part.computes):
        sides: list[dict[int, tuple[int, int]]] = [{}, {}]
        for side, pieces in zip(sides, (compute.q, compute.kv), strict=True):
            for piece in pieces:
                rows = [row for span in piece.rows for row in range(*span)]
                for index, row in enumerate(rows):
                    side[piece.offset + piece.stride * index] = (piece.block.owner, row)
        for a, (q_owner, q_row) in sides[0].items():
            for b, (kv_owner, kv_row) in sides[1].items():
                lower, upper = compute.band
                if (lower is None or b - a >= lower) and (upper is None or b - a <= upper):
                    sequence = sequences[q_owner][q_row]
                    assert kv_sequences[kv_owner][kv_row] == sequence
                    for head in range(*compute.heads):
                        pair = (
                            sequence, q_positions[q_owner][q_row],
                            kv_positions[kv_owner][kv_row], head,
                        )  # fmt: skip
                        found[pair] = found.get(pair, 0) + 1
    return found


def needed_pairs(plan: RingPlan) -> set[tuple[int, int, int, int]]:
    """Return the visible pairs, from the definition of the mask."""
    problem, mask = plan.problem, plan.problem.mask
    q, kv = problem.q_layout, problem.kv_layout
    return {
        (sequence, p, k, head)
        for sequence in range(len(q.lengths))
        for p in range(q.starts[sequence], q.starts[sequence] + q.lengths[sequence])
        for k in range(kv.starts[sequence], kv.starts[sequence] + kv.lengths[sequence])
        if (mask.left is None or k - p >= -mask.left)
        and (mask.right is None or k - p <= mask.right)
        for head in range(problem.heads_q)
    }


@given(calls(max_length=12))
@settings(max_examples=150, deadline=None)
def test_every_pair_is_computed_once(call: dict[str, Any]) -> None:
    """Each visible (query, key, head) on one rank, and no other pair anywhere."""
    plan = plan_attention(**call)
    found = pairs_of(plan)
    assert set(found) == needed_pairs(plan)
    assert set(found.values()) <= {1}
    assert sum(part.flops for part in plan.ranks) == len(found) * plan.problem.flops_per_pair


@given(calls(max_length=60))
@settings(max_examples=150, deadline=None)
def test_plans_pass_their_own_check(call: dict[str, Any]) -> None:
    """What is read is there, all results are merged once, and slots never overlap."""
    plan = plan_attention(**call)
    plan.check()
    for part in plan.ranks:
        assert part == plan_attention(**call, rank=part.rank).of_rank(part.rank)


def test_example_of_the_vocabulary() -> None:
    """The table in the head of blocks.py."""
    plan = plan_attention(
        world_size=2, tokens=8, partition="contiguous", causal=True, heads_q=1, heads_kv=1,
        head_dim=1, strategy="q_push",
    )  # fmt: skip

    def lines(rank: int) -> list[list[str]]:
        return [
            [f"send {t.block.kind} of {t.block.owner} to {t.dst}" for t in step.sends]
            + [
                f"{c.q[0].block.kind}{c.q[0].block.owner} {c.q[0].rows[0]} {c.kv[0].rows[0]} "
                f"{c.band.upper}"
                for c in step.computes
            ]
            + [f"merge {len(merge.inputs)}" for merge in step.merges]
            for step in plan.of_rank(rank).steps
        ]

    def span(start: int, stop: int) -> str:
        return f"Span(start={start}, stop={stop})"

    assert lines(0) == [
        [f"q0 {span(0, 2)} {span(0, 2)} 0"],
        [f"q1 {span(0, 4)} {span(0, 4)} None"],
        ["send out of 1 to 1", f"q0 {span(2, 4)} {span(0, 4)} 2", "merge 2"],
    ]
    assert lines(1) == [
        ["send q of 1 to 0", f"q1 {span(0, 2)} {span(0, 2)} 0"],
        [],
        [f"q1 {span(2, 4)} {span(0, 4)} 2", "merge 3"],
    ]


@pytest.mark.parametrize("strategy", ["q_push", "kv_push", "kv", "ulysses", "q"])
@pytest.mark.parametrize("partition", ["contiguous", "zigzag", "striped"])
def test_64_ranks_pass_the_check(strategy: str, partition: str) -> None:
    """With rows of which the check looks at some."""
    plan = plan_of(strategy, world_size=64, partition=partition, direction="backward", heads_kv=2)
    plan.check(max_rows=8)


# Counted in X, over 8 ranks; lse and delta, 4 bytes a row each, are added in the test: (strategy,
# arguments, most sent by a rank, mean sent, lse or delta rows in those).
FORMULAS = [
    ("q_push", {}, 10.5, 10.5, None),
    ("q", {}, 13.5, 10.5, None),
    ("kv_push", {}, 14.0, 10.5, 0.0),
    ("kv", {}, 14.0, 10.5, 0.0),
    ("kv", {"causal": False}, 14.0, 14.0, 0.0),
    ("kv_bidirectional", {"causal": False}, 14.0, 14.0, 0.0),
    ("allgather", {"causal": False}, 14.0, 14.0, 0.0),
    ("kv", {"causal": False, "heads_kv": 1}, 14.0 / 8, 14.0 / 8, 0.0),
    ("q_push", {"causal": False}, 14.0, 14.0, 7.0),
    ("q", {"causal": False}, 14.0, 14.0, 7.0),
    ("ulysses", {"causal": False}, 3.5, 3.5, 7.0 / 8),
    ("grid", {"causal": False, "grid": (1, 4, 2)}, 8.0, 8.0, 3.0),
    ("grid", {"causal": False, "grid": (2, 2, 2)}, 6.0, 6.0, 1.5),
    # A KV head that two ranks need is sent to both: (N-1)/N (Q + KV N/Hkv + O).
    ("ulysses", {"causal": False, "heads_kv": 4}, 3.5, 3.5, 7.0 / 8),
]


@pytest.mark.parametrize(("strategy", "arguments", "most", "mean", "num_lse"), FORMULAS)
def test_forward_bytes(
    strategy: str, arguments: dict[str, Any], most: float, mean: float, num_lse: float | None
) -> None:
    """Counted bytes are the closed formulas, in units of one rank's q."""
    plan = plan_of(strategy, **arguments)
    sent = [plan.bytes_sent(rank) for rank in range(8)]
    lse = [
        sum(t.block.num_rows * t.block.heads.size * 4 for t in part.sends if t.block.kind == "out")
        for part in plan.ranks
    ]
    payload = [total - extra for total, extra in zip(sent, lse, strict=True)]
    assert max(payload) == pytest.approx(most * X, rel=0)
    assert sum(payload) == pytest.approx(8 * mean * X, rel=0)
    if num_lse is not None:
        assert lse == [num_lse * LSE] * 8


@pytest.mark.parametrize(
    ("strategy", "arguments", "most", "mean"),
    [
        ("q_push", {}, 17.5, 15.75),
        ("q_push", {"element_sizes": ElementSizes(dq=4)}, 21.0, 21.0),
        ("kv_push", {"element_sizes": ElementSizes(dkv=2)}, 21.0, 21.0),
        ("kv", {"causal": False}, 42.0, 42.0),
        ("kv_bidirectional", {"causal": False}, 42.0, 42.0),
        ("q_push", {"causal": False}, 21.0, 21.0),
    ],
)
def test_backward_bytes(strategy: str, arguments: dict[str, Any], most: float, mean: float) -> None:
    """The same for gradients: pack and dq, or kv and dkv, without the lse and delta of a pack."""
    plan = plan_of(strategy, direction="backward", **arguments)
    payload = [
        sum(
            t.num_bytes
            - (t.block.num_rows * t.block.heads.size * 8 if t.block.kind == "pack" else 0)
            for t in part.sends
        )
        for part in plan.ranks
    ]
    assert max(payload) == most * X
    assert sum(payload) == 8 * mean * X


def test_owner_push_is_balanced_over_ports() -> None:
    """Causal zigzag: q_push loads all ports alike, but for who returns the more lse rows."""
    plan = plan_of("q_push")
    loads = [load for part in plan.ranks for load in (part.bytes_sent, received(part))]
    assert max(loads) - min(loads) <= 7 * LSE // 2


@pytest.mark.parametrize("partition", ["zigzag", "striped"])
@pytest.mark.parametrize("world_size", [2, 3, 7, 8, 64])
@pytest.mark.parametrize("tokens", [64, 1000, 1001, 4095])
def test_causal_work_is_balanced(partition: str, world_size: int, tokens: int) -> None:
    """Within the pairs of one row for each chunk, that is one rank's rows more or less."""
    layout = partition_tokens(tokens, world_size, partition)  # type: ignore[arg-type]
    plan = plan_attention(
        q_layout=layout, causal=True, heads_q=1, heads_kv=1, head_dim=1, strategy="kv_push"
    )
    pairs = [sum(compute.num_pairs for compute in part.computes) for part in plan.ranks]
    rows = max(layout.num_rows(rank) for rank in range(world_size))
    # A rank with one row more sees up to `tokens` keys with it; stripes differ by one key a row.
    assert max(pairs) - min(pairs) <= tokens + rows


def test_remote_work_is_two_kernels_a_round() -> None:
    """Zigzag moving q: all owners above in one kernel, all below in another."""
    plan = plan_of("q_push", num_stages=1)
    for part in plan.ranks:
        assert [len(step.computes) for step in part.steps][1] <= 2


def test_local_work_hides_head_and_tail() -> None:
    """The first and the last step compute about half of a rank's own pairs each."""
    plan = plan_of("q_push")
    for part in plan.ranks:
        first, last = (sum(c.num_pairs for c in part.steps[i].computes) for i in (0, -1))
        assert part.steps[0].sends
        assert part.steps[-1].sends
        assert first + last == ROWS * (ROWS + 1) // 2
        assert abs(first - last) <= 2 * ROWS


def test_windows_skip_far_ranks() -> None:
    """A window of one rank's rows is seen on the rank itself and on the one before."""
    plan = plan_of("kv_push", partition="contiguous", window=ROWS)
    assert all({t.dst for t in part.sends} <= {part.rank + 1} for part in plan.ranks)
    trimmed = plan_of("kv_push", partition="contiguous", window=11)
    assert [t.block.num_rows for t in trimmed.of_rank(0).sends] == [10]


def test_look_ahead_is_bounded() -> None:
    """Of the inputs that come, at most two rounds lie in slots."""
    plan = plan_of("kv_push", causal=False, num_stages=4)
    for part in plan.ranks:
        inputs = [a.slot for a in part.arrivals if a.transfer.block.role == "input"]
        assert len(inputs) == 7
        assert len(set(inputs)) <= 4


def test_heads_that_do_not_divide() -> None:
    """Whole groups while there are enough KV heads; beyond that, parts of one group each."""
    assert [span.size for span in deal_heads(9, 3, 2)] == [6, 3]
    assert [span.size for span in deal_heads(9, 3, 6)] == [2, 1, 2, 1, 2, 1]
    assert [span.size for span in deal_heads(2, 1, 3)] == [1, 1, 0]
    plan = plan_of("ulysses", world_size=6, heads_q=9, heads_kv=3)
    plan.check()
    assert [part.computes[0].kv_heads.size for part in plan.ranks] == [1] * 6
