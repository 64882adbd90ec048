"""Attribute changes on foreign objects, kept in order so that all of them can be undone."""

from typing import Any

_MISSING = object()


class Patches:
    """Sets attributes and puts back what was there before."""

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set `owner.name`; a module's submodule counts as its attribute."""
        in_submodules = name in getattr(owner, "_modules", {})
        before = getattr(owner, name) if in_submodules else vars(owner).get(name, _MISSING)
        self._undo.append((owner, name, before))
        setattr(owner, name, value)

    def undo(self) -> None:
        """Restore everything, the latest change first. Does nothing the second time."""
        while self._undo:
            owner, name, before = self._undo.pop()
            if before is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, before)
