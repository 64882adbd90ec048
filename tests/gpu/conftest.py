"""What every test on a GPU needs: kernels, compiled in or by NVRTC, and one GPU.

TOKENFABRIC_CUDA_KERNELS=nvrtc runs the same tests over kernels that are compiled when first needed.
"""

import pytest
import torch

from tokenfabric import native
from tokenfabric.cuda.kernels.launcher import kernel_backend


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Return the GPU of the tests. Skips where there are no kernels and no way to compile them."""
    backend = kernel_backend()
    if backend.way == "none":
        pytest.skip(f"the native module cannot use the GPU: {backend.reason}")
    assert native.cuda.runtime().problem == ""
    torch.cuda.set_device(0)
    return torch.device("cuda", 0)
