"""Which implementation of local attention computes a call, and why not the others. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tokenfabric.errors import ConfigError

BandKind = Literal["full", "causal", "offset", "window"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalNeeds:
    """What the calls of one attention need of the implementation."""

    device: str
    """"cpu" or "cuda"."""
    dtype: str
    """Of q, k, v: "float32", "bfloat16", "float16" or "float64"."""
    head_dim: int
    head_dim_v: int
    bands: frozenset[BandKind] = frozenset({"full"})
    """Of all blocks; see `band_kind`."""
    has_softcap: bool = False
    needs_backward: bool = False
    is_deterministic: bool = False
    """The same bits whenever the same call is made."""

    def __post_init__(self) -> None:
        for name in ("head_dim", "head_dim_v"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name} is {value}: pass at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Capability:
    """What an implementation can do."""

    name: str
    devices: frozenset[str]
    dtypes: frozenset[str]
    bands: frozenset[BandKind]
    max_head_dim: int | None
    has_softcap: bool
    has_backward: bool
    is_deterministic: bool
    why_unavailable: str | None = None
    """What this installation lacks."""
    is_optional: bool = False
    """Whether it needs something besides torch itself: that this is not there is no news."""

    def why_not(self, needs: LocalNeeds) -> str | None:
        """Return the first need that is not met, in words, or None."""
        head_dim = max(needs.head_dim, needs.head_dim_v)
        missing = sorted(needs.bands - self.bands)
        if self.why_unavailable is not None:
            return self.why_unavailable
        if needs.device not in self.devices:
            return f"runs on {_listed(self.devices)}, not on {needs.device}"
        if needs.dtype not in self.dtypes:
            return f"computes {_listed(self.dtypes)}, not {needs.dtype}"
        if self.max_head_dim is not None and head_dim > self.max_head_dim:
            return f"takes head dimensions up to {self.max_head_dim}, not {head_dim}"
        if missing:
            return f"has no {missing[0]} mask"
        if needs.has_softcap and not self.has_softcap:
            return "has no softcap"
        if needs.needs_backward and not self.has_backward:
            return "has no backward"
        if needs.is_deterministic and not self.is_deterministic:
            return "is not deterministic"
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalChoice:
    """The implementation taken, and the reasons against those that were preferred to it."""

    name: str
    refusals: tuple[tuple[str, str], ...]
    """(name, reason) of each one asked before."""

    def explain(self) -> str:
        """Return one line: "tiled (flash_cpu: has no softcap)"."""
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.refusals)
        return f"{self.name} ({reasons})" if reasons else self.name


def band_kind(lower: int | None, upper: int | None) -> BandKind:
    """Return the name of a band's shape, as capabilities are stated.

    full: no bound. causal: b <= a. window: a lower bound. offset: only another upper bound.
    """
    if lower is not None:
        return "window"
    if upper is None:
        return "full"
    return "causal" if upper == 0 else "offset"


def choose_capability(
    needs: LocalNeeds, capabilities: Sequence[Capability], name: str = "auto"
) -> LocalChoice:
    """Return the first that can, or the named one.

    Raises:
        ConfigError: none can, or the named one cannot or does not exist; with the reasons.
    """
    if name != "auto":
        known = {capability.name: capability for capability in capabilities}
        if name not in known:
            raise ConfigError(
                f"local attention {name!r} does not exist; pass one of {_listed(known)}, or auto"
            )
        if reason := known[name].why_not(needs):
            raise ConfigError(f"local attention {name!r} cannot do this: it {reason}; pass auto")
        return LocalChoice(name=name, refusals=())
    refusals: list[tuple[str, str]] = []
    for capability in capabilities:
        reason = capability.why_not(needs)
        if reason is None:
            return LocalChoice(name=capability.name, refusals=tuple(refusals))
        refusals.append((capability.name, reason))
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals)
    raise ConfigError(f"no implementation of local attention can do {needs}: {reasons}")


def _listed(names: frozenset[str] | dict[str, Capability]) -> str:
    return ", ".join(sorted(names))
