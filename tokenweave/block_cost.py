"""The kernels of a block on the rank with the largest share, for any range of tokens. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tokenfabric.kernel import Kernel
from tokenweave.batch import Batch
from tokenweave.device import Device
from tokenweave.model_shape import ModelShape, RankShare
from tokenweave.waves import Gemm, TiledGemm, Tiling

_BYTES = 2
"""Of an element: bf16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerPart:
    """One part of a layer on the rank with the largest share, but for attention itself."""

    gemms: tuple[TiledGemm, ...]
    moves_s: Mapping[str, float]
    """Kernels that only move data: the time that each needs for a token."""
    start_s: float
    """Of all these kernels."""
    token_s: float
    """Of the moves together."""


@lru_cache(maxsize=64)
def layer_parts(
    shape: ModelShape, world_size: int, device: Device
) -> tuple[RankShare, tuple[LayerPart, ...]]:
    """Return what a rank holds of a model, and its parts (attention, mlp). Made once and kept."""
    share = shape.largest_share(world_size)
    attention = (
        Gemm(name="qkv", n=share.query_columns + 2 * share.kv_columns, k=shape.hidden),
        Gemm(name="o", n=shape.hidden, k=share.query_columns),
    )
    moved = {
        "rotary": 2 * (share.query_columns + share.kv_columns),
        "kv write": 4 * share.kv_columns,
    }
    mlp = _mlp_with_experts if shape.num_experts else _mlp
    return share, (_part(attention, moved, device), _part(*mlp(shape, share), device))


