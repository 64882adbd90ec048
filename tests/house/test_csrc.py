"""The native code: no framework in it, assembler and pybind11 in their rooms, includes downhill."""

import re

import pytest

from tests.house.tree import ROOT, native_files

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
UPPER = ("fabric/", "weave/", "ring/", "bindings/", "tests/")
# Pattern -> folders below csrc/, or kinds of files, that may use it.
RULES = {
    r'#include\s*[<"](torch|ATen|c10|caffe2)/': (),
    r'#include\s*[<"](pybind11/|Python\.h)': ("bindings/",),
    # The hint to a spinning core is no memory operation and has no intrinsic on Arm.
    r'\basm\b|__asm__(?!\s*__volatile__\("yield"\))': ("include/token/ptx/",),
    r"\bgetenv\b|\bexit\s*\(": (),
    r"\busing\s+namespace\b": (".cpp", ".cu"),
    r'#include\s*[<"]token/comm/': ("include/token/comm/", *UPPER),
    r'#include\s*[<"](\.\./)*bindings/': ("bindings/",),
    r'#include\s*[<"](\.\./)*fabric/': UPPER,
    r'#include\s*[<"](\.\./)*weave/': ("weave/", "bindings/", "tests/"),
    r'#include\s*[<"](\.\./)*ring/': ("ring/", "bindings/", "tests/"),
}


def complaints(name: str, text: str) -> list[str]:
    """Return what a file below csrc/ (by its path from there) does against the rules."""
    code = COMMENT.sub("", text)
    return [
        f"csrc/{name}: {match.group(0)}"
        for pattern, rooms in RULES.items()
        for match in re.finditer(pattern, code)
        if not (name.startswith(rooms) or name.endswith(rooms))
    ]


def test_native_code_follows_the_rules() -> None:
    """Every file below csrc/ is clean."""
    files = {str(path.relative_to(ROOT / "csrc")): path for path in native_files()}
    assert [c for name, path in files.items() for c in complaints(name, path.read_text())] == []


SEEDED = [
    ("weave/a.cu", "#include <torch/extension.h>"),
    ("fabric/a.cpp", "#include <pybind11/pybind11.h>"),
    ("weave/a.cu", 'asm volatile("membar.sys;");'),
    ("fabric/a.cpp", 'std::getenv("RANK")'),
    ("include/token/norm/rms.hpp", '#include "token/comm/barrier.hpp"'),
    ("weave/a.cpp", '#include "ring/merge.hpp"'),
    ("include/token/comm/a.hpp", '#include "fabric/segment.hpp"'),
]


@pytest.mark.parametrize(("name", "code"), SEEDED)
def test_violation_is_found(name: str, code: str) -> None:
    """The rules can say no, and a comment is not code."""
    assert complaints(name, code)
    assert not complaints(name, f"// {code}")
