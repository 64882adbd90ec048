"""What is killed, and when: the cases of `make fault-matrix`, of which CI runs a few."""

from dataclasses import dataclass
from typing import Literal

What = Literal["rank", "raylet", "launcher", "Control-C"]
Where = Literal[
    "forward", "backward", "checkpoint write", "naming", "renamed", "training", "decoding"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One job that is disturbed once."""

    what: What
    """rank, raylet, launcher: SIGKILL. Control-C: SIGINT to the launcher."""
    where: Where
    """The moment. In "training" and "decoding" from outside, at no place in particular."""
    launcher: Literal["torchrun", "ray", "two nodes"]
    """two nodes: a launcher for each, without Ray."""
    ranks: int
    victim: int = 1
    """Rank, or node where a launcher is killed."""

    @property
    def is_training(self) -> bool:
        return self.where != "decoding"

    @property
    def survives(self) -> bool:
        """Whether the job is to go on by itself."""
        return self.is_training and self.what in ("rank", "raylet")

    def __str__(self) -> str:
        return f"{self.what} in {self.where}, {self.launcher}, {self.ranks} ranks"


CASES = (
    Case(what="rank", where="forward", launcher="torchrun", ranks=2),
    Case(what="rank", where="backward", launcher="torchrun", ranks=4, victim=2),
    Case(what="rank", where="checkpoint write", launcher="torchrun", ranks=2),
    Case(what="rank", where="naming", launcher="torchrun", ranks=2, victim=0),
    Case(what="rank", where="renamed", launcher="torchrun", ranks=2, victim=0),
    Case(what="raylet", where="training", launcher="ray", ranks=2),
    Case(what="rank", where="backward", launcher="ray", ranks=4, victim=3),
    Case(what="rank", where="decoding", launcher="torchrun", ranks=4, victim=3),
    Case(what="rank", where="decoding", launcher="ray", ranks=4, victim=3),
    Case(what="raylet", where="decoding", launcher="ray", ranks=4),
    Case(what="rank", where="backward", launcher="two nodes", ranks=4, victim=3),
    Case(what="launcher", where="decoding", launcher="ray", ranks=2),
    Case(what="Control-C", where="decoding", launcher="ray", ranks=2),
    Case(what="launcher", where="training", launcher="torchrun", ranks=2),
    Case(what="Control-C", where="training", launcher="torchrun", ranks=2),
    Case(what="launcher", where="decoding", launcher="two nodes", ranks=4),
    Case(what="Control-C", where="training", launcher="ray", ranks=2),
    Case(what="rank", where="checkpoint write", launcher="ray", ranks=2, victim=0),
    Case(what="rank", where="forward", launcher="ray", ranks=2),
    Case(what="launcher", where="training", launcher="ray", ranks=2),
    Case(what="raylet", where="training", launcher="ray", ranks=4),
    Case(what="rank", where="decoding", launcher="two nodes", ranks=4, victim=3),
    Case(what="rank", where="backward", launcher="torchrun", ranks=2, victim=0),
    Case(what="rank", where="forward", launcher="torchrun", ranks=4, victim=3),
    Case(what="rank", where="decoding", launcher="torchrun", ranks=2),
    Case(what="rank", where="decoding", launcher="ray", ranks=2),
    Case(what="Control-C", where="decoding", launcher="torchrun", ranks=2),
)

IN_CI = tuple(
    case
    for case in CASES
    if (case.what, case.where, case.launcher, case.ranks)
    in {
        ("rank", "backward", "torchrun", 4),
        ("raylet", "training", "ray", 2),
        ("launcher", "decoding", "ray", 2),
        ("Control-C", "decoding", "ray", 2),
    }
)
