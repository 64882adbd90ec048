"""Jobs on Ray clusters of several nodes of this machine: the same answers, and one clear error."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import launch
from launch.failure import FailureKind, JobFailedError
from launch.job import JobSpec
from launch.recipes.text import encode_prompt
from launch.report import Table
from tests.dist.command import run
from tests.dist.tiny_checkpoint import write_checkpoint
from tokenfabric.errors import ConfigError, TopologyError
from tokenweave.integrations.unsharded import load_tokenizer, load_unsharded

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

from launch.ray import gang  # noqa: E402  # needs ray

RECIPES = "tests.dist.launch_recipes"
GONE_WITHIN_S = 20.0


class Heard:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.pieces: list[str] = []
        self.tables: list[Table] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def text(self, piece: str) -> None:
        self.pieces.append(piece)

    def table(self, table: Table) -> None:
        self.tables.append(table)


class SlowlyHeard(Heard):
    """One that takes its time."""

    def note(self, text: str) -> None:
        time.sleep(0.02)
        super().note(text)


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """Two nodes of two CPUs each, and a connection to them."""
    made = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    made.add_node(num_cpus=2)
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def job(function: str, ranks: int, nodes: int, **args: object) -> JobSpec:
    return JobSpec(
        recipe=f"{RECIPES}:{function}", ranks=ranks, nodes=nodes, args=args, timeout_s=30.0
    )


def assert_nothing_left() -> None:
    """Check that all resources are free again."""
    until_s = time.monotonic() + GONE_WITHIN_S
    while ray.available_resources().get("CPU") != 4.0:
        assert time.monotonic() < until_s, ray.available_resources()
        time.sleep(0.1)


def test_ranks_stand_node_by_node(cluster: object) -> None:
    spec = job("place", 4, 2, text="costs $$5")
    assert gang.run_on_ray(spec, Heard()) == [0, 4, 1, "costs $$5"]
    assert_nothing_left()


def test_a_model_answers_on_ray_as_on_this_host(
    cluster: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same recipes by both launchers, heads on a node and tokens across too; rank 0 is heard
    while it runs.
    """
    model = write_checkpoint(tmp_path_factory.mktemp("model") / "tiny")
    spec = JobSpec(
        recipe="launch.recipes.generate:run", ranks=2, nodes=2, timeout_s=30.0,
        args={"model": str(model), "prompt": "Hello", "max_new_tokens": 12, "dtype": "fp32"},
    )  # fmt: skip
    heard = Heard()
    gang.run_on_ray(spec, heard)
    here = run(
        "generate", "--model", str(model), "--ranks", "2", "--prompt", "Hello",
        "--max-new-tokens", "12", "--dtype", "fp32",
    )  # fmt: skip
    assert here.returncode == 0, here.stderr
    assert "".join(heard.pieces) == here.stdout
    assert len(heard.pieces) > 1
    assert any("TP=2" in note for note in heard.notes)
    both = Heard()
    recipe, mesh = "launch.recipes.generate_ring:run", {"ring": 2, "tp": 2}
    gang.run_on_ray(replace(spec, recipe=recipe, ranks=4, mesh=mesh).with_args(tp=2), both)
    assert both.pieces == heard.pieces
    assert any("TP=2, ring of 2" in note for note in both.notes)
    assert_nothing_left()


