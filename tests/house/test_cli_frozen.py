"""The options of the `tokenfabric` command. Scripts depend on them: a change is deliberate."""

import typer

from launch.cli import app

OPTIONS = {
    "bench": "--dtype --no-pin --output --pin --ranks --seconds --threads --timeout-s --tune",
    "demo": "--dtype --max-new-tokens --model --no-pin --pin --prompt --ranks --seconds --threads "
    "--timeout-s",
    "doctor": "--json",
    "generate": "--address --chat --dtype --launcher --max-new-tokens --model --no-chat --no-pin "
    "--node-rank --nodes --pin --prompt --ranks --rendezvous --ring --seed --temperature --threads "
    "--timeout-s --top-p --tp",
    "train": "--address --checkpoint-every --context --data --dp --dtype --eval-data --eval-every "
    "--eval-rows --keep-checkpoints --launcher --learning-rate --max-gradient-norm --max-restarts "
    "--min-learning-rate --model --no-pin --node-rank --nodes --output --pin "
    "--recompute --rendezvous --ring --rows-per-step --seed --steps --threads --timeout-s "
    "--warmup-steps --weight-decay",
    "plan": "--alignment --batch --device-table --explain --gpu --model --past --tokens --tp",
    "trace": "--alignment --batch --device-table --gpu --model --output --past --tokens --tp",
    "verify": "--attention --causal --dtype --head-dim --heads --kv-heads --max-new-tokens --model "
    "--no-causal --no-pin --partition --pin --ranks --ring --softcap --strategy --threads "
    "--timeout-s --tokens --window",
}


def options(application: typer.Typer) -> dict[str, str]:
    """Return the options of each command of an application."""
    group = typer.main.get_command(application)
    return {
        name: " ".join(sorted(o for p in command.params for o in (*p.opts, *p.secondary_opts)))
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }


def test_options_are_the_listed_ones() -> None:
    """No option comes, goes or is renamed unnoticed."""
    assert options(app) == OPTIONS


def test_change_is_noticed() -> None:
    """The comparison sees a new option."""
    other = typer.Typer()
    other.command("a")(lambda ranks=1: None)
    other.command("b")(lambda: None)
    assert options(other) == {"a": "--ranks", "b": ""}
