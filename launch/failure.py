"""Why a job failed: the first failing rank's own error, and what of it a user is shown.

When one rank fails, the others fail next because they lost it. Every rank writes its failure to a
file of its own (JSON, no pickle); whoever started the ranks reads all of them and picks the cause.
"""

import json
import threading
import time
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from tokenfabric.errors import (
    CommTimeoutError,
    ConfigError,
    PeerLostError,
    TokenFabricError,
    TopologyError,
)

# torch reports a failed allocation on CPU as a RuntimeError without a class of its own.
_NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"


class FailureKind(StrEnum):
    """Whose fault it is: it decides what is shown and the exit code."""

    USER = "user"
    """The request cannot be met; the message says what to change. One line, exit code 2."""

    CONSEQUENCE = "consequence"
    """A rank lost or missed another rank: shown only if no rank knows better. Exit code 1."""

    DEFECT = "defect"
    """Anything else: the traceback helps. Exit code 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One rank's error."""

    kind: FailureKind
    rank: int | None
    """None for the process that starts the ranks."""

    error: str
    """Name of the exception, or of the signal that killed the rank."""

    message: str
    details: str = ""
    """Traceback, or the last lines that the rank wrote."""

    host: str | None = None
    """Of a job on several."""

    time_s: float = 0.0
    """When it happened, on the host's monotonic clock, which all its processes share."""

    @property
    def exit_code(self) -> int:
        """2 for a user's mistake, 1 otherwise."""
        return 2 if self.kind is FailureKind.USER else 1

    @property
    def line(self) -> str:
        """What happened, in one line."""
        if self.kind is FailureKind.USER:
            return self.message
        who = [] if self.rank is None else [f"rank {self.rank}"]
        who += [] if self.host is None else [f"on {self.host}"]
        return f"{' '.join([*who, 'failed: ']) if who else ''}{self.error}: {self.message}"


class JobFailedError(Exception):
    """A job ended by a failure. Carries the cause; the ranks are gone."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.line)
        self.failure = failure


def describe(error: BaseException, rank: int | None) -> Failure:
    """Return what to say about an exception of this process."""
    kind, message = FailureKind.DEFECT, " ".join(str(error).split())
    if isinstance(error, ConfigError | TopologyError) or type(error) is TokenFabricError:
        kind = FailureKind.USER
    elif isinstance(error, BrokenPipeError):
        kind, message = FailureKind.USER, "whoever read the output has stopped reading"
    elif isinstance(error, MemoryError) or _NO_MEMORY in message:
        kind = FailureKind.USER
        message = f"out of memory: {message.rpartition(_NO_MEMORY)[2].strip(' :') or 'no details'}"
    elif isinstance(error, PeerLostError | CommTimeoutError):
        kind = FailureKind.CONSEQUENCE
    return Failure(
        kind=kind,
        rank=rank,
        error=type(error).__name__,
        message=message,
        details="".join(traceback.format_exception(error)),
        time_s=time.monotonic(),
    )


def root_cause(failures: Iterable[Failure]) -> Failure:
    """Return the failure that the others follow from: the earliest that is no consequence."""
    return min(failures, key=lambda it: (it.kind is FailureKind.CONSEQUENCE, it.time_s))


def write_failure(failure: Failure, path: Path) -> None:
    """Leave a failure for the process that started this rank. Readers see all of it or nothing."""
    # Two threads of a rank may come here at once.
    partial = path.with_suffix(f".partial-{threading.get_native_id()}")
    partial.write_text(to_json(failure))
    partial.replace(path)


def to_json(failure: Failure) -> str:
    """Return a failure as text that `from_json` reads."""
    return json.dumps(asdict(failure))


def from_json(text: str | bytes) -> Failure:
    """Return the failure that `to_json` wrote."""
    fields = json.loads(text)
    return Failure(**{**fields, "kind": FailureKind(fields["kind"])})


def read_failure(path: Path) -> Failure | None:
    """Return what a rank has left, None if it has left nothing."""
    if not path.is_file():
        return None
    return from_json(path.read_text())
