"""What several files of tests over ranks share."""

import pytest

from tests.dist.software_gpus import compile_driver


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of the driver in software, compiled once."""
    return compile_driver(tmp_path_factory.mktemp("driver"))
