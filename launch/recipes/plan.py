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
from tokenweave.tuned_tables import read_tuned


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
    device_table: Path | None = None
    """A file of measured tables (tokenweave/tuned_tables.py)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Planned:
    shape: ModelShape
    device: Device
    sources: dict[str, str]
    """Of the device's numbers."""
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
    planned = _planned(reporter, request)
    if explain:
        reporter.text(planned.plan.explain() + "\n")
        for number, source in planned.sources.items():
            reporter.note(f"{number}: {source}")
    reporter.table(_table(request, planned))


def run_trace(reporter: Reporter, request: PlanRequest, output: Path) -> None:
    """Write the trace of a simulated forward pass, and say how much of its communication is hidden.

    Raises:
        ConfigError: as run_plan, or the file cannot be written.
    """
    planned = _planned(reporter, request)
    name = f"{planned.shape.name}, {request.ranks} x {planned.device.name}, simulated"
    try:
        output.write_text(trace_json(planned.timeline, name))
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}") from None
    reporter.table(_table(request, planned))
    reporter.note(f"wrote {output}: open it in Perfetto or in chrome://tracing")


def _planned(reporter: Reporter, request: PlanRequest) -> _Planned:
    if request.tokens < 1 or request.batch < 1 or request.tokens % request.batch:
        raise ConfigError(
            f"{request.tokens} tokens are no {request.batch} sequences of one length: pass a "
            "multiple"
        )
    shape = load_model_shape(request.model)
    device, where = _device(reporter, request)
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
    return _Planned(shape=shape, device=device, sources=where, plan=plan, timeline=timeline)


def _device(reporter: Reporter, request: PlanRequest) -> tuple[Device, dict[str, str]]:
    """Return the device and the sources of its numbers."""
    device = load_device(request.gpu)
    if request.device_table is not None:
        tables = [
            it
            for it in read_tuned(request.device_table).tables
            if (it.base, it.key.world_size) == (device.name, request.ranks)
        ]
        if len(tables) > 1:
            raise ConfigError(
                f"{request.device_table} has several tables of {device.name} and {request.ranks} "
                f"ranks: {'; '.join(str(it.key) for it in tables)}. Keep the one that is meant"
            )
        if tables:
            numbers = tables[0].numbers
            return tables[0].device(), {name: it["source"] for name, it in numbers.items()}
        reporter.note(
            f"{request.device_table} has no table of {device.name} and {request.ranks} ranks: "
            "planned with the one that comes with tokenfabric"
        )
    return device, sources(request.gpu)


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
