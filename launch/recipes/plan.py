"""`tokenfabric plan` and `tokenfabric trace`: what a forward pass would do on a device, and when.

No ranks are started and no GPU is needed: the costs come from tokenweave/tables.
"""

from dataclasses import dataclass
from pathlib import Path

from launch.report import Reporter, Table
from tokenfabric.errors import ConfigError
from tokenfabric.simulate import simulate
from tokenfabric.timeline import Timeline
from tokenfabric.trace import trace_json
from tokenweave.batch import Batch
from tokenweave.device import Device
from tokenweave.device_tables import load_device, load_model_shape, sources
from tokenweave.model_shape import ModelShape
from tokenweave.split import plan_split
from tokenweave.split_plan import SplitPlan
from tokenweave.stage_work import FusedWork, machine_of


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRequest:
    """What a plan is wanted for, as asked on the command line."""

    model: str
    gpu: str
    ranks: int
    tokens: int
    batch: int = 1
    """Sequences that share the tokens equally."""
    past: int = 0
    """Tokens of each that are cached."""
    alignment: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class _Planned:
    shape: ModelShape
    device: Device
    plan: SplitPlan
    timeline: Timeline


def run_plan(reporter: Reporter, request: PlanRequest, *, explain: bool) -> None:
    """Show the plan of a forward pass and its simulated time.

    Args:
        reporter: gets a table; with explain, the reasons and sources before it.
        request: the forward pass.
        explain: say why.

    Raises:
        ConfigError: the model, the device or a number cannot be.
    """
    planned = _planned(request)
    if explain:
        reporter.text(planned.plan.explain() + "\n")
        for number, source in sources(request.gpu).items():
            reporter.note(f"{number}: {source}")
    reporter.table(_table(request, planned))


def run_trace(reporter: Reporter, request: PlanRequest, output: Path) -> None:
    """Write the trace of a simulated forward pass, and say how much of its communication is hidden.

    Raises:
        ConfigError: as run_plan, or the file cannot be written.
    """
    planned = _planned(request)
    name = f"{planned.shape.name}, {request.ranks} x {planned.device.name}, simulated"
    try:
        output.write_text(trace_json(planned.timeline, name))
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}") from None
    reporter.table(_table(request, planned))
    reporter.note(f"wrote {output}: open it in Perfetto or in chrome://tracing")


def _planned(request: PlanRequest) -> _Planned:
    if request.tokens < 1 or request.batch < 1 or request.tokens % request.batch:
        raise ConfigError(
            f"{request.tokens} tokens are no {request.batch} sequences of one length: pass a "
            "multiple"
        )
    shape, device = load_model_shape(request.model), load_device(request.gpu)
    lengths = (request.tokens // request.batch,) * request.batch
    batch = Batch(lengths, request.past)
    plan = plan_split(
        request.tokens,
        shape=shape,
        world_size=request.ranks,
        device=device,
        batch=batch,
        alignment=request.alignment,
    )
    schedule = plan.lower(FusedWork(shape, request.ranks, device, batch))
    timeline = simulate(schedule, machine_of(device))
    return _Planned(shape=shape, device=device, plan=plan, timeline=timeline)


def _table(request: PlanRequest, planned: _Planned) -> Table:
    plan, timeline = planned.plan, planned.timeline
    prediction = plan.prediction
    assert prediction is not None
    rows = [
        ("plan", "split" if plan.is_split else plan.kind.replace("_", " ")),
        ("boundary", f"{plan.boundary} of {plan.num_tokens} tokens" if plan.is_split else "none"),
        ("SMs of reductions", _budgets(plan)),
        ("simulated", _ms(timeline.makespan_s)),
        ("unfused, in closed form", _ms(prediction.unfused_s)),
        ("fused only, in closed form", _ms(prediction.fused_only_s)),
        ("split, in closed form", _ms(prediction.split_s)),
        (
            "communication hidden",
            f"{timeline.overlap_ratio:.0%} of {_ms(timeline.communication_s)}",
        ),
    ]
    return Table(
        title=f"{planned.shape.name}, {request.tokens} tokens, {request.ranks} x "
        f"{planned.device.name}",
        columns=("what", "value"),
        rows=tuple(rows),
        notes=("Simulated, not measured; docs/simulator.md has the errors against what is "
               "published.",),
    )  # fmt: skip


def _budgets(plan: SplitPlan) -> str:
    return ", ".join(
        f"{part.name} {' + '.join(str(it.num_sms or 'any') for it in part.reductions)}"
        for part in plan.parts
    )


def _ms(seconds: float | None) -> str:
    return "not possible" if seconds is None else f"{seconds * 1e3:.3f} ms"
