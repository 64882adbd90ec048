"""From a command's options to a job that runs. Imports neither torch nor transformers."""

from collections.abc import Mapping

from launch.dispatch import LauncherChoice, run_with


def run_recipe(
    recipe: str,
    *,
    model: str | None,
    ranks: int | None,
    threads: int | None,
    pin: bool | None,
    timeout_s: float,
    default_ranks: int = 2,
    mesh: Mapping[str, int] | None = None,
    choice: LauncherChoice | None = None,
    **args: object,
) -> object:
    """Prepare the model, if there is one, run a recipe on its ranks; return rank 0's result."""
    from launch.console import ConsoleReporter
    from launch.job import JobSpec
    from launch.models import prepare_model
    from launch.report import SilentReporter
    from launch.torchrun import choose_ranks, is_quiet_rank

    choice = LauncherChoice() if choice is None else choice
    reporter = SilentReporter() if is_quiet_rank() or not choice.is_first else ConsoleReporter()
    num_ranks = choose_ranks(ranks, max(default_ranks, choice.nodes), mesh or {})
    # Checked before a model is looked for, and a large one converted.
    spec = JobSpec(
        recipe=recipe,
        ranks=num_ranks,
        nodes=choice.nodes,
        mesh=mesh or {},
        args=args,
        timeout_s=timeout_s,
        num_threads=threads,
        pin=pin,
    )
    if model is not None:
        spec = spec.with_args(model=str(prepare_model(model, reporter)))
    return run_with(choice, spec, reporter)
