"""A launcher on each of two nodes: one job, and one clear error on both."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from launch.recipes.text import encode_prompt
from tests.dist.test_meeting import HOST, free_port
from tests.dist.tiny_checkpoint import write_checkpoint
from tests.faults.driver import Request
from tests.house.tree import ROOT
from tokenfabric.testing.namespaces import NamespacesUnavailableError, two_namespaces
from tokenweave.integrations.unsharded import load_tokenizer, load_unsharded


@dataclass(frozen=True, slots=True)
class Done:
    """A launcher that has ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Node:
    """Where a launcher runs."""

    prefix: tuple[str, ...] = ()
    host_id: str = ""


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[str, Node, Node]]:
    """Hosts that a network connects where this machine lets us, else one host twice."""
    with contextlib.ExitStack() as stack:
        try:
            places = stack.enter_context(two_namespaces())
        except NamespacesUnavailableError:
            yield f"{HOST}:{free_port()}", Node(), Node()
            return
        first, second = (Node(("ip", "netns", "exec", place.name), place.name) for place in places)
        yield f"{places[0].address}:29500", first, second


def on_both(nodes: Sequence[Node], commands: Sequence[Sequence[str]]) -> list[Done]:
    """Run a command on each node at once."""
    started = [
        subprocess.Popen(
            [*node.prefix, *command], cwd=ROOT, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={**os.environ, "TOKENFABRIC_HOST_ID": node.host_id},
        )
        for node, command in zip(nodes, commands, strict=True)
    ]  # fmt: skip
    done = []
    try:
        for process in started:
            out, err = process.communicate(timeout=110)
            done.append(Done(process.returncode, out, err))
    finally:
        for process in started:
            process.kill()
    return done


def test_two_nodes_answer_as_one_process(tmp_path: Path) -> None:
    """Heads within a node, tokens across; node 0 writes the answer, the other nothing."""
    model = write_checkpoint(tmp_path / "tiny")
    tokenizer = load_tokenizer(model)
    ids = encode_prompt(tokenizer, "Hello, nodes")
    tokens = load_unsharded(model, torch.float32).generate(ids, max_new_tokens=8, do_sample=False)
    expected = tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True)
    with two_nodes() as (rendezvous, *nodes):
        first, second = on_both(
            nodes,
            [
                [
                    sys.executable, "-m", "launch", "generate", "--model", str(model),
                    "--prompt", "Hello, nodes", "--max-new-tokens", "8", "--dtype", "fp32",
                    "--no-pin", "--tp", "2", "--ring", "2", "--nodes", "2",
                    "--node-rank", str(node), "--rendezvous", rendezvous,
                ]
                for node in range(2)
            ],
        )  # fmt: skip
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert first.out == f"{expected}\n".replace("\r", "\n")
    assert "TP=2, ring of 2" in first.err
    assert second.out == ""
    # But for what torch has to say of names that no server knows.
    assert "TP=2" not in second.err
    assert "rank" not in second.err


def run_recipe(function: str, ranks: int, **arguments: object) -> list[Done]:
    """Run a recipe from two launchers of this host, with one restart."""
    spec = {
        "recipe": f"tests.dist.launch_recipes:{function}", "ranks": ranks, "nodes": 2,
        "max_restarts": 1, "pin": False, "args": arguments, "timeout_s": 30.0,
    }  # fmt: skip
    rendezvous = f"{HOST}:{free_port()}"
    requests = [Request(spec=spec, node_rank=node, rendezvous=rendezvous) for node in range(2)]
    return on_both((Node(), Node()), [request.command() for request in requests])


def test_all_nodes_start_again_together(tmp_path: Path) -> None:
    """A rank of one node is killed; both say which, and the second attempt succeeds."""
    first, second = run_recipe("fail_at_first", 2, folder=str(tmp_path), how="kill", times=1)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
    for done in (first, second):
        assert "rank 1 on node 1 (" in done.err
        assert "SIGKILL: the process was killed" in done.err


def test_a_death_ends_ranks_that_wait_for_nobody() -> None:
    """On the other node too, long before they would come to their next collective."""
    started_s = time.monotonic()
    for done in run_recipe("one_dies_while_others_compute", 4):
        assert done.code == 1
        assert done.err.count("rank 3 on node 1 (") == 2  # the first attempt, and the last
    # The ranks compute for two minutes in each attempt.
    assert time.monotonic() - started_s < 110


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--nodes", "2"), "run this command on each of them"),
        (("--nodes", "2", "--tp", "4"), "run this command on each of them"),
        (
            ("--nodes", "2", "--tp", "2", "--node-rank", "0", "--rendezvous", "h:1"),
            "tp 2 must lie inside a node, whose 1 rank(s)",
        ),
        (
            ("--nodes", "2", "--node-rank", "0", "--rendezvous", "203.0.113.1:29500"),
            "cannot listen on 203.0.113.1:29500 (Cannot assign requested address)",
        ),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    model = write_checkpoint(tmp_path / "tiny")
    done = subprocess.run(
        [sys.executable, "-m", "launch", "generate", "--model", str(model), "--prompt", "x",
         *options],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
