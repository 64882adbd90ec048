"""What the extras for builds without nvcc bring, and above all what they do not."""

import pytest

from tests.house.test_packaging import PROJECT, installs, name_of


@pytest.mark.parametrize("extra", ["cuda12", "cuda13"])
def test_kernels_at_first_use_bring_no_nccl(extra: str) -> None:
    """CuPy and NVRTC alone: two NCCLs would unpack into one folder, over the one of torch."""
    lines = PROJECT["optional-dependencies"][extra]
    assert {name_of(line) for line in lines} == {
        f"cupy-{extra}x",
        "nvidia-cuda-nvrtc" if extra == "cuda13" else "nvidia-cuda-nvrtc-cu12",
    }
    # An extra of CuPy's would bring more of CUDA than is used.
    assert not [line for line in lines if "[" in line]
    assert not [name for name in installs(lines) if "nccl" in name]
