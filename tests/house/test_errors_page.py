"""docs/errors.md has every public error, and only messages that the code can produce."""

import inspect
import re

import pytest

from tests.house.messages import share_of_sources
from tests.house.tree import ROOT
from tokenfabric import errors, schedule

PAGE = (ROOT / "docs" / "errors.md").read_text()
PARTS = ("Meaning", "Causes", "Cure", "World", "Example")
ERRORS = {
    name
    for module in (errors, schedule)
    for name, member in inspect.getmembers(module, inspect.isclass)
    if issubclass(member, Exception) and member.__module__ == module.__name__
}
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
EXAMPLES = [" ".join(text.split()) for text in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)]
# The rest are values: numbers, names, paths.
MIN_SHARE = 0.67


def test_every_error_has_a_section_and_every_section_an_error() -> None:
    """No more, no less; nor does the text name another class that looks like one of ours."""
    assert SECTIONS.keys() == ERRORS
    assert set(re.findall(r"\b[A-Z]\w+Error\b", PAGE)) - ERRORS == {"ValueError"}


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_section_has_every_part(name: str) -> None:
    """Meaning, causes, cure, the state of the world and an example, in this order."""
    parts = re.findall(r"^\*\*(\w+)\.\*\*", SECTIONS[name], re.MULTILINE)
    assert parts == list(PARTS)
    assert "```text" in SECTIONS[name].partition("**Example.**")[2]


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_is_a_message_of_the_code(example: str) -> None:
    """Most of it is in the sources, word for word."""
    assert share_of_sources(example) >= MIN_SHARE


SEEDED = (
    "rank 1 vanished: its process died or closed its world in all_reduce (epoch 12), as rank 0 of "
    "2 found; this is rank 0. The world is broken: close it and build a new one.",
    "timeout_s must be above zero, got 0: every wait has a deadline",
)


@pytest.mark.parametrize("example", SEEDED)
def test_message_of_another_version_is_found(example: str) -> None:
    """A sentence that the sources no longer have is not enough like one that they have."""
    assert share_of_sources(example) < MIN_SHARE
