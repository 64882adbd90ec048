"""The forms of norm that a fused reduction has, as words."""

from typing import Literal

NormKind = Literal["rms_norm", "layer_norm"]
"""rms_norm: s * rsqrt(mean(s ** 2) + eps) * weight. layer_norm: (s - mean(s)) * rsqrt(var(s) + eps)
* weight + norm_bias, with the variance of the whole population.
"""
Numerics = Literal["fused", "drop_in"]
"""fused: the sum over ranks and the results are rounded, nothing between. drop_in: rounded wherever
separate framework operations round, for people who compare bits.
"""
