"""What strangers must not find: paths of our machines, private hosts, text outside ASCII."""

import re

import pytest

from tests.house.tree import ROOT, text_files

# Spelled in pieces, so that this file does not contain what it looks for.
MACHINE_PATH = re.compile(
    r"(?<![\w.~$}/-])/(" + "|".join(("home", "root", "work", "Users", "opt")) + r")/\w"
)
HOST = re.compile(r"https?://([A-Za-z0-9.-]+)")
HOSTS = {"arxiv.org", "download.pytorch.org", "github.com", "huggingface.co", "pytorch.org",
         "www.apache.org"}  # fmt: skip
UNFINISHED = re.compile(r"@@[A-Z]+@@|\bFIX" r"ME\b|\bXX" r"X\b")
TRACKER = re.compile(r"\bissues? #?\d+\b", re.IGNORECASE)


def complaints(text: str) -> list[str]:
    """Return what is wrong with a text."""
    found = [f"path {match.group(0)}" for match in MACHINE_PATH.finditer(text)]
    found += [f"host {host}" for host in HOST.findall(text) if host not in HOSTS]
    found += [f"reference {match.group(0)}" for match in TRACKER.finditer(text)]
    found += [f"placeholder {match.group(0)}" for match in UNFINISHED.finditer(text)]
    found += [f"character {character!a}" for character in text if not character.isascii()]
    return found


def test_repository_is_fit_for_strangers() -> None:
    """Every file of the repository is clean."""
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in text_files()}
    assert {name: found for name, text in texts.items() if (found := complaints(text))} == {}


SEEDED = (
    "cd /" + "work/main", "see /" + "home/me/x", "http://" + "pypi.internal/simple",
    "as in issue" + " 12", "@" + "@TABLE@@", "na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve",
)  # fmt: skip


@pytest.mark.parametrize("text", SEEDED)
def test_unfit_text_is_found(text: str) -> None:
    """The rules can say no."""
    assert complaints(text)
