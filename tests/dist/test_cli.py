"""The command as users run it: what goes to stdout, what to stderr, and the exit code."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.dist.command import run
from tests.dist.tiny_checkpoint import write_checkpoint, write_unsupported
from tests.house.tree import ROOT

TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "launch")
GREEDY = ("--prompt", "Hello", "--max-new-tokens", "12", "--dtype", "fp32")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint's directory."""
    return str(write_checkpoint(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def answer(model: str) -> str:
    """What the model answers in one process."""
    done = run("generate", "--model", model, "--ranks", "1", *GREEDY)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) == 12 + 1
    return done.stdout


def test_help_is_quick() -> None:
    """Neither torch nor transformers is imported for a help text."""
    code = "import sys, launch.cli; sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    done = run("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("demo", "doctor", "generate", "verify"))


@pytest.mark.parametrize("ranks", ["2", "3"])
def test_answer_alone_is_on_stdout(model: str, answer: str, ranks: str) -> None:
    """The same answer from any number of ranks, once."""
    done = run("generate", "--model", model, "--ranks", ranks, *GREEDY)
    assert done.returncode == 0, done.stderr
    assert done.stdout == answer
    assert f"TP={ranks}" in done.stderr


def test_below_torchrun(model: str, answer: str) -> None:
    """torchrun's ranks are used, and only rank 0 speaks."""
    done = run("generate", "--model", model, *GREEDY, program=TORCHRUN)
    assert done.returncode == 0, done.stderr
    assert done.stdout == answer
    assert done.stderr.count("TP=2") == 1


def test_sampling_follows_the_seed(model: str, answer: str) -> None:
    """The same seed gives the same text, and it is not the greedy one."""
    args = ("generate", "--model", model, *GREEDY, "--temperature", "1.5", "--seed", "1")
    assert run(*args, "--ranks", "1").stdout == run(*args, "--ranks", "2").stdout != answer


def test_verify_passes_and_says_what(model: str) -> None:
    """A row for every dtype and prompt, and what each process paid for loading; exit code 0."""
    done = run("verify", "--model", model, "--ranks", "2", "--max-new-tokens", "6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("pass") == 10
    assert "left-padded" in done.stdout
    for process in ("rank 0", "rank 1", "all ranks", "one process, unsharded"):
        assert done.stdout.count(f" {process} ") == 2, process


def test_demo_answers_and_measures(model: str) -> None:
    """The answer, then a table with every variant."""
    args = ("--prompt", "Hi", "--max-new-tokens", "5", "--seconds", "1", "--dtype", "fp32")
    done = run("demo", "--model", model, "--ranks", "2", *args)
    assert done.returncode == 0, done.stderr
    for words in ("fused", "gloo", "free all-reduce", "TP=1", "passed", "the same answer"):
        assert words in done.stdout


MISTAKES = {
    "path": (["--model", "./nowhere"], "no such file or directory"),
    "template": (["--chat"], "the model has no chat template"),
    "top_p": (["--top-p", "0.5"], "--top-p needs a --temperature above 0"),
    "dtype": (["--dtype", "fp8"], "fp8"),
    "prompt": (["--prompt", "", "--no-chat"], "the prompt is empty"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_one_readable_line(name: str, tmp_path: Path) -> None:
    """Exit code 2, no traceback, nothing on stdout."""
    args, message = MISTAKES[name]
    folder = str(write_checkpoint(tmp_path / "m", has_chat=False))
    done = run("generate", "--model", folder, *GREEDY, *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_unsupported_architecture_is_one_readable_line(tmp_path: Path) -> None:
    """The message names it."""
    done = run("generate", "--model", str(write_unsupported(tmp_path / "m")), *GREEDY)
    assert (done.returncode, done.stdout) == (2, "")
    assert "GPTNeoX" in done.stderr
    assert "Traceback" not in done.stderr
