"""Which device table describes the GPUs of a world. Pure: names and numbers in, a name out.

A GPU that is not listed has no table: a sibling with other links or fewer SMs is another machine,
and a plan made for it would be wrong without saying so.
"""

from dataclasses import dataclass

# As the driver names them. Cards that share a name with these but not their links (PCIe versions,
# NVL pairs, slices of a GPU) have names or numbers of SMs of their own.
_TABLE_OF_GPU = {
    "NVIDIA A10": "a10",
    "NVIDIA A100-SXM4-40GB": "a100",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA B200": "b200",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA L40S": "l40s",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TableChoice:
    """The table of the GPUs, or why there is none."""

    name: str
    """Of the table, as device_tables.load_device takes it; empty if there is none."""
    reason: str


def choose_table(gpu: str, num_devices: int, world_size: int) -> TableChoice:
    """Return the table by which splits are planned on a world of GPUs. The same on every rank.

    Args:
        gpu: the name of all GPUs, as the driver gives it; empty where ranks have different ones.
        num_devices: GPUs of the world.
        world_size: ranks of the world.
    """
    if num_devices < world_size:
        return TableChoice(
            name="", reason=f"{world_size} ranks share {num_devices} GPU(s) and take turns on them"
        )
    if not gpu:
        return TableChoice(name="", reason="the ranks have different GPUs")
    if gpu not in _TABLE_OF_GPU:
        known = ", ".join(sorted(_TABLE_OF_GPU))
        return TableChoice(
            name="", reason=f"there is no device table for {gpu!r}, only for {known}"
        )
    name = _TABLE_OF_GPU[gpu]
    return TableChoice(name=name, reason=f"device table {name} for {gpu}")