class BlockCosts:
    """What the blocks of a model cost on one rank of a world, for one batch."""

    def __init__(self, shape: ModelShape, world_size: int, device: Device, batch: Batch) -> None:
        """Take what decides the cost."""
        self._shape, self._device, self._batch = shape, device, batch
        windows = shape.windows or ((None, shape.num_layers),)
        self._windows = tuple((window, count / shape.num_layers) for window, count in windows)
        self._share, self._parts = layer_parts(shape, world_size, device)
        flop_s = 4.0 / device.attention_flops_per_sm
        self._pair_s = self._share.query_columns * flop_s
        self._tail_s = shape.head_dim * flop_s * device.attention_tail
        self._key_s = 2 * _BYTES * self._share.kv_columns / device.memory_bandwidth
        self.layer_start_s = sum(part.start_s for part in self._parts) + device.attention_start_s
        """What launching the kernels of a layer takes, without their work."""

    def tilings(self) -> dict[str, Tiling]:
        """Return how each GEMM of a layer is cut for all tokens of the batch."""
        gemms = (gemm for part in self._parts for gemm in part.gemms)
        return {it.gemm.name: it.tiling(self._batch.num_tokens) for it in gemms}

    def kernels(self, part: int, start: int, stop: int) -> tuple[Kernel, ...]:
        """Return the launches of part 0 (attention) or 1 (mlp) for flattened tokens [start, stop).

        Where layers differ in their window, attention is that of the average layer.
        """
        tokens, start_s = stop - start, self._device.elementwise_start_s
        gemms = [gemm.kernel(tokens) for gemm in self._parts[part].gemms]
        moves = [
            Kernel(name=name, start_s=start_s, memory_s=tokens * token_s)
            for name, token_s in self._parts[part].moves_s.items()
        ]
        if part == 0:
            return gemms[0], *moves, self._attention(start, stop), gemms[1]
        if not self._shape.num_experts:
            return gemms[0], *moves, gemms[1]
        router, gate_up, down = gemms
        top_k, sort, activation, total = moves
        return router, top_k, sort, gate_up, activation, down, total

    def block_s(self, part: int, start: int, stop: int, sms: Sequence[int]) -> list[float]:
        """Return the time of a block on each number of SMs: the sum over its kernels."""
        times_s = self.without_attention_s(part, stop - start, sms)
        return times_s if part else self.with_attention_s(times_s, start, stop, sms)

    def without_attention_s(self, part: int, tokens: int, sms: Sequence[int]) -> list[float]:
        """Return the time of what depends on the number of tokens alone."""
        costs = self._parts[part]
        works = [gemm.work(tokens) for gemm in costs.gemms]
        base_s = costs.start_s + tokens * costs.token_s
        times_s = []
        for num_sms in sms:
            time_s = base_s
            for tiles, tile_s, memory_s in works:
                work_s = -(-tiles // num_sms) * tile_s
                time_s += work_s if work_s > memory_s else memory_s
            times_s.append(time_s)
        return times_s

    def with_attention_s(
        self, times_s: Sequence[float], start: int, stop: int, sms: Sequence[int]
    ) -> list[float]:
        """Return the times with that of the attention of tokens [start, stop) added."""
        even_s, serial_s, memory_s = self._attention_s(start, stop)
        start_s = self._device.attention_start_s
        serial_s, memory_s = serial_s + start_s, memory_s + start_s
        return [
            time_s + (all_s if (all_s := even_s / num_sms + serial_s) > memory_s else memory_s)
            for time_s, num_sms in zip(times_s, sms, strict=True)
        ]

    def flops(self, part: int, start: int, stop: int) -> int:
        """Return the floating-point operations of a block."""
        tokens = stop - start
        gemms = (it.gemm for it in self._parts[part].gemms)
        total = sum(2 * tokens * it.rows_per_token * it.n * it.k for it in gemms)
        if part == 0:
            device = self._device
            total += int(self._attention_s(start, stop)[0] * device.attention_flops_per_sm)
        return total

    def _attention(self, start: int, stop: int) -> Kernel:
        even_s, serial_s, memory_s = self._attention_s(start, stop)
        return Kernel(
            name="attention",
            start_s=self._device.attention_start_s,
            even_s=even_s,
            serial_s=serial_s,
            memory_s=memory_s,
        )

    def _attention_s(self, start: int, stop: int) -> tuple[float, float, float]:
        """Return what divides over SMs, the longest piece, and what memory needs.

        Of the average layer.
        """
        pairs = keys = longest = 0.0
        for window, share in self._windows:
            work = self._batch.attention(start, stop, window)
            pairs += share * work.pairs
            keys += share * work.keys
            longest += share * work.longest
        rows = min(stop - start, self._device.attention_rows)
        return pairs * self._pair_s, rows * longest * self._tail_s, keys * self._key_s


def _mlp(shape: ModelShape, share: RankShare) -> tuple[tuple[Gemm, ...], dict[str, int]]:
    """Return the GEMMs of a dense MLP, and how many elements of a token its moves touch."""
    gemms = (
        Gemm(name="gate_up", n=2 * share.intermediate, k=shape.hidden),
        Gemm(name="down", n=shape.hidden, k=share.intermediate),
    )
    return gemms, {"activation": 3 * share.intermediate}


def _mlp_with_experts(
    shape: ModelShape, share: RankShare
) -> tuple[tuple[Gemm, ...], dict[str, int]]:
    rows, experts, hidden = shape.experts_per_token, shape.num_experts, shape.hidden
    gemms = (
        Gemm(name="router", n=experts, k=hidden),
        Gemm(
            name="experts gate_up",
            n=2 * share.intermediate,
            k=hidden,
            rows_per_token=rows,
            experts=experts,
        ),
        Gemm(
            name="experts down",
            n=hidden,
            k=share.intermediate,
            rows_per_token=rows,
            experts=experts,
        ),
    )
    moved = {
        "top k": 0,
        "sort by expert": 0,
        "activation": 3 * rows * share.intermediate,
        "sum of experts": hidden * (rows + 1),
    }
    return gemms, moved


def _part(gemms: tuple[Gemm, ...], moved: Mapping[str, int], device: Device) -> LayerPart:
    moves_s = {name: _BYTES * count / device.memory_bandwidth for name, count in moved.items()}
    return LayerPart(
        gemms=tuple(TiledGemm(gemm, device) for gemm in gemms),
        moves_s=moves_s,
        start_s=len(gemms) * device.gemm_start_s + len(moved) * device.elementwise_start_s,
        token_s=sum(moves_s.values()),
    )
