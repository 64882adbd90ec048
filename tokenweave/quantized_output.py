"""What a reduction with 8-bit results is asked for."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from tokenfabric.errors import ConfigError

QuantizedFormat = Literal["fp8_e4m3", "int8"]
Scaling = Literal["static", "per_token", "per_group"]

GROUP_ELEMENTS = 128
# Below it an inverse has no place in fp32.
_SMALLEST_SCALE = 2.0**-126
_LARGEST_SCALE = 2.0**126


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedOutput:
    """Codes of 8 bits for the layer that follows: code = round(normed * (1 / scale)), to nearest
    even, saturating; what a code stands for is code * scale.

    Codes are of normed as it is without quantisation, rounded to the activation dtype: quantising
    that result gives these codes. A dynamic scale is the largest magnitude of its token or group /
    the largest code (448 or 127), in fp32; where that is below 2 ** -126, for zeros above all, it
    is 1. NaN makes a dynamic scale NaN, infinity makes it infinite.

    Raises:
        ConfigError: an option is none of those there are, or scale is missing, superfluous or not
            between 2 ** -126 and 2 ** 126.
    """

    format: QuantizedFormat = "fp8_e4m3"
    """fp8_e4m3: torch.float8_e4m3fn, to 448, NaN stays NaN (0x7f). int8: -127 to 127, NaN is 0."""
    scaling: Scaling = "per_token"
    """static: `scale` for all. per_token: scales [tokens]. per_group: of 128 consecutive channels,
    scales [tokens, ceil(hidden / 128)].
    """
    scale: float | None = None
    """The static scale, equal on all ranks."""
    keeps_normed: bool = False
    """Whether the result without quantisation is returned too."""

    def __post_init__(self) -> None:
        for name, value, options in (
            ("format", self.format, get_args(QuantizedFormat)),
            ("scaling", self.scaling, get_args(Scaling)),
        ):
            if value not in options:
                raise ConfigError(f"{name} must be one of {options}, got {value!r}")
        if (self.scaling == "static") != (self.scale is not None):
            raise ConfigError(
                f"static scaling needs a scale and no other takes one: got {self.scale} with "
                f"{self.scaling} scaling"
            )
        if self.scale is not None and not _SMALLEST_SCALE <= self.scale <= _LARGEST_SCALE:
            raise ConfigError(f"scale must be between 2**-126 and 2**126, got {self.scale}")

    def group_elements(self, hidden: int) -> int:
        """Return how many channels share a scale, in whole vectors of 32; 0 when it is static."""
        if self.scaling == "static":
            return 0
        return GROUP_ELEMENTS if self.scaling == "per_group" else 32 * math.ceil(hidden / 32)

    def scales_shape(self, tokens: tuple[int, ...], hidden: int) -> tuple[int, ...]:
        """Return the shape of the scales of [*tokens, hidden]."""
        if self.scaling == "static":
            return ()
        if self.scaling == "per_token":
            return tokens
        return (*tokens, -(-hidden // GROUP_ELEMENTS))

    def row_bytes(self, hidden: int, element_size: int) -> int:
        """Return the bytes of one token's results, the residual left out."""
        num_scales = math.prod(self.scales_shape((1,), hidden)) if self.scale is None else 0
        return hidden + 4 * num_scales + (hidden * element_size if self.keeps_normed else 0)
