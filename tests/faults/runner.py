"""Runs a case: starts the job, disturbs it once, and sees what becomes of it."""

import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.dist.tiny_checkpoint import write_trainable
from tests.faults.cases import Case
from tests.faults.driver import Request
from tests.faults.processes import descendants, is_running, name_of
from tests.faults.recipes import KILLED, note_kill
from tests.house.tree import ROOT

STEPS, CHECKPOINT_EVERY, STEPS_BEFORE = 12, 2, 5
HOST = "127.0.0.2"
STARTED_WITHIN_S, ENDED_WITHIN_S, GONE_WITHIN_S = 240.0, 150.0, 20.0
_RAY_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
# Lines that Ray's own logger and the colours of what it passes on begin with.
_OF_RAY = re.compile(r"\x1b|\d{4}-\d\d-\d\d [\d:,]+\t(INFO|WARNING) ")
_GOES_ON = re.compile(r"going on from step-(\d+) of")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a disturbed job."""

    knew_s: float
    """From the kill until every surviving rank had raised or ended, seconds."""
    ended_s: float
    """From the kill until the launchers ended."""
    code: int
    """Exit code of the first launcher that was not killed; of the killed one if there is no
    other."""
    said: str
    """Its last line on stderr that names a failure, or the last one."""
    steps_lost: int | None
    """Steps done before the kill that had to be done again; None where nothing goes on."""
    loss_difference: float | None
    """Of the last step's loss to the undisturbed run's, relative; None likewise."""
    unfinished: tuple[str, ...]
    """Checkpoints in the run's folder that are not whole."""
    left: tuple[str, ...]
    """Processes of the job that still run in the end, but for Ray's agents of a node: these try for
    a minute to tell the killed cluster why they end, and then do."""


@dataclass(slots=True)
class Bench:
    """What the cases share: a tiny model, its text, and the undisturbed run's last loss."""

    folder: Path
    model: str
    data: str
    loss: float = field(default=float("nan"))

    @classmethod
    def make(cls, folder: Path) -> "Bench":
        """Write model and text, and train undisturbed on one rank."""
        data = folder / "text.txt"
        data.write_text("the ring goes round and round. " * 60)
        bench = cls(folder, str(write_trainable(folder / "tiny")), str(data))
        output = folder / "undisturbed"
        arguments = bench.arguments(1, output) | {"where": "", "victim": 0, "folder": str(folder)}
        spec = {"recipe": "tests.faults.recipes:train_disturbed", "ranks": 1, "args": arguments}
        subprocess.run(Request(spec=spec).command(), cwd=ROOT, check=True, capture_output=True)
        bench.loss = losses(output)[-1]
        return bench

    def arguments(self, ranks: int, output: Path) -> dict[str, Any]:
        """Return the training recipe's arguments: dp x ring ranks, ring 2 if there are two."""
        return {
            "model": self.model, "data": [self.data], "output": str(output), "context": 64,
            "steps": STEPS, "rows_per_step": 2, "ring": min(2, ranks), "dp": max(1, ranks // 2),
            "learning_rate": 1e-3, "checkpoint_every": CHECKPOINT_EVERY, "dtype": "fp32",
        }  # fmt: skip


def run_case(case: Case, bench: Bench) -> Outcome:
    """Run one case to its end; nothing of it is left running."""
    with tempfile.TemporaryDirectory(dir=bench.folder) as name:
        folder = Path(name)
        (folder / "notes").mkdir()
        with _cluster(case) as cluster:
            return _Run(case, bench, folder, cluster).outcome()


def losses(output: Path) -> list[float]:
    """Return the losses of a run so far."""
    path = output / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["loss"] for line in lines if line.endswith("}")]


