"""Plans for people: a table of the choice, the bytes, the balance of work and the times. Pure."""

from collections import defaultdict
from collections.abc import Sequence

from tokenring.blocks import RankPlan
from tokenring.choose import Candidate
from tokenring.cost import estimate, num_hops
from tokenring.movement import Movement
from tokenring.problem import RingProblem
from tokenring.topology import Topology

_MAX_RANK_LINES = 16


def explain_plan(
    problem: RingProblem,
    movement: Movement,
    topology: Topology,
    plans: Sequence[RankPlan],
    candidates: Sequence[Candidate],
) -> str:
    """Return the text, one fact a line."""
    total = estimate(problem, plans, topology)
    lines = [
        f"{problem.direction} over {problem.world_size} ranks: {problem.q_layout.num_tokens} "
        f"queries x {problem.kv_layout.num_tokens} keys, batch {problem.batch}, heads "
        f"{problem.heads_q}:{problem.heads_kv}, {_mask_text(problem)}",
        f"strategy {_label(movement)}: {movement.num_stages} round(s), {movement.last_step + 1} "
        f"steps, local work {movement.local}",
        f"predicted on {topology.kind}: {_ms(total.time_s)} = computing {_ms(total.compute_s)}, "
        f"exposed transfers {_ms(total.exposed_s)}, merges {_ms(total.merge_s)} "
        "(each of the slowest rank)",
    ]
    if candidates:
        lines.append("")
        lines += _table(
            ("candidate", "time", "computing", "exposed", "merges", "most sent", "most received"),
            [
                (
                    candidate.label,
                    _ms(candidate.estimate.time_s),
                    _ms(candidate.estimate.compute_s),
                    _ms(candidate.estimate.exposed_s),
                    _ms(candidate.estimate.merge_s),
                    _bytes(candidate.estimate.bytes_sent),
                    _bytes(candidate.estimate.bytes_received),
                )
                for candidate in candidates
            ],
        )
        lines.append(_reason(candidates))
    lines += ["", *_rank_lines(plans), "", *_link_lines(problem, plans)]
    return "\n".join(lines)


def _rank_lines(plans: Sequence[RankPlan]) -> list[str]:
    mean = sum(plan.flops for plan in plans) / len(plans) or 1.0
    rows = [
        (
            str(plan.rank),
            f"{plan.flops / 1e9:.3f}",
            f"{plan.flops / mean:.2f}",
            str(len(plan.computes)),
            *(_bytes(_sent(plan, way)) for way in ("clockwise", "counterclockwise", "direct")),
            _bytes(sum(arrival.transfer.num_bytes for arrival in plan.arrivals)),
            _bytes(sum(plan.slots)),
        )
        for plan in plans[:_MAX_RANK_LINES]
    ]
    lines = _table(
        (
            "rank", "GFLOP", "of mean", "kernels", "clockwise", "counterclockwise", "direct",
            "received", "slots",
        ),
        rows,
    )  # fmt: skip
    if len(plans) > _MAX_RANK_LINES:
        lines.append(f"and {len(plans) - _MAX_RANK_LINES} more ranks")
    return lines


def _link_lines(problem: RingProblem, plans: Sequence[RankPlan]) -> list[str]:
    """Return what the busiest link of either kind of network carries."""
    size = problem.world_size
    pairs: dict[tuple[int, int], int] = defaultdict(int)
    ring: dict[tuple[int, str], int] = defaultdict(int)
    for transfer in (transfer for plan in plans for transfer in plan.sends):
        pairs[transfer.src, transfer.dst] += transfer.num_bytes
        clockwise, counterclockwise = num_hops(transfer, size)
        for hop in range(clockwise):
            ring[(transfer.src + hop) % size, "clockwise"] += transfer.num_bytes
        for hop in range(counterclockwise):
            ring[(transfer.src - hop) % size, "counterclockwise"] += transfer.num_bytes
    if not pairs:
        return ["nothing is sent"]
    (src, dst), most = max(pairs.items(), key=lambda item: item[1])
    lines = [f"busiest pair: rank {src} to {dst}, {_bytes(most)}"]
    for way in ("clockwise", "counterclockwise"):
        loads = {rank: load for (rank, of), load in ring.items() if of == way}
        if loads:
            rank = max(loads, key=lambda r: loads[r])
            lines.append(
                f"on a physical ring, {way}: busiest link leaves rank {rank}, {_bytes(loads[rank])}"
            )
    return lines


def _reason(candidates: Sequence[Candidate]) -> str:
    best = candidates[0]
    if len(candidates) == 1:
        return f"{best.label} is the only candidate"
    next_best = candidates[1]
    slower = next_best.estimate.time_s / max(best.estimate.time_s, 1e-12) - 1
    if slower == 0:
        return f"{best.label} is predicted as fast as {next_best.label} and is named first"
    return f"{best.label} is predicted fastest; next is {next_best.label}, {slower:.1%} slower"


def _label(movement: Movement) -> str:
    if movement.name != "grid":
        return movement.name
    return f"grid of {movement.u} (heads) x {movement.a} (Q) x {movement.b} (KV)"


def _mask_text(problem: RingProblem) -> str:
    left, right = problem.mask.left, problem.mask.right
    if right == 0:
        return "causal" if left is None else f"causal window of {left + 1}"
    return "no mask" if (left, right) == (None, None) else f"window of {left} and {right}"


def _sent(plan: RankPlan, way: str) -> int:
    return sum(transfer.num_bytes for transfer in plan.sends if transfer.direction == way)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms"


def _bytes(count: int) -> str:
    return f"{count} B" if count < 10_000 else f"{count / 1e6:.3f} MB"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in (head, *rows)
    ]
