"""A tiny engine: walks plans with fp64 tensors on virtual ranks in one thread, step by step.

It knows nothing but blocks.py: no positions, no partition, no strategy. Tensors are [rows, heads,
width], without a batch. What a block holds is a tuple of tensors:

    q (q,)   kv (k, v)   pack (q, dout, lse, delta)   out (out, lse)   dq (dq,)   dkv (dk, dv)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenring.blocks import Block, Compute, Merge, Piece, RankPlan, Span, Transfer

Held = tuple[Tensor, ...]


class VirtualRank:
    """One rank's tensors and what has come to it or been made on it."""

    def __init__(self, plan: RankPlan, inputs: dict[str, Held], scale: float) -> None:
        self.plan, self.inputs, self.scale = plan, inputs, scale
        self.held: dict[object, tuple[Block, Held]] = {}
        self.in_flight: list[tuple[Transfer, Held]] = []
        self.merged: dict[str, Held] = {}

    def read(self, block: Block, rows: Sequence[Span], heads: Span) -> Held:
        """Return rows and heads of a block, from the local tensors or from what is held."""
        if block.role == "input" and block.producer == self.plan.rank:
            num_rows = self.inputs[block.kind][0].shape[0]
            held, tensors = block._replace(rows=(Span(0, num_rows),)), self.inputs[block.kind]
            first_head = 0
        else:
            held, tensors = self.held[block.key]
            first_head = held.heads.start
        places = [row for span in held.rows for row in range(*span)]
        wanted = [places.index(row) for span in rows for row in range(*span)]
        head_slice = slice(heads.start - first_head, heads.stop - first_head)
        return tuple(tensor[wanted, head_slice] for tensor in tensors)

    def gather(self, pieces: Sequence[Piece], num_rows: int, heads: Span) -> Held:
        """Return an operand: the rows of all pieces at their places."""
        parts = [self.read(piece.block, piece.rows, heads) for piece in pieces]
        operand = tuple(t.new_full((num_rows, *t.shape[1:]), torch.nan) for t in parts[0])
        for piece, part in zip(pieces, parts, strict=True):
            places = slice(piece.offset, None, piece.stride)
            for whole, tensor in zip(operand, part, strict=True):
                whole[places][: piece.num_rows] = tensor
        return operand

    def put(self, blocks: Sequence[Block], pieces: Sequence[Piece], results: Held) -> None:
        """Keep the rows that belong to each piece as its output."""
        for block, piece in zip(blocks, pieces, strict=True):
            places = slice(piece.offset, None, piece.stride)
            rows = tuple(tensor[places][: piece.num_rows] for tensor in results)
            self.held[block.key] = (block, rows)

    def compute(self, compute: Compute) -> None:
        q = self.gather(compute.q, compute.q_rows, compute.heads)
        k, v = self.gather(compute.kv, compute.kv_rows, compute.kv_heads)
        group = max(1, compute.heads.size // compute.kv_heads.size)
        visible = _visible(compute)
        if compute.kv_outputs:
            dq, dk, dv = _attention_backward(q, k, v, group, visible, self.scale)
            self.put(compute.outputs, compute.q, (dq,))
            self.put(compute.kv_outputs, compute.kv, (dk, dv))
        else:
            self.put(compute.outputs, compute.q, attention(q[0], k, v, group, visible, self.scale))

    def merge(self, merge: Merge) -> None:
        output = merge.output
        parts: list[tuple[Span, Span, Held]] = []
        for rows, heads, inputs in merge.segments:
            found = [self.read(block, (rows,), heads) for block in inputs]
            if found:
                combined = _merge_lse(found) if merge.op == "lse" else _add(found)
                parts.append((rows, heads, combined))
        kinds = {"out": ("q", "lse"), "dq": ("pack",), "dkv": ("kv", "kv")}[output.kind]
        tensors = tuple(self._empty(output, kind, index) for index, kind in enumerate(kinds))
        places = [row for span in output.rows for row in range(*span)]
        for rows, heads, combined in parts:
            first = places.index(rows.start)
            for whole, tensor in zip(tensors, combined, strict=True):
                whole[
                    first : first + rows.size,
                    heads.start - output.heads.start : heads.stop - output.heads.start,
                ] = tensor
        self.held[output.key] = (output, tensors)
        if output.role == "merged":
            self.merged[output.kind] = tensors

    def _empty(self, output: Block, kind: str, index: int) -> Tensor:
        """Return what a row without inputs has: out or gradients 0, lse -inf."""
        shape = (output.num_rows, output.heads.size)
        k, v = self.inputs["kv"]
        if kind == "lse":
            return torch.full(shape, -torch.inf, dtype=k.dtype)
        width = {"q": v, "pack": k, "kv": (k, v)[index]}[kind].shape[-1]
        return torch.zeros((*shape, width), dtype=k.dtype)


def run_plans(
    plans: Sequence[RankPlan], inputs: Sequence[dict[str, Held]], scale: float
) -> list[dict[str, Held]]:
    """Walk the plans of all ranks together and return what each has merged, by kind."""
    ranks = [VirtualRank(plan, mine, scale) for plan, mine in zip(plans, inputs, strict=True)]
    for index in range(len(plans[0].steps)):
        for rank in ranks:
            for transfer in rank.plan.steps[index].sends:
                block = transfer.block
                rows = rank.read(block, block.rows, block.heads)
                ranks[transfer.dst].in_flight.append((transfer, rows))
        for rank in ranks:
            for compute in rank.plan.steps[index].computes:
                rank.compute(compute)
        for rank in ranks:
            # From here on merges, and from the next step on everything, sees what has come.
            for transfer, rows in rank.in_flight:
                rank.held[transfer.block.key] = (transfer.block, rows)
            rank.in_flight.clear()
            for merge in rank.plan.steps[index].merges:
                rank.merge(merge)
    return [rank.merged for rank in ranks]


def _visible(compute: Compute) -> Tensor:
    a = torch.arange(compute.q_rows)[:, None]
    b = torch.arange(compute.kv_rows)[None, :]
    lower, upper = compute.band
    visible = torch.ones(compute.q_rows, compute.kv_rows, dtype=torch.bool)
    if lower is not None:
        visible &= b - a >= lower
    if upper is not None:
        visible &= b - a <= upper
    return visible


def attention(
    q: Tensor, k: Tensor, v: Tensor, group: int, visible: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return (out, lse) of [rows, heads, width] tensors; rows that see nothing give 0 and -inf."""
    k, v = (tensor.repeat_interleave(group, dim=1)[:, : q.shape[1]] for tensor in (k, v))
    scores = torch.einsum("ahd,bhd->hab", q, k) * scale
    scores = scores.masked_fill(~visible, -torch.inf)
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None])
    return torch.einsum("hab,bhd->ahd", weights, v), lse.T


def _attention_backward(
    pack: Held, k: Tensor, v: Tensor, group: int, visible: Tensor, scale: float
) -> Held:
    q, dout, lse, delta = pack
    num_heads = q.shape[1]
    keys, values = (t.repeat_interleave(group, dim=1)[:, :num_heads] for t in (k, v))
    scores = torch.einsum("ahd,bhd->hab", q, keys) * scale
    weights = torch.exp(scores - lse.T[..., None]).masked_fill(~visible, 0.0)
    dweights = torch.einsum("ahd,bhd->hab", dout, values)
    dscores = weights * (dweights - delta.T[..., None]) * scale
    dq = torch.einsum("hab,bhd->ahd", dscores, keys)
    dk = torch.einsum("hab,ahd->bhd", dscores, q)
    dv = torch.einsum("hab,ahd->bhd", weights, dout)
    shared = (k.shape[0], k.shape[1], num_heads // k.shape[1])
    return dq, dk.reshape(*shared, -1).sum(2), dv.reshape(*shared, -1).sum(2)


def _merge_lse(parts: Sequence[Held]) -> Held:
    lse = torch.stack([part[1] for part in parts])
    total = torch.logsumexp(lse, dim=0)
    weights = torch.exp(lse - total.masked_fill(total == -torch.inf, 0.0))
    out = torch.stack([part[0] for part in parts])
    return (weights[..., None] * out).sum(0), total


def _add(parts: Sequence[Held]) -> Held:
    return tuple(torch.stack(tensors).sum(0) for tensors in zip(*parts, strict=True))
