"""Why a pass is split where it is, in words and numbers. Pure."""

from tokenfabric.kernel import num_waves
from tokenweave.block_cost import BlockCosts
from tokenweave.device import Device
from tokenweave.split_plan import Prediction, SplitPlan


def split_reasons(
    plan: SplitPlan, prediction: Prediction, costs: BlockCosts, device: Device
) -> tuple[str, ...]:
    """Return one sentence for each reason of a split plan."""
    assert prediction.split_s is not None
    lines = [
        f"predicted on {device.name}: {prediction.split_s * 1e3:.3f} ms split, "
        f"{prediction.fused_only_s * 1e3:.3f} ms fused only, {prediction.unfused_s * 1e3:.3f} ms "
        f"with all-reduce and norm apart: {prediction.unfused_s / prediction.split_s:.2f}x",
    ]
    sizes = (plan.num_tokens, plan.boundary, plan.num_tokens - plan.boundary)
    for name, tiling in costs.tilings().items():
        whole, head, tail = (tiling.tiles(tokens) for tokens in sizes)
        waves = [num_waves(tiles, device.num_sms) for tiles in (whole, head, tail)]
        lines.append(
            f"{name}: {whole} tiles in {waves[0]} waves, split {head} + {tail} in "
            f"{waves[1]} + {waves[2]}"
        )
    lines.append("it also pays with a slower link and with contention (split_cost.PESSIMISTIC)")
    return tuple(lines)