class _Run:
    def __init__(self, case: Case, bench: Bench, folder: Path, cluster: Any) -> None:
        self._case, self._bench, self._cluster = case, bench, cluster
        self._folder, self._notes, self._output = folder, folder / "notes", folder / "run"
        self._drivers: list[subprocess.Popen[str]] = []
        self._seen: set[int] = set()
        """Processes that the drivers started, and theirs: all that must be gone in the end."""

    def outcome(self) -> Outcome:
        try:
            self._start()
            self._disturb()
            return self._follow()
        finally:
            for pid in (*(driver.pid for driver in self._drivers), *self._seen, *self._ranks()):
                if is_running(pid) and pid != os.getpid():
                    os.kill(pid, signal.SIGKILL)

    def _start(self) -> None:
        case = self._case
        num_nodes = 2 if case.launcher == "two nodes" else 1
        with socket.create_server((HOST, 0)) as free:
            rendezvous = f"{HOST}:{free.getsockname()[1]}"
        for node in range(num_nodes):
            request = Request(
                spec=self._spec(num_nodes),
                uses_ray=case.launcher == "ray",
                address=None if self._cluster is None else self._cluster.address,
                node_rank=node,
                rendezvous=rendezvous if num_nodes > 1 else "",
            )
            self._drivers.append(
                subprocess.Popen(
                    request.command(), cwd=ROOT, text=True, stdout=subprocess.DEVNULL,
                    stderr=(self._folder / f"stderr-{node}").open("w"),
                )
            )  # fmt: skip

    def _spec(self, num_nodes: int) -> dict[str, Any]:
        case = self._case
        args: dict[str, Any] = {"folder": str(self._notes)}
        if case.is_training:
            args |= self._bench.arguments(case.ranks, self._output)
            args |= {"where": case.where, "victim": case.victim}
        else:
            args |= {"model": self._bench.model, "prompt": "round and round", "dtype": "fp32"}
            args |= {"max_new_tokens": 16, "tp": min(2, case.ranks)}
        recipe = "train_disturbed" if case.is_training else "decode_for_ever"
        return {
            "recipe": f"tests.faults.recipes:{recipe}",
            "ranks": case.ranks,
            "nodes": 2 if self._cluster is not None else num_nodes,
            "args": args,
            "timeout_s": 30.0,
            "num_threads": 1,
            "pin": None if case.launcher == "ray" else False,
            "max_restarts": int(case.survives),
        }

    def _disturb(self) -> None:
        case = self._case
        if case.what == "rank" and case.where not in ("training", "decoding"):
            self._wait(lambda: (self._notes / KILLED).exists())
            return
        if case.is_training:
            self._wait(lambda: len(losses(self._output)) >= STEPS_BEFORE)
        else:
            self._wait(lambda: len(list(self._notes.glob("decoding-*"))) == case.ranks)
        for driver in self._drivers:
            self._seen |= descendants(driver.pid)
        number = signal.SIGINT if case.what == "Control-C" else signal.SIGKILL
        pid = self._target()
        note_kill(self._notes, self._output)
        os.kill(pid, number)

    def _target(self) -> int:
        case = self._case
        if case.what == "rank":
            return next(pid for pid, rank in self._ranks().items() if rank == case.victim)
        if case.what == "raylet":
            return int(self._cluster.worker.all_processes["raylet"][0].process.pid)
        return self._drivers[case.victim if len(self._drivers) > 1 else 0].pid

    def _follow(self) -> Outcome:
        killed = json.loads((self._notes / KILLED).read_text())
        killed_s = killed["time_s"]
        # Of the disturbed attempt: those of the next one start later.
        ranks = self._ranks()
        knew_s: dict[int, float] = {}
        while len(knew_s) < len(ranks) and time.monotonic() < killed_s + ENDED_WITHIN_S:
            for pid in ranks.keys() - knew_s.keys():
                if (time_s := self._told(pid)) is not None:
                    knew_s[pid] = time_s - killed_s
            time.sleep(0.005)
        code, said = self._end_of_drivers()
        ended_s = time.monotonic() - killed_s
        done = losses(self._output)
        lost, difference = None, None
        if self._case.survives and len(done) == STEPS:
            said_all = "".join(path.read_text() for path in self._folder.glob("stderr-*"))
            resumed = [int(step) for step in _GOES_ON.findall(said_all)]
            lost = killed["steps"] - (resumed[-1] if resumed else 0)
            difference = abs(done[-1] - self._bench.loss) / self._bench.loss
        return Outcome(
            knew_s=max(knew_s.values()) if len(knew_s) == len(ranks) else float("inf"),
            ended_s=ended_s,
            code=code,
            said=said,
            steps_lost=lost,
            loss_difference=difference,
            unfinished=self._unfinished(),
            left=self._left(),
        )

    def _told(self, pid: int) -> float | None:
        """Return when a rank was told or ended; None: not yet."""
        note = self._notes / f"told-{pid}"
        if note.exists() and (text := note.read_text()):
            return float(text)
        return None if is_running(pid) else time.monotonic()

    def _end_of_drivers(self) -> tuple[int, str]:
        for driver in self._drivers:
            try:
                driver.wait(timeout=ENDED_WITHIN_S)
            except subprocess.TimeoutExpired:
                raise RuntimeError(
                    f"a launcher had not ended {ENDED_WITHIN_S:g} s after the kill was known"
                ) from None
        codes = [driver.returncode for driver in self._drivers]
        node = next((node for node, code in enumerate(codes) if code != -signal.SIGKILL), 0)
        lines = (self._folder / f"stderr-{node}").read_text().splitlines()
        own = [line for line in lines if not _OF_RAY.match(line)]
        last = own[-1] if own else ""
        return codes[node], next((it for it in reversed(own) if "failed: " in it), last)

    def _unfinished(self) -> tuple[str, ...]:
        folder = self._output / "checkpoints"
        named = [path for path in folder.glob("step-*") if "." not in path.name]
        return tuple(
            path.name
            for path in named
            if not all((path / file).exists() for file in ("progress.json", ".metadata"))
        )

    def _left(self) -> tuple[str, ...]:
        pids = {pid for pid in self._seen | set(self._ranks()) if name_of(pid) not in _RAY_AGENTS}
        until_s = time.monotonic() + GONE_WITHIN_S
        while (left := [pid for pid in pids if is_running(pid)]) and time.monotonic() < until_s:
            time.sleep(0.05)
        return tuple(f"{pid} {name_of(pid)}" for pid in sorted(left))

    def _ranks(self) -> dict[int, int]:
        """Return process id -> rank of all that have started so far."""
        found = (path.name.split("-") for path in self._notes.glob("started-*"))
        return {int(pid): int(rank) for _, rank, pid in found}

    def _wait(self, condition: Callable[[], bool]) -> None:
        until_s = time.monotonic() + STARTED_WITHIN_S
        while not condition():
            if time.monotonic() > until_s or any(it.poll() is not None for it in self._drivers):
                said = "".join(path.read_text() for path in self._folder.glob("stderr-*"))
                raise RuntimeError(f"{self._case}: the job did not come so far: {said}")
            time.sleep(0.01)


@contextmanager
def _cluster(case: Case) -> Iterator[Any]:
    """Yield a Ray cluster of two nodes, its second one as `worker`; None where a case needs none.

    A launcher that dies starts a cluster of its own: that one has to go with it.
    """
    if case.launcher != "ray" or case.what in ("launcher", "Control-C"):
        yield None
        return
    from ray.cluster_utils import Cluster

    # Enough on the first node to go on without the second.
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": case.ranks, "include_dashboard": False},
    )
    try:
        cluster.worker = cluster.add_node(num_cpus=case.ranks // 2)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()
