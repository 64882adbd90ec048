"""How the agents of one attempt meet: on a store that one of them keeps, in the order of nodes.

torch's elastic agent asks a RendezvousHandler. Its own ones listen on every interface of the host;
this one's store listens on the one interface that was named, or on the loopback interface.
"""

from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed import DistError
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from launch.failure import Failure, FailureKind, from_json, to_json
from launch.store import LOOPBACK, StoreLostError, open_store, wait_for

BACKEND = "tokenfabric"
FAILED = "tokenfabric/failed"
"""Of the store: the first cause that a node found, as JSON."""

# After the first failure, how long another node may take to tell a better cause, and how long the
# node that keeps the store waits until all have read it.
_TOLD_WITHIN_S = 3.0


class GangRendezvous(RendezvousHandler):
    """One attempt's: the store, and this node's place."""

    def __init__(
        self, store: TCPStore, *, host: str, port: int, node_rank: int = 0, nodes: int = 1
    ) -> None:
        """Take a store, kept by node 0's process at host:port."""
        self._store = store
        self.host, self.port = host, port
        self.node_rank, self.nodes = node_rank, nodes

    @classmethod
    def alone(cls) -> "GangRendezvous":
        """Return the rendezvous of a host that is the only one."""
        store, port = open_store(LOOPBACK)
        return cls(store, host=LOOPBACK, port=port)

    def settle(self, found: Failure) -> Failure:
        """Agree with the other nodes on the cause of a failure.

        Args:
            found: what this node saw.
        """
        if self.nodes == 1:
            return found
        try:
            if found.kind is FailureKind.CONSEQUENCE:
                wait_for(self._store, [FAILED], _TOLD_WITHIN_S)
            cause = from_json(self._store.compare_set(FAILED, "", to_json(found)))
            self._store.set(_read_by(self.node_rank), "")
            if self.node_rank == 0:
                everyone = [_read_by(node) for node in range(self.nodes)]
                wait_for(self._store, everyone, _TOLD_WITHIN_S)
        except (StoreLostError, DistError):
            return found
        return cause

    # ---- what the agent asks ----

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        return RendezvousInfo(
            PrefixStore("agents", self._store),
            self.node_rank,
            self.nodes,
            RendezvousStoreInfo(self.host, self.port),
        )

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nobody can come later: nothing to close."""

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return f"{self.host}:{self.port}"

    def shutdown(self) -> bool:
        return True


def register() -> None:
    """Tell torch of the handler. It travels in the configuration, already made."""
    rendezvous_handler_registry.register(BACKEND, _made)


def _made(parameters: RendezvousParameters) -> RendezvousHandler:
    handler = parameters.get("handler")
    assert isinstance(handler, GangRendezvous)
    return handler


def _read_by(node_rank: int) -> str:
    return f"tokenfabric/read by {node_rank}"
