"""The GPU of this rank: which one it is, and what it can do. Nothing else here asks a driver."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch

from tokenfabric import env, native, topology
from tokenfabric.cuda.capability import CudaCapability
from tokenfabric.cuda.kernels.launcher import kernel_backend, kernel_launcher
from tokenfabric.errors import ConfigError, MismatchError, TokenFabricError, TopologyError

CARD_BYTES = 8192
"""Of a packed capability: every rank sends as many, or gloo would abort the process."""
_MOST_PROBLEM_CHARACTERS = 2000


def why_no_cuda() -> str:
    """Return why this process cannot use a GPU, "" if it can. Makes no CUDA context."""
    try:
        backend = kernel_backend()
    except ConfigError as error:
        return str(error)
    if backend.way == "none":
        return backend.reason
    problem = native.cuda.runtime().problem
    if problem:
        return problem
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no usable GPU"
    return ""


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """Return the GPU that a rank takes.

    Args:
        wanted: "cuda", or "cuda:1" for a certain one.
        local_rank: this rank among those of its host.

    Raises:
        ConfigError: `wanted` is no device.
        TopologyError: there is no such GPU, or none at all.
    """
    kind, _, index = wanted.partition(":")
    if kind != "cuda" or (index and not index.isdecimal()):
        raise ConfigError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:0', got {wanted!r}")
    problem = why_no_cuda()
    if problem:
        raise TopologyError(
            f"device {wanted!r} is not available: {problem}. Use 'cpu'; `tokenfabric doctor` says "
            "what this machine can run"
        )
    count = torch.cuda.device_count()
    return torch.device("cuda", device_index(int(index) if index else None, local_rank, count))


def device_index(wanted: int | None, local_rank: int, num_devices: int) -> int:
    """Return the ordinal of a rank's GPU among the `num_devices` that it sees.

    A rank that sees one takes it: launchers that give each rank its own GPU show it nothing else,
    and its local rank says nothing then.

    Raises:
        TopologyError: there is no such GPU.
    """
    if wanted is not None:
        chosen = wanted
    elif num_devices == 1:
        chosen = 0
    elif env.allows_overlapping_gpus():
        chosen = local_rank % max(1, num_devices)
    else:
        chosen = local_rank
    if chosen >= num_devices:
        raise TopologyError(
            f"local rank {local_rank} would take GPU {chosen}, but sees {num_devices}: start at "
            "most one rank a GPU, or say which with device='cuda:0'"
        )
    return chosen


def read_capability(device: torch.device) -> tuple[CudaCapability, bytes]:
    """Return what this rank can do with a GPU, and the table that it chooses algorithms by.

    Makes a CUDA context there. Does not raise: the other ranks wait to hear of it.
    """
    host = topology.host_fingerprint().hex()
    problem = why_no_cuda()
    if problem:
        return CudaCapability(host=host, problem=problem), b""
    try:
        table = _table()
        return _ask(device, host, table), table
    except (RuntimeError, TokenFabricError) as error:
        return CudaCapability(host=host, problem=f"{device}: {error}"), b""


def _ask(device: torch.device, host: str, table: bytes) -> CudaCapability:
    from torch._C._autograd import DeviceType
    from torch._C._distributed_c10d import _SymmetricMemory

    torch.cuda.set_device(device)
    launcher = kernel_launcher()
    if launcher is not None:
        launcher.check()
    found = torch.cuda.get_device_properties(device)
    others = [index for index in range(torch.cuda.device_count()) if index != device.index]
    return CudaCapability(
        host=host,
        problem="",
        device=str(found.uuid),
        name=found.name,
        compute_capability=(found.major, found.minor),
        num_sms=found.multi_processor_count,
        has_multicast=_SymmetricMemory.has_multicast_support(DeviceType.CUDA, device.index),
        allows_overlap=env.allows_overlapping_gpus(),
        unreachable=tuple(
            str(torch.cuda.get_device_properties(index).uuid)
            for index in others
            if not torch.cuda.can_device_access_peer(device.index, index)
        ),
        table_digest=hashlib.sha256(table).hexdigest() if table else "",
        slot_bytes=env.cuda_slot_bytes(),
    )


def _table() -> bytes:
    path = env.cuda_table()
    if path is None:
        return b""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"TOKENFABRIC_CUDA_TABLE={path} cannot be read: {error}") from None


def pack(capability: CudaCapability) -> bytes:
    """Return the `CARD_BYTES` that go to the other ranks."""
    fields = asdict(capability)
    fields["problem"] = capability.problem[:_MOST_PROBLEM_CHARACTERS]
    data = json.dumps(fields).encode()
    if len(data) <= CARD_BYTES:
        return data.ljust(CARD_BYTES)
    problem = (
        f"it sees {len(capability.unreachable)} GPUs that it cannot reach: hide them with "
        "CUDA_VISIBLE_DEVICES"
    )
    return pack(CudaCapability(host=capability.host, problem=problem))


def unpack(data: bytes) -> CudaCapability:
    """Parse what a rank sent.

    Raises:
        MismatchError: another version of this library sent it.
    """
    try:
        fields = json.loads(data)
        major, minor = fields.pop("compute_capability")
        return CudaCapability(
            compute_capability=(major, minor),
            unreachable=tuple(fields.pop("unreachable")),
            **fields,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise MismatchError(
            f"a rank runs another version of tokenfabric: it described its GPU with {error}"
        ) from None
