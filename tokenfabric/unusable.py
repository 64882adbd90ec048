"""Why a world cannot do what it is asked."""

from typing import TYPE_CHECKING

from tokenfabric.errors import ConfigError, TokenFabricError, TopologyError

if TYPE_CHECKING:
    from tokenfabric.world import World


def why_no_communicator(world: "World") -> TokenFabricError:
    """Return why a world has not the communicator that was asked for."""
    if world.left_by is not None:
        return ConfigError(
            f"this process was forked from rank {world.rank} of {world.size} (process "
            f"{world.left_by}), whose world is not the child's: use it there, or spawn"
        )
    if world.is_closed:
        return ConfigError(f"this world (rank {world.rank} of {world.size}) is closed")
    return TopologyError(
        f"this needs memory that all {world.size} ranks share, but they lie on {world.num_hosts} "
        f"hosts: rank {world.rank} shares memory with ranks {list(world.layout.host_ranks)} only"
    )
