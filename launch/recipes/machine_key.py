"""What this machine is, as a key of measured device tables and as their provenance."""

import datetime
import platform
from pathlib import Path
from typing import Literal

import torch

import tokenfabric
from tokenfabric import World
from tokenfabric.errors import ConfigError
from tokenfabric.testing.bench_report import environment
from tokenfabric.testing.gpu_report import gpu_facts
from tokenweave.device_at_hand import choose_table
from tokenweave.tuned_tables import MachineKey, Provenance

_REPOSITORY = Path(tokenfabric.__file__).resolve().parents[1]


def base_table(device: torch.device) -> str:
    """Return the name of the table that describes a device of this kind.

    Raises:
        ConfigError: it is a GPU that no table is of.
    """
    if device.type != "cuda":
        return "cpu"
    found = choose_table(torch.cuda.get_device_name(device), 1, 1)
    if not found.name:
        raise ConfigError(
            f"{found.reason}: add tokenweave/tables/<name>.json with its numbers of SMs and tile "
            "shapes, and its name to tokenweave/device_at_hand.py"
        )
    return found.name


def machine_key(world: World, dtype: torch.dtype) -> MachineKey:
    """Return the key of what is measured on these ranks."""
    kind: Literal["bf16", "fp32"] = "bf16" if dtype == torch.bfloat16 else "fp32"
    if world.device.type == "cuda":
        name, threads = torch.cuda.get_device_name(world.device), 1
    else:
        facts = environment(_REPOSITORY)
        name, threads = f"{facts.cpu} ({facts.isa})", torch.get_num_threads()
    return MachineKey(processor=name, world_size=world.size, threads=threads, dtype=kind)


def provenance(world: World, seconds: float) -> Provenance:
    """Return where and how the numbers of this run were measured."""
    is_gpu = world.device.type == "cuda"
    driver = gpu_facts(_REPOSITORY, world.device).driver if is_gpu else platform.release()
    return Provenance(
        driver=driver,
        torch=torch.__version__,
        commit=environment(_REPOSITORY).commit,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        rung="measured on GPUs" if is_gpu else "measured on CPU ranks",
        seconds=round(seconds, 1),
    )
