"""What a launcher costs: from its start to the first training step, and on each step.

    python -m benchmarks.bench_launchers            # about ten minutes on two idle cores
    python -m benchmarks.bench_launchers --quick    # one run of each, nothing is written

Every run is `tokenfabric train` as a process of its own on a small random Llama, with one thread a
rank: two ranks, which have every core of this machine, and one, which leaves a core to what a
launcher runs beside it. Launchers take turns, in another order each round; files are in the page
cache after a run that does not count.
"""

import argparse
import json
import statistics
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tokenfabric.testing.bench_report import (
    Environment,
    describe_environment,
    environment,
    format_seconds,
)

_REPOSITORY = Path(__file__).resolve().parents[1]
_STEPS, _CONTEXT = 40, 512
# The first steps touch memory for the first time, and what a launcher starts beside the ranks (Ray:
# agents, a controller, its cleaner) is still starting: some ten seconds on two cores.
_WARM_STEPS = 20
_LAUNCHERS = {
    "torchrun": "torchrun",
    "torchrun again": "torchrun",
    "ray": "ray",
    "ray, cluster running": "ray",
}
_RINGS = (2, 1)
_ALLOWED_S = {"torchrun": 15.0, "ray": 30.0}
_SIZES = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": _CONTEXT,
}


@dataclass(slots=True)
class Runs:
    """What one launcher's runs took, seconds."""

    first_step_s: list[float] = field(default_factory=list)
    """From the start of the process until the first step begins."""
    step_s: list[float] = field(default_factory=list)
    """Steps after the warm ones, of all runs."""
    whole_s: list[float] = field(default_factory=list)
    """Until the process ends."""


def main() -> None:
    """Parse the command line, measure, show the table and write the result files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--directory", type=Path, default=_REPOSITORY / "benchmarks" / "results")
    options = parser.parse_args()
    found = {(name, ring): Runs() for ring in _RINGS for name in _LAUNCHERS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, text = _write_inputs(folder)
        _run(("--launcher", "torchrun", "--ring", "2"), model, text, folder / "warm", Runs())
        for number in range(1 if options.quick else options.rounds):
            order = list(found)
            for launcher, ring in order[number % len(order) :] + order[: number % len(order)]:
                output = folder / f"{launcher.replace(' ', '-')}-{ring}-{number}"
                with _arguments(launcher) as how:
                    how = (*how, "--ring", str(ring))
                    _run(how, model, text, output, found[launcher, ring])
    facts = environment(_REPOSITORY)
    page = _page(facts, found)
    sys.stdout.write(page)
    if not options.quick:
        path = options.directory / f"launchers_{facts.machine}_{facts.month}.md"
        path.write_text(page)
        runs = [
            {"launcher": name, "ring": ring, **asdict(it)} for (name, ring), it in found.items()
        ]
        record = {"environment": asdict(facts), "runs": runs}
        path.with_suffix(".json").write_text(json.dumps(record) + "\n")
        sys.stdout.write(f"wrote {path} and .json\n")


def _write_inputs(folder: Path) -> tuple[Path, Path]:
    """Write a random model whose tokens are characters, and a text."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    characters = ["\n", "\x03", *string.printable[:95]]
    vocabulary = {character: index for index, character in enumerate(dict.fromkeys(characters))}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**_SIZES, vocab_size=len(vocabulary)))
    model.save_pretrained(folder / "model")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(BPE(vocabulary, merges=[])), eos_token="\x03"
    )
    tokenizer.save_pretrained(folder / "model")
    text = folder / "text.txt"
    text.write_text("the ring goes round and round. " * (2 * _CONTEXT))
    return folder / "model", text


@contextmanager
def _arguments(launcher: str) -> Iterator[tuple[str, ...]]:
    """Yield what chooses a launcher, beside a cluster of one node if it is to join one."""
    how = ("--launcher", _LAUNCHERS[launcher])
    if launcher != "ray, cluster running":
        yield how
        return
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    try:
        cluster.wait_for_nodes()
        yield (*how, "--address", cluster.address)
    finally:
        cluster.shutdown()


def _run(how: Sequence[str], model: Path, text: Path, output: Path, into: Runs) -> None:
    """Train once; note when the first step began and what each took."""
    command = [
        sys.executable, "-m", "launch", "train", *how, "--model", str(model), "--data", str(text),
        "--output", str(output), "--context", str(_CONTEXT), "--steps", str(_STEPS),
        "--dtype", "fp32", "--threads", "1", "--learning-rate", "1e-4",
    ]  # fmt: skip
    metrics = output / "metrics.jsonl"
    started_s = time.monotonic()
    with subprocess.Popen(
        command, cwd=_REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.01)
        first_line_s = time.monotonic() - started_s
        _, said = process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{said}")
    steps = [json.loads(line)["seconds"] for line in metrics.read_text().splitlines()]
    into.first_step_s.append(first_line_s - steps[0])
    into.step_s += steps[_WARM_STEPS:]
    into.whole_s.append(time.monotonic() - started_s)


def _page(facts: Environment, found: Mapping[tuple[str, int], Runs]) -> str:
    lines = [
        "| launcher | ranks | start to first step | worst | allowed | step | p25-p75 "
        "| of torchrun's | whole run | runs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (name, ring), runs in found.items():
        baseline = statistics.median(found["torchrun", ring].step_s)
        low, step, high = statistics.quantiles(runs.step_s, n=4)
        cells = (
            name,
            str(ring),
            f"{statistics.median(runs.first_step_s):.1f} s",
            f"{max(runs.first_step_s):.1f} s",
            f"{_ALLOWED_S[_LAUNCHERS[name]]:g} s",
            format_seconds(step),
            f"{format_seconds(low)}-{format_seconds(high)}",
            f"{step / baseline:.3f}",
            f"{statistics.median(runs.whole_s):.1f} s",
            str(len(runs.whole_s)),
        )
        lines.append(f"| {' | '.join(cells)} |")
    table = "\n".join(lines)
    return f"""\
# What a launcher costs

{describe_environment(facts)}

`tokenfabric train` on a random Llama (hidden 256, 4 layers, fp32), {_CONTEXT} tokens, one thread a
rank, {_STEPS} steps. Two ranks have every core of the machine; one leaves a core to Ray's own
processes, of which half a dozen wake a hundred times a second each. `ray`: without `--address`, so
that its time includes starting a cluster; `ray, cluster running`: with the address of one on this
machine. Start to first step: from the start of the command's process, imports and loading the model
included. Times are medians; steps are those after the first {_WARM_STEPS} of each run, in which
Ray's own processes still start. `torchrun again` is the same command once more: what differs from
it no more than it does means nothing here.

{table}

Again: `python -m benchmarks.bench_launchers`.
"""


if __name__ == "__main__":
    main()
