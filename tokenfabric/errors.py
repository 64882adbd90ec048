"""The exceptions a user of tokenfabric can meet. The native code raises the same classes.

TokenFabricError
  ConfigError        an argument is out of range or unsupported (also a ValueError)
  TopologyError      the machine or the ranks' placement cannot do what was asked
  CommError          something went wrong between ranks
    MismatchError      the ranks made different calls; nothing moved, the world stays usable
    PeerLostError      a rank's process is gone; the world is broken
    CommTimeoutError   a rank did not answer before the deadline; the world is broken
"""


class TokenFabricError(Exception):
    """Root of every error raised by this library on purpose."""


class ConfigError(TokenFabricError, ValueError):
    """An argument is out of range or unsupported. The message names value, limit and what to do."""


class TopologyError(TokenFabricError):
    """The machine or the placement of the ranks cannot do what was asked."""


class CommError(TokenFabricError):
    """A collective failed.

    Attributes:
        rank: the rank that raises, or -1 where it is not known.
        peer_rank: the rank to blame, or -1 when it is not one rank.
        operation: name of the collective.
        epoch: number of the barrier (or allocation) that was waited for, equal on all ranks.
    """

    def __init__(
        self,
        message: str,
        *,
        rank: int = -1,
        peer_rank: int = -1,
        operation: str = "",
        epoch: int = 0,
    ) -> None:
        super().__init__(message)
        self.rank = rank
        self.peer_rank = peer_rank
        self.operation = operation
        self.epoch = epoch


class MismatchError(CommError):
    """The ranks called different collectives. Raised on every rank before any data moved."""


class PeerLostError(CommError):
    """A peer's process died or closed its world. The world is broken on every survivor."""


class CommTimeoutError(CommError):
    """A peer is alive but did not signal before the deadline. The world is broken on every rank."""
