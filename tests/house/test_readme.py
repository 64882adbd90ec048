"""What README.md and docs/ tell people to open, type and write exists, parses and compiles."""

import re
from pathlib import Path

import pytest

from tests.house.commands import is_valid
from tests.house.tree import ROOT

PAGES = [path for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")) if path.is_file()]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!http)([^)#\s]+)")
FILE = re.compile(r"`((?:[\w.-]+/)+[\w.*-]*|[\w-]+\.(?:py|md|toml|hpp|cpp))`")
COMMAND = re.compile(r"`((?:make|tokenfabric) [^`]+)`")


def complaints(text: str, folder: Path = ROOT) -> list[str]:
    """Return each path that does not exist and each command that is none; compile the Python."""
    prose = FENCE.sub("", text)
    found = [link for link in LINK.findall(prose) if not (folder / link).exists()]
    found += [name for name in FILE.findall(prose) if not any(ROOT.glob(name.rstrip("/")))]
    commands = COMMAND.findall(prose)
    for language, block in FENCE.findall(text):
        lines = block.replace("\\\n", " ").splitlines()
        if language == "python":
            compile(block, "<page>", "exec")
        elif language == "console":
            commands += [line[2:] for line in lines if line.startswith("$ ")]
        elif language in ("sh", "bash"):
            commands += lines
    return found + [command for command in commands if not is_valid(command)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_is_true(page: Path) -> None:
    """No dead path, command or option."""
    assert complaints(page.read_text(), page.parent) == []


WRONG = [
    "see `csrc/nowhere.cu`",
    "[it](docs/nowhere.md)",
    "`make nonsense`",
    "```sh\ntokenfabric demo --nonsense\n```",
    "```sh\npip install '.[nonsense]'\n```",
    "```console\n$ python examples/nowhere.py\n```",
]


@pytest.mark.parametrize("text", WRONG)
def test_untruth_is_found(text: str) -> None:
    """The rules can say no."""
    assert complaints(text)
