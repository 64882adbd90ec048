"""The kernels of a block on the rank with the largest share, for any range of tokens. Pure."""

from functools import lru_cache

from tokenfabric.kernel import Kernel
from tokenweave.batch import Batch
from tokenweave.device import Device
from tokenweave.model_shape import ModelShape
from tokenweave.waves import Gemm, gemm_kernel, num_tiles, tile_s

_BYTES = 2
"""Of an element: bf16."""


def part_gemms(shape: ModelShape, world_size: int) -> tuple[tuple[Gemm, ...], ...]:
    """Return the GEMMs over tokens of each part on one rank: (attention, mlp)."""
    share = shape.largest_share(world_size)
    attention = (
        Gemm(name="qkv", n=share.query_columns + 2 * share.kv_columns, k=shape.hidden),
        Gemm(name="o", n=shape.hidden, k=share.query_columns),
    )
    if shape.num_experts:
        return attention, (Gemm(name="router", n=shape.num_experts, k=shape.hidden),)
    return attention, (
        Gemm(name="gate_up", n=2 * share.intermediate, k=shape.hidden),
        Gemm(name="down", n=shape.hidden, k=share.intermediate),
    )


class BlockCosts:
    """What the blocks of a model cost on one rank of a world. Remembers what it has worked out."""

    def __init__(self, shape: ModelShape, world_size: int, device: Device, batch: Batch) -> None:
        """Take what decides the cost; for one batch."""
        self._shape, self._device, self._batch = shape, device, batch
        self._share = shape.largest_share(world_size)
        self._gemms = part_gemms(shape, world_size)
        self._windows = shape.windows or ((None, shape.num_layers),)
        self._found: dict[tuple[int, int, int], tuple[Kernel, ...]] = {}
        self._times: dict[tuple[int, int, int, int], float] = {}

    def kernels(self, part: int, start: int, stop: int) -> tuple[Kernel, ...]:
        """Return the launches of part 0 (attention) or 1 (mlp) for flattened tokens [start, stop).

        Where layers differ in their window, attention is that of the average layer.
        """
        found = self._found.get((part, start, stop))
        if found is None:
            if part == 0:
                found = self._attention(start, stop)
            elif self._shape.num_experts:
                found = _expert_kernels(
                    stop - start, self._shape, self._share.intermediate, self._device
                )
            else:
                found = _dense_kernels(
                    stop - start, self._shape.hidden, self._share.intermediate, self._device
                )
            self._found[part, start, stop] = found
        return found

    def block_s(self, part: int, start: int, stop: int, num_sms: int) -> float:
        """Return the time of a block on so many SMs."""
        found = self._times.get((part, start, stop, num_sms))
        if found is None:
            found = sum(kernel.duration_s(num_sms) for kernel in self.kernels(part, start, stop))
            self._times[part, start, stop, num_sms] = found
        return found

    def flops(self, part: int, start: int, stop: int) -> int:
        """Return the floating-point operations of a block."""
        tokens = stop - start
        total = sum(2 * tokens * gemm.n * gemm.k for gemm in self._gemms[part])
        if part == 0:
            work = self._mean_attention(start, stop)
            return total + int(4 * work[0] * self._share.query_columns)
        rows = tokens * self._shape.experts_per_token
        return total + 6 * rows * self._shape.hidden * self._share.intermediate

    def _mean_attention(self, start: int, stop: int) -> tuple[float, float, float]:
        """Return pairs, keys and the longest row of the average layer."""
        sums = [0.0, 0.0, 0.0]
        for window, layers in self._windows:
            work = self._batch.attention(start, stop, window)
            for index, value in enumerate((work.pairs, work.keys, work.longest)):
                sums[index] += value * layers / self._shape.num_layers
        return sums[0], sums[1], sums[2]

    def _attention(self, start: int, stop: int) -> tuple[Kernel, ...]:
        tokens, device, share = stop - start, self._device, self._share
        qkv, out = self._gemms[0]
        pairs, keys, longest = self._mean_attention(start, stop)
        moved = _BYTES * tokens / device.memory_bandwidth
        rate = device.attention_flops_per_sm
        rows = min(tokens, device.attention_rows)
        return (
            gemm_kernel(tokens, qkv.n, qkv.k, device, qkv.name),
            Kernel(
                name="rotary",
                start_s=device.elementwise_start_s,
                memory_s=2 * moved * (share.query_columns + share.kv_columns),
            ),
            Kernel(
                name="kv write",
                start_s=device.elementwise_start_s,
                memory_s=4 * moved * share.kv_columns,
            ),
            Kernel(
                name="attention",
                start_s=device.attention_start_s,
                even_s=4.0 * pairs * share.query_columns / rate,
                serial_s=4.0 * rows * longest * self._shape.head_dim / rate * device.attention_tail,
                memory_s=_BYTES * 2 * keys * share.kv_columns / device.memory_bandwidth,
            ),
            gemm_kernel(tokens, out.n, out.k, device, out.name),
        )


@lru_cache(maxsize=4096)
def _dense_kernels(
    tokens: int, hidden: int, intermediate: int, device: Device
) -> tuple[Kernel, ...]:
    return (
        gemm_kernel(tokens, 2 * intermediate, hidden, device, "gate_up"),
        Kernel(
            name="activation",
            start_s=device.elementwise_start_s,
            memory_s=3 * _BYTES * tokens * intermediate / device.memory_bandwidth,
        ),
        gemm_kernel(tokens, hidden, intermediate, device, "down"),
    )


@lru_cache(maxsize=4096)
def _expert_kernels(
    tokens: int, shape: ModelShape, intermediate: int, device: Device
) -> tuple[Kernel, ...]:
    hidden, rows = shape.hidden, tokens * shape.experts_per_token

    def grouped(n: int, k: int, name: str) -> Kernel:
        # A token's experts fall anywhere: the last tile of each expert is half full on average.
        tile = device.expert_tile
        busy = min(shape.num_experts, rows)
        row_tiles = rows / tile.rows + 0.5 * busy
        weights = busy * n * k
        return Kernel(
            name=name,
            start_s=device.gemm_start_s,
            tiles=max(busy, round(row_tiles)) * num_tiles(1, n, tile),
            tile_s=tile_s(k, tile, device.expert_flops_per_sm, device.tile_start_s),
            wave_smoothing=device.wave_smoothing,
            memory_s=_BYTES * (weights + rows * (n + k)) / device.memory_bandwidth,
        )

    moved = _BYTES / device.memory_bandwidth
    return (
        gemm_kernel(tokens, shape.num_experts, hidden, device, "router"),
        Kernel(name="top k", start_s=device.elementwise_start_s),
        Kernel(name="sort by expert", start_s=device.elementwise_start_s),
        grouped(2 * intermediate, hidden, "experts gate_up"),
        Kernel(
            name="activation",
            start_s=device.elementwise_start_s,
            memory_s=3 * moved * rows * intermediate,
        ),
        grouped(hidden, intermediate, "experts down"),
        Kernel(
            name="sum of experts",
            start_s=device.elementwise_start_s,
            memory_s=moved * hidden * (rows + tokens),
        ),
    )
