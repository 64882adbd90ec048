"""Whether a plan is right: what is read is there, all is merged once, every pair is computed once.

Pure. Independent of how plans are made: it knows positions, the mask and the rules of blocks.py.
check_coverage.py has the pairs.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from tokenfabric.errors import ConfigError
from tokenring.blocks import Arrival, Block, Compute, Merge, RankPlan, Span, Transfer
from tokenring.check_coverage import PlanError, check_coverage, covers
from tokenring.problem import RingProblem


def check_plan(problem: RingProblem, plans: Sequence[RankPlan], max_rows: int = 4096) -> None:
    """Check a plan of all ranks.

    Raises:
        PlanError: with the first thing that is wrong.
        ConfigError: ranks are missing.
    """
    if [plan.rank for plan in plans] != list(range(problem.world_size)):
        raise ConfigError(
            f"a plan is checked as a whole: pass all {problem.world_size} ranks, not "
            f"{[plan.rank for plan in plans]}"
        )
    _check_messages(problem, plans)
    for plan in plans:
        _check_slots(plan)
        _RankCheck(problem, plan).check()
    check_coverage(problem, plans, max_rows)


def _check_messages(problem: RingProblem, plans: Sequence[RankPlan]) -> None:
    """Both sides of each pair name the same transfers in the same order, with the right bytes."""
    sent: dict[tuple[int, int], list[Transfer]] = defaultdict(list)
    received: dict[tuple[int, int], list[Transfer]] = defaultdict(list)
    for plan in plans:
        for index, step in enumerate(plan.steps):
            for transfer in step.sends:
                _check_transfer(problem, transfer, index)
                if transfer.src != plan.rank:
                    raise PlanError(f"rank {plan.rank} is to send for another: {transfer}")
                sent[transfer.src, transfer.dst].append(transfer)
            for arrival in step.arrivals:
                transfer = arrival.transfer
                _check_transfer(problem, transfer, index)
                if transfer.dst != plan.rank:
                    raise PlanError(f"rank {plan.rank} is to receive for another: {transfer}")
                received[transfer.src, transfer.dst].append(transfer)
    for src, dst in sorted(sent.keys() | received.keys()):
        if sent[src, dst] != received[src, dst]:
            missing = next(
                (t for t in sent[src, dst] if t not in received[src, dst]),
                next((t for t in received[src, dst] if t not in sent[src, dst]), "their order"),
            )
            raise PlanError(
                f"ranks {src} and {dst} disagree on what passes between them: {missing}"
            )


def _check_transfer(problem: RingProblem, transfer: Transfer, step: int) -> None:
    block = transfer.block
    if transfer.step != step:
        raise PlanError(f"a transfer of step {transfer.step} is in step {step}: {transfer}")
    if transfer.src == transfer.dst or block.num_rows == 0 or block.heads.size == 0:
        raise PlanError(f"nothing is to be moved: {transfer}")
    expected = problem.num_bytes(block.kind, block.num_rows, block.heads.size)
    if transfer.num_bytes != expected:
        raise PlanError(f"{transfer.num_bytes} bytes where {expected} are sent: {transfer}")
    size, distance = problem.world_size, (transfer.dst - transfer.src) % problem.world_size
    turn = {"clockwise": 1, "counterclockwise": size - 1}.get(transfer.direction)
    if turn is not None and block.role == "input" and distance != turn:
        raise PlanError(f"a relayed block goes {distance} ranks {transfer.direction}: {transfer}")


def _check_slots(plan: RankPlan) -> None:
    last_step = len(plan.steps) - 1
    users: dict[int, list[Arrival]] = defaultdict(list)
    for arrival in plan.arrivals:
        users[arrival.slot].append(arrival)
        if not 0 <= arrival.slot < len(plan.slots):
            raise PlanError(f"rank {plan.rank} has no slot {arrival.slot}")
        if arrival.transfer.num_bytes > plan.slots[arrival.slot]:
            raise PlanError(f"rank {plan.rank}: {arrival} does not fit in its slot")
        if not arrival.transfer.step <= arrival.release_step <= last_step:
            raise PlanError(f"rank {plan.rank}: {arrival} is never released in time")
    for slot, arrivals in users.items():
        arrivals.sort(key=lambda arrival: arrival.transfer.step)
        for before, after in pairwise(arrivals):
            if after.transfer.step <= before.release_step:
                raise PlanError(f"rank {plan.rank} slot {slot}: {before} and {after} overlap")


class _RankCheck:
    """What one rank reads and makes, walked in the order in which it happens."""

    def __init__(self, problem: RingProblem, plan: RankPlan) -> None:
        self._problem, self._plan, self._rank = problem, plan, plan.rank
        self._arrived: dict[object, Arrival] = {}
        self._made: dict[object, tuple[Block, int]] = {}
        self._uses: Counter[object] = Counter()

    def check(self) -> None:
        for arrival in self._plan.arrivals:
            key = arrival.transfer.block.key
            if key in self._arrived:
                raise PlanError(f"rank {self._rank} receives {key} twice")
            self._arrived[key] = arrival
        for index, step in enumerate(self._plan.steps):
            for transfer in step.sends:
                self._check_read(transfer.block, transfer.block.rows, index, during=False)
                self._uses[transfer.block.key] += 1
            for compute in step.computes:
                self._check_compute(compute, index)
            for merge in step.merges:
                self._check_merge(merge, index)
        self._check_all_used()

    def _check_compute(self, compute: Compute, step: int) -> None:
        if compute.step != step or compute.rank != self._rank:
            raise PlanError(f"rank {self._rank} step {step} has a compute of another: {compute}")
        if compute.kv_heads != self._problem.kv_heads_of(compute.heads):
            raise PlanError(f"heads {compute.heads} do not read {compute.kv_heads}: {compute}")
        for pieces, heads in ((compute.q, compute.heads), (compute.kv, compute.kv_heads)):
            for piece in pieces:
                self._check_read(piece.block, piece.rows, step, during=False)
                if not covers((piece.block.heads,), (heads,)):
                    raise PlanError(f"{piece} has not the heads {heads} of {compute}")
        kinds = [(compute.q, compute.outputs, self._problem.out_kind, compute.heads)]
        if self._problem.direction == "backward":
            kinds.append((compute.kv, compute.kv_outputs, "dkv", compute.kv_heads))
        elif compute.kv_outputs:
            raise PlanError(f"a forward has no dkv: {compute}")
        for pieces, outputs, kind, heads in kinds:
            if [(p.block.owner, p.rows) for p in pieces] != [(b.owner, b.rows) for b in outputs]:
                raise PlanError(f"the outputs are not those of the pieces: {compute}")
            for block in outputs:
                if (block.kind, block.heads) != (kind, heads):
                    raise PlanError(f"{block} is not what {compute} makes")
                self._make(block, step)

    def _check_merge(self, merge: Merge, step: int) -> None:
        expected = "lse" if self._problem.direction == "forward" else "sum"
        if (merge.step, merge.rank, merge.op) != (step, self._rank, expected):
            raise PlanError(f"rank {self._rank} step {step} has a merge of another: {merge}")
        output = merge.output
        area: Counter[Block] = Counter()
        total = 0
        for rows, heads, inputs in merge.segments:
            total += rows.size * heads.size
            if not (covers(output.rows, (rows,)) and covers((output.heads,), (heads,))):
                raise PlanError(f"segment {rows} {heads} is not in the output of {merge}")
            if len(set(inputs)) != len(inputs):
                raise PlanError(f"an input is added twice: {merge}")
            for block in inputs:
                if (block.kind, block.owner) != (output.kind, output.owner):
                    raise PlanError(f"{block} is merged into {output}")
                if not (covers(block.rows, (rows,)) and covers((block.heads,), (heads,))):
                    raise PlanError(f"{block} has not the rows {rows} and heads {heads}")
                area[block] += rows.size * heads.size
        rectangles = [(s.rows, s.heads) for s in merge.segments]
        if total != output.num_rows * output.heads.size or _overlap(rectangles):
            raise PlanError(f"the segments do not cover the output once: {merge}")
        for block, done in area.items():
            if done != block.num_rows * block.heads.size:
                raise PlanError(f"a part of {block} is left out of {merge}")
            self._check_read(block, block.rows, step, during=True)
            self._uses[block.key] += 1
        self._make(output, step)

    def _make(self, block: Block, step: int) -> None:
        if block.producer != self._rank or block.role == "input":
            raise PlanError(f"rank {self._rank} cannot make {block}")
        if block.key in self._made:
            raise PlanError(f"rank {self._rank} makes {block.key} twice")
        self._made[block.key] = (block, step)

    def _check_read(self, block: Block, rows: tuple[Span, ...], step: int, *, during: bool) -> None:
        """Check that rows of a block are on this rank, before a step or by its end."""
        where = f"rank {self._rank} step {step}: {block}"
        if block.role == "input" and block.producer == self._rank:
            layout = self._problem.kv_layout if block.kind == "kv" else self._problem.q_layout
            whole = (Span(0, layout.num_rows(self._rank)),)
            if block.owner != self._rank or not covers(whole, rows):
                raise PlanError(f"{where} is not a part of the local tensor")
        elif block.producer == self._rank:
            if block.key not in self._made:
                raise PlanError(f"{where} has not been made")
            made, made_step = self._made[block.key]
            if made_step > step or (made_step == step and not during) or made != block:
                raise PlanError(f"{where} is not there yet; step {made_step} makes {made}")
        else:
            if block.key not in self._arrived:
                raise PlanError(f"{where} never arrives")
            arrival = self._arrived[block.key]
            transfer = arrival.transfer
            if transfer.step > step or (transfer.step == step and not during):
                raise PlanError(f"{where} is still on its way: {transfer}")
            if step > arrival.release_step:
                raise PlanError(f"{where} has been released: {arrival}")
            if not covers(transfer.block.rows, rows) or not covers(
                (transfer.block.heads,), (block.heads,)
            ):
                raise PlanError(f"{where} has lost rows {rows} on its way")

    def _check_all_used(self) -> None:
        """Every result is sent or merged once, and what belongs to this rank is merged."""
        problem, rank = self._problem, self._rank
        expected = [(problem.out_kind, problem.q_layout, problem.heads_q)]
        if problem.direction == "backward":
            expected.append(("dkv", problem.kv_layout, problem.heads_kv))
        for kind, layout, heads in expected:
            if layout.num_rows(rank) == 0:
                continue
            whole = Block(
                kind, rank, (Span(0, layout.num_rows(rank)),), Span(0, heads), rank, "merged", 0
            )
            if self._made.get(whole.key, (None, 0))[0] != whole:
                raise PlanError(f"rank {rank} never merges its {kind}")
            self._uses[whole.key] += 1
        results = [*self._made, *(key for key, a in self._arrived.items() if _is_result(a))]
        for key in results:
            if self._uses[key] != 1:
                raise PlanError(f"rank {rank} uses {key} {self._uses[key]} times instead of once")


def _is_result(arrival: Arrival) -> bool:
    return arrival.transfer.block.role != "input"


def _overlap(rectangles: Iterable[tuple[Span, Span]]) -> bool:
    by_heads: dict[Span, list[Span]] = defaultdict(list)
    for rows, heads in rectangles:
        by_heads[heads].append(rows)
    spans = sorted(by_heads)
    if any(a.stop > b.start for a, b in pairwise(spans)):
        return True
    return any(a.stop > b.start for rows in by_heads.values() for a, b in pairwise(sorted(rows)))
