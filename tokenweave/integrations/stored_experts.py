"""Experts that a checkpoint holds one by one, read as the stacked parameters of a model."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tokenfabric.errors import ConfigError
from tokenweave.integrations.checkpoint import StoredTensors
from tokenweave.integrations.sharding import ParameterShard

_EXPERT = re.compile(r"(?P<stem>.+\.experts)\.(?P<expert>\d+)\.(?P<projection>\w+)\.weight")


class StoredExperts:
    """Implements StoredTensors: `experts.E.<projection>.weight` of all E are one tensor.

    The stacked tensor is [experts, rows, columns]; where it has several projections, their rows lie
    one after the other, as the sections of its shard do. A checkpoint may hold it as it is, too.
    """

    def __init__(
        self,
        tensors: StoredTensors,
        projections: Mapping[str, Sequence[str]],
        *,
        stored_mlp: str = "mlp",
    ):
        """Group the experts of `tensors`.

        Args:
            tensors: under the names of the checkpoint.
            projections: what the checkpoint calls the projections of each stacked parameter.
            stored_mlp: what it calls a layer's `mlp`.

        Raises:
            ConfigError: an expert lacks a projection that others have.
        """
        self._tensors = tensors
        self._stored_name: dict[str, str] = {}
        found: dict[str, dict[tuple[int, str], str]] = {}
        stacked_of = {one: name for name, several in projections.items() for one in several}
        for stored in tensors.names:
            name = stored.replace(f".{stored_mlp}.", ".mlp.")
            match = _EXPERT.fullmatch(name)
            if match is None or match["projection"] not in stacked_of:
                self._stored_name[name] = stored
                continue
            stacked = f"{match['stem']}.{stacked_of[match['projection']]}"
            found.setdefault(stacked, {})[int(match["expert"]), match["projection"]] = stored
        self._experts = {
            stacked: _in_order(stacked, names, projections[stacked.rpartition(".")[2]])
            for stacked, names in found.items()
        }

    @property
    def names(self) -> Sequence[str]:
        return (*self._stored_name, *self._experts)

    def __contains__(self, name: str) -> bool:
        return name in self._stored_name or name in self._experts

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._experts:
            return self._tensors.shape(self._stored_name[name])
        experts = [[self._tensors.shape(one) for one in several] for several in self._experts[name]]
        if any(shapes != experts[0] for shapes in experts):
            raise ConfigError(f"the experts of {name} in the checkpoint have different shapes")
        rows = sum(shape[0] for shape in experts[0])
        return len(experts), rows, *experts[0][0][1:]

    def num_bytes(self, name: str) -> int:
        if name not in self._experts:
            return self._tensors.num_bytes(self._stored_name[name])
        return sum(self._tensors.num_bytes(one) for e in self._experts[name] for one in e)

    def dtype(self, name: str) -> torch.dtype:
        if name not in self._experts:
            return self._tensors.dtype(self._stored_name[name])
        (dtype, *others) = {self._tensors.dtype(one) for e in self._experts[name] for one in e}
        if others:
            raise ConfigError(f"the experts of {name} in the checkpoint have different dtypes")
        return dtype

    def read(
        self, name: str, shard: ParameterShard | None, rank: int, dtype: torch.dtype
    ) -> Tensor:
        if name not in self._experts:
            return self._tensors.read(self._stored_name[name], shard, rank, dtype)
        return torch.stack(
            [self._read_expert(names, shard, rank, dtype) for names in self._experts[name]]
        )

    def _read_expert(
        self, names: Sequence[str], shard: ParameterShard | None, rank: int, dtype: torch.dtype
    ) -> Tensor:
        parts = []
        for section, name in enumerate(names):
            # What is cut of the stacked tensor [experts, ...] is cut of each expert.
            of_expert = shard and ParameterShard(shard.dim - 1, (shard.sections[section],))
            parts.append(self._tensors.read(name, of_expert, rank, dtype))
        return torch.cat(parts)


def _in_order(
    stacked: str, names: Mapping[tuple[int, str], str], projections: Sequence[str]
) -> list[list[str]]:
    """Return the stored names of each expert's projections."""
    num_experts = 1 + max(expert for expert, _ in names)
    for expert in range(num_experts):
        for projection in projections:
            if (expert, projection) not in names:
                raise ConfigError(
                    f"the checkpoint lacks {projection} of expert {expert} of {stacked}"
                )
    return [[names[e, projection] for projection in projections] for e in range(num_experts)]
