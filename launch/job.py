"""What to run: a recipe, its arguments, on how many ranks. Pure: nothing is started here.

A `JobSpec` is plain data, so that any launcher (torchrun, a Ray gang) can carry it to a rank.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tokenfabric.errors import ConfigError

_RECIPE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_AXES = ("dp", "ring", "tp")
_PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSpec:
    """One job: `recipe(world, reporter, **args)` on `ranks` ranks."""

    recipe: str
    """`package.module:function`, importable on every rank."""

    ranks: int
    """Number of ranks, at least 1."""

    nodes: int = 1
    """Nodes that share the ranks equally."""

    mesh: Mapping[str, int] = field(default_factory=dict)
    """Ranks along each axis, of which they are the product: "dp", "ring" and "tp". Ranks that
    follow each other are neighbours along the last of them, so that "tp" lies inside a node. Empty:
    the recipe decides."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the ranks' processes, beside those that the launcher sets; on Ray only."""

    args: Mapping[str, object] = field(default_factory=dict)
    """Keyword arguments of the recipe: strings, numbers, booleans, None, and lists of them."""

    device: str = "auto"
    """What `tokenfabric.init` takes: auto, cpu or cuda."""

    timeout_s: float = 60.0
    """Seconds that one rank waits for another before the job fails."""

    num_threads: int | None = None
    """Compute threads of each rank; None: OMP_NUM_THREADS, or as many as the rank has cores."""

    pin: bool | None = None
    """Whether each rank runs on cores of its own: True must, False must not, None if it can."""

    max_restarts: int = 0
    """How many times all ranks are started again after one has failed, unless what was asked for
    cannot be met: for recipes that go on where they were."""

    def __post_init__(self) -> None:
        if not _RECIPE.fullmatch(self.recipe):
            raise ConfigError(f"recipe must be 'package.module:function', got {self.recipe!r}")
        if self.ranks < 1:
            raise ConfigError(f"ranks must be at least 1, got {self.ranks}")
        if self.nodes < 1 or self.ranks % self.nodes:
            raise ConfigError(
                f"nodes must be at least 1 and share {self.ranks} ranks equally, got {self.nodes}"
            )
        self._check_mesh()
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s must be above 0 seconds, got {self.timeout_s}")
        if self.max_restarts < 0:
            raise ConfigError(f"max_restarts must be at least 0, got {self.max_restarts}")
        if self.num_threads is not None and self.num_threads < 1:
            raise ConfigError(f"num_threads must be at least 1, got {self.num_threads}")
        for name, value in self.args.items():
            if not name.isidentifier():
                raise ConfigError(f"args must have Python names for keys, got {name!r}")
            if not _is_plain(value):
                raise ConfigError(
                    f"args[{name!r}] must be plain data (str, int, float, bool, None or a list of "
                    f"them) to travel to another process, got {type(value).__name__}"
                )

    def _check_mesh(self) -> None:
        if unknown := [name for name in self.mesh if name not in _AXES]:
            raise ConfigError(f"mesh has axes {', '.join(_AXES)}, got {unknown[0]!r}")
        if small := [name for name, size in self.mesh.items() if size < 1]:
            raise ConfigError(f"mesh axis {small[0]} must be at least 1, got {self.mesh[small[0]]}")
        if self.mesh and math.prod(self.mesh.values()) != self.ranks:
            raise ConfigError(
                f"{describe_mesh(self.mesh)} is {math.prod(self.mesh.values())} ranks, but there "
                f"are {self.ranks}"
            )
        if self.ranks_per_node % (tp := self.mesh.get("tp", 1)):
            raise ConfigError(
                f"tp {tp} must lie inside a node, whose {self.ranks_per_node} rank(s) it does not "
                "divide: take fewer --nodes or another --tp"
            )

    def with_args(self, **args: object) -> "JobSpec":
        """Return the same job with more arguments."""
        return replace(self, args={**self.args, **args})

    @property
    def ranks_per_node(self) -> int:
        return self.ranks // self.nodes

    @property
    def module(self) -> str:
        """The module that holds the recipe."""
        return self.recipe.partition(":")[0]

    @property
    def function(self) -> str:
        """The recipe's name in its module."""
        return self.recipe.partition(":")[2]


def describe_mesh(mesh: Mapping[str, int]) -> str:
    """Return a mesh in words: "dp 2 x ring 4"."""
    return " x ".join(f"{name} {size}" for name, size in mesh.items())


def threads_per_rank(num_cores: int, ranks: int) -> int:
    """Return the number of compute threads of each rank: an equal share of the cores, at least 1.

    Example: 8 cores and 3 ranks give 2 threads each.
    """
    return max(1, num_cores // ranks)


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return isinstance(value, _PLAIN)
