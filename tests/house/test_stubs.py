"""tokenfabric/_C.pyi says what the native module has: names, parameters, defaults, properties."""

import ast
from types import ModuleType

from tests.house.tree import ROOT
from tokenfabric import native

Surface = dict[str, str]


def parameters(node: ast.FunctionDef) -> str:
    """Return the parameters of a function as text, `self` and annotations left out."""
    names = [argument.arg for argument in node.args.args if argument.arg != "self"]
    num_optional = len(node.args.defaults)
    required, optional = names[: len(names) - num_optional], names[len(names) - num_optional :]
    return f"({', '.join([*required, *(f'{name}=' for name in optional)])})"


def of_stub(body: list[ast.stmt], prefix: str = "") -> Surface:
    """Return what a stub declares; a nested class may stand for a submodule."""
    surface: Surface = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            surface |= of_stub(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.AnnAssign):
            surface[f"{prefix}{ast.unparse(node.target)}"] = "value"
        elif isinstance(node, ast.FunctionDef):
            is_property = any(ast.unparse(mark) == "property" for mark in node.decorator_list)
            surface[f"{prefix}{node.name}"] = "value" if is_property else parameters(node)
    return surface


def of_runtime(owner: object, prefix: str = "") -> Surface:
    """Return what a pybind11 module or class has; signatures are in the docstrings."""
    surface: Surface = {}
    for name, member in vars(owner).items():
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(member, type | ModuleType):
            surface |= of_runtime(member, f"{prefix}{name}.")
        elif callable(member) and name == "__init__" and type(member).__name__ != "instancemethod":
            continue  # no constructor in Python: this is object's
        elif callable(member):
            signature = (member.__doc__ or "").partition("\n")[0]
            function = ast.parse(f"def {signature}: ...").body[0]
            assert isinstance(function, ast.FunctionDef)
            surface[f"{prefix}{name}"] = parameters(function)
        else:
            surface[f"{prefix}{name}"] = "value"
    return surface


def test_stub_equals_the_module() -> None:
    """A change of a binding is a change of the stub, in both directions."""
    stub = ast.parse((ROOT / "tokenfabric" / "_C.pyi").read_text())
    assert of_stub(stub.body) == of_runtime(native.require())