def test_a_gang_keeps_its_model_and_answers_in_batches(
    cluster: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Prompts of different lengths in one batch answer as alone, and each batch when it is done;
    errors end the gang, once.
    """
    model = str(write_checkpoint(tmp_path_factory.mktemp("model") / "tiny"))
    prompts = ["Hello", "a much longer prompt than the other ones", "?"]
    how = {"max_new_tokens": 8}
    with launch.RayGang(model, ranks=2, nodes=2, dtype="fp32", chat=False) as gang_:
        together = {it.index: it.text for it in gang_.generate(prompts, batch_size=2, **how)}
        alone = [it.text for it in gang_.generate(prompts[:1], **how)]
        assert list(together) == [0, 1, 2]
        assert alone == [together[0]]
        with pytest.raises(ConfigError, match="batch_size is 0"):
            gang_.generate(prompts, batch_size=0)
        # The second batch cannot be answered: the first was not held back for it.
        answers = gang_.generate([*prompts[:2], ""], batch_size=2, **how)
        assert [next(answers).text for _ in range(2)] == [together[0], together[1]]
        with pytest.raises(JobFailedError, match="the prompt is empty"):
            next(answers)
        with pytest.raises(ConfigError, match="the gang is not open"):
            gang_.generate(prompts)
    assert_nothing_left()


def test_a_gang_over_a_ring_answers_as_one_device_does(
    cluster: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two ranks of a node share the heads, two nodes the tokens."""
    model = write_checkpoint(tmp_path_factory.mktemp("model") / "tiny")
    prompts = ["Hello", "a much longer prompt than the other one", "?"]
    tokenizer, plain = load_tokenizer(model), load_unsharded(model, torch.float32)
    expected = []
    for prompt in prompts:
        ids = encode_prompt(tokenizer, prompt)
        tokens = plain.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8
        )
        expected.append(tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True))
    heard = Heard()
    with launch.RayGang(
        str(model), ranks=4, nodes=2, ring=2, dtype="fp32", reporter=heard
    ) as gang_:
        for _ in range(2):
            answers = gang_.generate(prompts, max_new_tokens=8)
            assert [(it.index, it.text) for it in answers] == [*enumerate(expected)]
        with pytest.raises(ConfigError, match="one prompt at a time"):
            gang_.generate(prompts, batch_size=2)
    assert any("TP=2, ring of 2" in note for note in heard.notes)
    with pytest.raises(ConfigError, match="ring is 3: pass a divisor of the 4"):
        launch.RayGang(str(model), ranks=4, ring=3)
    assert_nothing_left()


@pytest.mark.parametrize(
    ("how", "kind", "line"),
    [
        ("defect", FailureKind.DEFECT, "rank 1 failed: ValueError: rank 1 cannot count"),
        ("user", FailureKind.USER, "take fewer ranks"),
        ("kill", FailureKind.DEFECT, "rank 1 failed: process ended: the process on node"),
    ],
)
def test_the_first_failing_ranks_own_error_is_shown(
    cluster: object, how: str, kind: FailureKind, line: str
) -> None:
    """The others lose it at the same moment; no process is left."""
    with pytest.raises(JobFailedError) as raised:
        gang.run_on_ray(job("fail_on_rank_one", 4, 2, how=how), Heard())
    assert raised.value.failure.kind is kind
    assert raised.value.failure.line.startswith(line)
    assert_nothing_left()


def test_what_was_said_before_the_end_is_heard_though_the_failure_arrives_first(
    cluster: object,
) -> None:
    """However long the caller takes for each piece, here four seconds in all."""
    heard = SlowlyHeard()
    with pytest.raises(JobFailedError, match="rank 1 cannot count"):
        gang.run_on_ray(job("speak_after_loss", 2, 2, times=200), heard)
    assert heard.notes == [str(number) for number in range(200)]
    assert_nothing_left()


def test_a_shortage_is_said_before_anything_starts(cluster: object) -> None:
    for ranks, nodes, says in ((6, 2, "3 CPU each"), (3, 3, "wanted 3 node")):
        with pytest.raises(TopologyError, match=says):
            gang.run_on_ray(job("place", ranks, nodes, text=""), Heard())
    assert_nothing_left()


def test_a_lost_node_ends_the_job(cluster: object, tmp_path: Path) -> None:
    """A raylet killed in the middle takes its ranks with it; the others are ended."""
    node = cluster.add_node(num_cpus=3)  # type: ignore[attr-defined]
    cluster.wait_for_nodes()  # type: ignore[attr-defined]

    class Kills(Heard):
        def note(self, text: str) -> None:
            os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)

    with pytest.raises(JobFailedError, match="its node is gone"):
        gang.run_on_ray(job("meet_for_ever", 3, 1, folder=str(tmp_path)), Kills())
    cluster.remove_node(node)  # type: ignore[attr-defined]
    assert_nothing_left()
