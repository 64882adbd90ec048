"""What every test on a GPU needs: a native module with CUDA, and one GPU."""

import pytest
import torch

from tokenfabric import native


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Return the GPU of the tests. Skips where the native module was built without CUDA."""
    runtime = native.cuda.runtime()
    if not runtime.is_compiled:
        pytest.skip(f"the native module cannot use the GPU: {runtime.problem}")
    assert runtime.problem == ""
    torch.cuda.set_device(0)
    return torch.device("cuda", 0)
