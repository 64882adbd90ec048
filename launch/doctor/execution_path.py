"""One way of running, and whether it does. Pure."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutionPath:
    """One way of running, or one thing to run."""

    name: str
    runs: bool
    why: str
    """With what it runs, or what it lacks."""
    advice: tuple[str, ...] = ()
    """What to install or set, one step each."""
    is_essential: bool = False
    """Whether nothing of this library works without it."""

    def after(self, *before: "ExecutionPath") -> "ExecutionPath":
        """Return this path, which runs only if those before it run as well."""
        missing = [path.name for path in before if not path.runs]
        if not missing:
            return self
        needs = f"needs: {', '.join(missing)}"
        return replace(self, runs=False, why=needs if self.runs else f"{self.why}; {needs}")
