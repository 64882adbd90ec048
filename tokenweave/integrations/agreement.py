"""Steps that all ranks take together or not at all, after comparing what they were given."""

import hashlib
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from tokenfabric.errors import ConfigError, MismatchError
from tokenfabric.world import World
from tokenweave import ops

T = TypeVar("T")

_REFUSED = 0
"""In place of a fingerprint: this rank found something that it does not support."""


def prepare_together(
    world: World, prepare: Callable[[], tuple[T, int]], *, operation: str, what: str
) -> T:
    """Return what `prepare` returns, when it succeeds everywhere with one fingerprint. Collective.

    Args:
        world: the ranks.
        prepare: returns (result, fingerprint); raises ConfigError where this rank cannot go on.
        operation: name of the call, for the error.
        what: what the fingerprint is of, for the error.

    Raises:
        ConfigError: `prepare` raised it here, or on another rank.
        MismatchError: the fingerprints differ (raised on every rank).
    """
    own_error, result, own = None, None, _REFUSED
    try:
        result, own = prepare()
    except ConfigError as error:
        own_error = error
    fingerprints = ops.all_gather(torch.tensor([own], device=world.device), world=world).tolist()
    if own_error is not None:
        raise own_error
    if _REFUSED in fingerprints:
        raise ConfigError(
            f"rank {fingerprints.index(_REFUSED)} refused in {operation}; its own error says why"
        )
    different = [rank for rank, other in enumerate(fingerprints) if other != fingerprints[0]]
    if different:
        raise MismatchError(
            f"{operation} was given a different {what} on rank {different[0]} than on rank 0",
            rank=world.rank,
            peer_rank=different[0],
            operation=operation,
        )
    assert result is not None
    return result


def agree_on_arithmetic(world: World, *, operation: str) -> None:
    """Check that all ranks get the same bits from the same numbers. Collective.

    A model that takes decisions on each rank, such as which experts a token goes to, needs that.

    Args:
        world: the ranks.
        operation: name of the call, for the error.

    Raises:
        MismatchError: another torch, instruction set or number of threads on some rank (raised on
            every rank).
    """
    threads, instructions = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    own = f"torch {torch.__version__}, {instructions}, {threads} threads"
    if world.cuda is not None:
        own = f"torch {torch.__version__}, {torch.cuda.get_device_name(world.device)}"
    prepare_together(
        world,
        lambda: (own, fingerprint([("arithmetic", own)])),
        operation=operation,
        what=f"arithmetic (here {own}), by which ranks could choose different experts,",
    )


def fingerprint(values: Iterable[tuple[str, object]]) -> int:
    """Return a nonzero 64-bit hash of named values; a tensor counts with its shape and bytes."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in values:
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(_bytes_of(value))
        else:
            digest.update(f"{name} {value!r}".encode())
    return int.from_bytes(digest.digest(), "little", signed=True) or 1


def _bytes_of(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().tobytes()
