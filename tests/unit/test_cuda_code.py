"""What nvcc made of the CUDA kernels, without a GPU: no spills, the register budget, and the
instructions that the kernels claim. Reads what the build kept and compiles nothing.
"""

import json
import shutil
from pathlib import Path

import pytest

from tests.unit.cuda_code import (
    ARCHITECTURES,
    kept,
    machine_code,
    ptx_of_kernels,
    short_name,
    units,
    usage,
)

pytestmark = pytest.mark.skipif(
    shutil.which("nvcc") is None, reason="nvcc is not installed: there are no compiled kernels"
)

BUDGET = json.loads((Path(__file__).with_name("cuda_registers.json")).read_text())
UNITS = [unit.stem for unit in units()]
BARRIER_UNITS = [unit.stem for unit in units() if unit.parent.parent.name == "weave"]
ACQUIRE = "ld.acquire.sys.global.u32"
RELEASE = "st.release.sys.global.u32"
MULTICAST_RELEASE = "multimem.st.release.sys.global.u32"
REDUCE = "multimem.ld_reduce.relaxed.sys.global.add.acc::f32.v4"


@pytest.fixture(autouse=True, scope="module")
def _build_is_current() -> None:
    if kept() is None:
        pytest.fail(
            "no build below build/ kept the code of all .cu files as they are now: build the "
            "module with TOKEN_CUDA=auto (make test does)"
        )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("unit", UNITS)
def test_kernels_do_not_spill(unit: str, architecture: str) -> None:
    """No kernel has a stack or local memory, nor an instruction that uses it."""
    found = usage(unit, architecture)
    assert found
    spilling = {
        short_name(name): each
        for name, each in found.items()
        if each.stack_bytes or each.local_bytes
    }
    assert spilling == {}
    code = machine_code(unit, architecture)
    assert not [name for name in code if name.split(".")[0] in ("LDL", "STL")]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_registers_are_within_the_budget(architecture: str) -> None:
    """Every kernel is in cuda_registers.json, which has no others, and needs no more than that."""
    found = {
        short_name(name): each.registers
        for unit in UNITS
        for name, each in usage(unit, architecture).items()
    }
    budget = BUDGET[f"sm_{architecture}"]
    over = {name: count for name, count in found.items() if count > budget.get(name, 0)}
    assert over == {}, f"record in cuda_registers.json, if that is meant: {json.dumps(over)}"
    assert sorted(budget) == sorted(found), "kernels that are no more"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("unit", BARRIER_UNITS)
def test_every_collective_acquires_and_releases(unit: str, architecture: str) -> None:
    """Each kernel holds the acquire and the release of its barrier at system scope."""
    for name, code in ptx_of_kernels(unit, architecture).items():
        is_multicast = "9Multicast" in name and architecture != "80"
        assert ACQUIRE in code, short_name(name)
        assert (MULTICAST_RELEASE if is_multicast else RELEASE) in code, short_name(name)
        assert ("fence.proxy.alias" in code) == ("9Multicast" in name), short_name(name)


@pytest.mark.parametrize("architecture", ["90a", "100a"])
def test_multicast_kernels_reduce_and_store_in_the_switch(architecture: str) -> None:
    """Two-shot loads through multimem.ld_reduce in fp32; all store through multimem.st."""
    kernels = ptx_of_kernels("reduce_multicast", architecture)
    assert kernels
    for name, code in kernels.items():
        element = "f16x2" if "7Float16" in name else "bf16x2"
        assert "multimem.st.relaxed.sys.global.v4.f32" in code, short_name(name)
        assert (f"{REDUCE}.{element}" in code) == ("two_shot" in name), short_name(name)
    assert not [
        name for name, code in ptx_of_kernels("reduce_peer", architecture).items()
        if any(instruction.startswith("multimem.") for instruction in code)
    ]  # fmt: skip


def test_old_gpus_trap_instead() -> None:
    """sm_80 has no multimem: a multicast kernel traps there."""
    for name, code in ptx_of_kernels("reduce_multicast", "80").items():
        assert "trap" in code, short_name(name)
        assert not [each for each in code if each.startswith("multimem.")]


def test_machine_code_of_hopper_reduces_in_the_switch() -> None:
    """multimem.ld_reduce is LDGMC, added in fp32, on sm_90a."""
    code = machine_code("reduce_multicast", "90a")
    assert "LDGMC.E.F32ADD.BF16x8.RN.STRONG.SYS" in code
    assert "LDGMC.E.F32ADD.F16x8.RN.STRONG.SYS" in code
    assert any(name.startswith("LDGMC") for name in machine_code("reduce_multicast", "100a"))
