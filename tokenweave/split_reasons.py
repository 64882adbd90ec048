"""Why a pass is split where it is, in words and numbers. Pure."""

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
    for part in (0, 1):
        whole, head, tail = (
            costs.kernels(part, *bounds)
            for bounds in ((0, plan.num_tokens), plan.tokens_of("head"), plan.tokens_of("tail"))
        )
        for kernels in zip(whole, head, tail, strict=True):
            if kernels[0].tiles:
                waves = [-(-kernel.tiles // device.num_sms) for kernel in kernels]
                lines.append(
                    f"{kernels[0].name}: {kernels[0].tiles} tiles in {waves[0]} waves, split "
                    f"{kernels[1].tiles} + {kernels[2].tiles} in {waves[1]} + {waves[2]}"
                )
    lines.append("it also pays with a slower link and with contention (split_cost.PESSIMISTIC)")
    return tuple(lines)
