"""Names that load on first use: found, refused, and explained when torch is missing."""

import subprocess
import sys

import pytest

from tokenfabric.lazy import load

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # an import of torch now fails as if it were not installed
import tokenfabric, tokenweave
{use}
"""


def test_name_comes_from_its_home() -> None:
    """The module is imported and its attribute returned."""
    assert load("package", "sqrt", {"sqrt": "math"})(4) == 2


def test_unknown_name_is_an_attribute_error() -> None:
    """As for any other module, so that hasattr works."""
    with pytest.raises(AttributeError, match="module 'package' has no attribute 'nothing'"):
        load("package", "nothing", {"sqrt": "math"})


def test_other_missing_modules_are_not_explained_away() -> None:
    """Only torch's absence is ours to explain."""
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        load("package", "name", {"name": "no_such_module"})


@pytest.mark.parametrize("name", ["tokenfabric.init", "tokenweave.parallelize"])
def test_missing_torch_is_explained(name: str) -> None:
    """The packages import without torch; what needs it says what to install."""
    code = WITHOUT_TORCH.format(use=name)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert f"{name} needs torch >= 2.11" in run.stderr.splitlines()[-1]
