"""What to run: a recipe, its arguments, on how many ranks. Pure: nothing is started here.

A `JobSpec` is plain data, so that any launcher (torchrun, a Ray gang) can carry it to a rank.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tokenfabric.errors import ConfigError

_RECIPE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSpec:
    """One job: `recipe(world, reporter, **args)` on `ranks` ranks."""

    recipe: str
    """`package.module:function`, importable on every rank."""

    ranks: int
    """Number of ranks, at least 1."""

    nodes: int = 1
    """Nodes that share the ranks equally; more than 1 on Ray only."""

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


def threads_per_rank(num_cores: int, ranks: int) -> int:
    """Return the number of compute threads of each rank: an equal share of the cores, at least 1.

    Example: 8 cores and 3 ranks give 2 threads each.
    """
    return max(1, num_cores // ranks)


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return isinstance(value, _PLAIN)
