"""Whether a shell line of a README could be typed: targets, options, extras and files exist."""

import re
import shlex
import tomllib

from typer.testing import CliRunner

from launch.cli import app
from tests.house.tree import ROOT

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def is_valid(command: str) -> bool:
    """Return whether a shell line names targets, options, extras and files that exist."""
    words = shlex.split(command, comments=True)
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=.*", word)]
    if words[:1] == ["make"]:
        text = (ROOT / "Makefile").read_text()
        return all(re.search(rf"^{word}:", text, re.MULTILINE) for word in words[1:])
    for program in (["tokenfabric"], ["python", "-m", "launch"]):
        if words[: len(program)] == program:
            arguments = [*words[len(program) :], "--help"]
            return CliRunner().invoke(app, arguments).exit_code == 0
    extras = [name for word in words for name in re.findall(r"^\.\[([\w,]+)\]", word)]
    files = [word for word in words if word.endswith((".py", ".sh")) or word.startswith("tests/")]
    are_extras = all(name in EXTRAS for group in extras for name in group.split(","))
    return are_extras and all((ROOT / word).exists() for word in files)
