"""The import graph of the packages: who may import whom. Planners: test_planners.py."""

import pytest

from tests.house import tree
from tests.house.tree import Import, When, is_within

# Name -> who may import it. What is not named may be imported by every package.
IMPORTERS = {
    "tokenfabric._C": ["tokenfabric.native"],
    "tokenfabric.testing": ["tokenfabric.testing", "launch"],
    "tokenweave": ["tokenweave", "launch"],
    "tokenweave.integrations": ["tokenweave.integrations", "launch"],
    "tokenring": ["tokenring", "launch"],
    "tokenring.integrations": ["tokenring.integrations", "launch"],
    "launch": ["launch"],
    "transformers": ["tokenweave.integrations", "tokenring.integrations"],
    "ray": ["launch.ray"],
    "tests": [],
}


def may_import(module: str, item: Import) -> bool:
    """Return whether the table lets `module` have this import."""
    is_lazy_surface = item.when != "import" and module in tree.PACKAGES
    is_foreign_type = item.when == "typing" and item.target.partition(".")[0] not in tree.PACKAGES
    if is_foreign_type or (is_lazy_surface and is_within(item.target, module)):
        return True
    return all(
        any(is_within(module, importer) for importer in importers)
        for name, importers in IMPORTERS.items()
        if is_within(item.target, name)
    )


def test_no_import_runs_uphill() -> None:
    """Every import of every package is one that the table allows."""
    assert [
        f"{name}:{item.line} imports {item.target}"
        for path, name in tree.modules().items()
        for item in tree.imports_of(path)
        if not may_import(name, item)
    ] == []


FORBIDDEN = [
    ("tokenfabric.world", "tokenweave.ops.all_reduce", "typing"),
    ("tokenfabric.world", "tokenfabric.testing.spawn", "call"),
    ("tokenfabric.symmetric", "tokenfabric._C", "call"),
    ("tokenweave.ops", "tokenring.merge", "import"),
    ("tokenweave", "tokenweave.integrations.llama", "import"),
    ("tokenweave.layers", "transformers.AutoModel", "call"),
    ("launch.torchrun", "ray", "call"),
]


@pytest.mark.parametrize(("module", "target", "when"), FORBIDDEN)
def test_import_uphill_is_found(module: str, target: str, when: When) -> None:
    """The table can say no."""
    assert not may_import(module, Import(target, 1, when))
