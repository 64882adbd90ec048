"""Training over dp x ring ranks: one loss whatever the ranks, resumed or killed."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from launch.recipes import train
from launch.report import SilentReporter
from launch.training import checkpoints, trainer
from launch.training.checkpoints import find_checkpoints
from tests.dist.command import run
from tests.dist.train_jobs import SETTINGS, STEPS, metrics, options, train_on, write_job
from tokenfabric.errors import ConfigError
from tokenfabric.testing.spawn import Raised, run_ranks, spawn_plain
from tokenfabric.world import World

Report = Callable[[str], None]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_job(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def undisturbed(job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run on one rank, to its end: arguments and curve."""
    output = tmp_path_factory.mktemp("undisturbed")
    arguments = {**job, **SETTINGS, "output": str(output)}
    return {**arguments, "curve": train_on(1, 1, arguments)}


def assert_same_curve(curve: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert [line["step"] for line in curve] == list(range(len(expected)))
    for mine, theirs in zip(curve, expected, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-4)
        assert mine["tokens"] == theirs["tokens"]


def test_one_rank_learns_and_writes_a_model(undisturbed: dict[str, Any]) -> None:
    curve = undisturbed["curve"]
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]
    output = Path(undisturbed["output"])
    names = [path.name for path in find_checkpoints(output / "checkpoints")]
    assert names == ["step-4", "step-6"]  # as many as are kept
    assert sorted(p.name for p in (output / "checkpoints").iterdir()) == names
    # Plain transformers computes with what was written, and it is what was trained.
    trained = AutoModelForCausalLM.from_pretrained(output / "model")
    before = AutoModelForCausalLM.from_pretrained(undisturbed["model"])
    ids = torch.tensor([[ord(c) for c in "the ring goes round and round. the ring"]])
    with torch.no_grad():
        losses = [model(ids, labels=ids).loss.item() for model in (trained, before)]
    assert losses[0] < 0.8 * losses[1]


@pytest.mark.parametrize("recompute", ["nothing", "layers"])
def test_recomputing_changes_nothing(
    undisturbed: dict[str, Any], tmp_path: Path, recompute: str
) -> None:
    """By default, all but attention is computed again."""
    arguments = {k: v for k, v in undisturbed.items() if k != "curve"}
    arguments |= {"output": str(tmp_path), "recompute": recompute}
    assert_same_curve(train_on(1, 2, arguments), undisturbed["curve"])


def test_a_run_goes_on_with_other_ranks(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """Its learning rates are those of the whole run; its rows the ones that follow."""
    arguments = {k: v for k, v in undisturbed.items() if k != "curve"} | {"output": str(tmp_path)}
    run_ranks(_rank_stops, 2, {**arguments, "ring": 2}, 4)
    # The checkpoint of step 4 may have been in writing.
    assert (tmp_path / "checkpoints" / "step-2").exists()
    assert_same_curve(train_on(2, 2, arguments), undisturbed["curve"])


def _rank_stops(world: World, arguments: dict[str, Any], at_step: int) -> None:
    """Give up in the middle, on all ranks: like a user's Control-C between two steps."""
    take = trainer.Trainer.step

    def step(self: trainer.Trainer, step: int, rows: Any) -> trainer.StepResult:
        if step == at_step:
            raise KeyboardInterrupt
        return take(self, step, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "step", step)
        with pytest.raises(KeyboardInterrupt):
            train.run(world, SilentReporter(), **arguments)


PLACES = {
    "forward": (trainer.LanguageModelLoss, "forward"),
    "backward": (torch.autograd, "backward"),
    "checkpoint": (checkpoints, "async_save"),
    "naming": (checkpoints, "_sync"),
}


def _rank_dies(
    world: World, report: Report, arguments: dict[str, Any], where: str, victim: int
) -> None:
    owner, name = PLACES[where]
    original, calls = getattr(owner, name), 0

    def dies(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if world.rank == victim and calls == (2 if where in ("checkpoint", "naming") else 7):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, dies)
    train.run(world, SilentReporter(), **arguments)


@pytest.mark.parametrize(
    ("where", "victim"), [("forward", 1), ("backward", 0), ("checkpoint", 1), ("naming", 0)]
)
def test_a_killed_run_goes_on_to_the_same_end(
    undisturbed: dict[str, Any], tmp_path: Path, where: str, victim: int
) -> None:
    arguments = {k: v for k, v in undisturbed.items() if k != "curve"} | {"output": str(tmp_path)}
    with spawn_plain(_rank_dies, 2, {**arguments, "ring": 2}, where, victim, timeout_s=90) as ranks:
        ranks.join()
        survivor = ranks.outcome(1 - victim)
        assert isinstance(survivor, Raised), survivor
    complete = find_checkpoints(tmp_path / "checkpoints")
    assert all((path / "progress.json").exists() for path in complete)
    assert_same_curve(train_on(1, 2, arguments), undisturbed["curve"])
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["step-4", "step-6"]


def _rank_refuses(world: World, arguments: dict[str, Any], folder: str) -> None:
    for wrong, says in (
        ({"ring": 2, "dp": 2}, "is 4 ranks, but there are 1"),
        ({"context": 40}, "a run of other data, context"),
        ({"context": 100_000, "output": folder}, "longer than the"),
        ({"eval_data": None, "eval_every": 2}, "needs eval_data"),
        ({"data": [folder]}, "the folder has no files"),
    ):
        with pytest.raises(ConfigError, match=says):
            train.run(world, SilentReporter(), **{**arguments, **wrong})


def test_the_command_trains_and_says_each_step(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    done = run(*options({**undisturbed, "output": str(tmp_path / "run")}), "--ring", "2")
    assert done.returncode == 0, done.stderr
    assert f"step {STEPS}/{STEPS}: loss" in done.stderr
    assert_same_curve(metrics(str(tmp_path / "run")), undisturbed["curve"])


def test_what_does_not_fit_is_refused(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    arguments = {k: v for k, v in undisturbed.items() if k != "curve"}
    run_ranks(_rank_refuses, 1, arguments, str(tmp_path))
