"""What NVRTC makes of the kernels: all of them, for each architecture, with what they claim.

No GPU and no driver. Beside nvcc's code where there is some (test_cuda_code.py).
"""

import re
from pathlib import Path

import pytest

from tests.unit.cuda_code import ARCHITECTURES, instructions, kept, ptx_of_kernels, units
from tests.unit.nvrtc_kernels import compile_for, compiler, find_nvrtc, short, source, with_options
from tokenfabric import native
from tokenfabric.cuda.kernels.library import Compiled

pytestmark = [
    pytest.mark.skipif(find_nvrtc() is None, reason="NVRTC is not installed"),
    pytest.mark.timeout(300),
]
ELF = b"\x7fELF"
ACQUIRE, RELEASE = "ld.acquire.sys.global.u32", "st.release.sys.global.u32"
MULTICAST_RELEASE = "multimem.st.release.sys.global.u32"
REDUCE = "multimem.ld_reduce.relaxed.sys.global.add.acc::f32.v4"


# One test an architecture: tests that shared the compiled code would each compile it, where they
# run in several processes.
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_and_holds_what_it_claims(architecture: str) -> None:
    """One entry each, whose only parameter has the bytes that the host fills; acquire and release
    at system scope; the switch's instructions where there is a switch. The kernels are nvcc's.
    """
    made = compile_for(architecture)
    assert len(made) >= 18
    for it in native.cuda.kernel_sources():
        check_entry(made[it.kernel], it.params_bytes)
        if "merge_lse" not in it.kernel:
            code = instructions(made[it.kernel].ptx)[made[it.kernel].symbol]
            check_collective(short(it.kernel), code, has_switch=architecture != "80")
    if kept() is not None:
        compiled_in = {name for unit in units() for name in ptx_of_kernels(unit.stem, architecture)}
        assert {it.symbol for it in made.values()} == compiled_in


def check_entry(made: Compiled, params_bytes: int) -> None:
    """Code for a GPU, with one parameter."""
    assert made.cubin.startswith(ELF)
    assert made.symbol.encode() in made.cubin
    parameters = re.search(rf"\.entry {made.symbol}\(([^)]*)\)", made.ptx)
    assert parameters is not None, made.symbol
    assert re.findall(r"\.param .*\[(\d+)\]", parameters[1]) == [str(params_bytes)]


def check_collective(name: str, code: set[str], *, has_switch: bool) -> None:
    """The same claims as of nvcc's code."""
    is_multicast = "Multicast" in name
    assert ACQUIRE in code, name
    assert (MULTICAST_RELEASE if is_multicast and has_switch else RELEASE) in code, name
    assert ("fence.proxy.alias" in code) == is_multicast, name
    if is_multicast and has_switch:
        element = "f16x2" if "<Multicast, Float16" in name else "bf16x2"
        assert "multimem.st.relaxed.sys.global.v4.f32" in code, name
        assert (f"{REDUCE}.{element}" in code) == name.startswith("two_shot"), name
    else:
        assert ("trap" in code) == is_multicast, name
        assert not [it for it in code if it.startswith("multimem.")], name


def test_merge_rounds_products_and_sums_one_by_one() -> None:
    """Its option reaches the compiler: the bits are the CPU's. Only expf is fused, as always."""
    merge = source("merge_lse_kernel<true, 16>")
    made = compiler(Path("unused"))
    apart, together = (made.compile(it, "sm_90a") for it in (merge, with_options(merge, ())))
    assert apart.ptx.count("fma.rn.f32") < together.ptx.count("fma.rn.f32")
