"""`RayGang`: a model that stays loaded on the nodes of a Ray cluster."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from launch.job import JobSpec
from launch.models import prepare_model
from launch.ray.cluster import connected
from launch.ray.gang import Rank, follow, report_event, started_ranks
from launch.report import Reporter, SilentReporter
from tokenfabric.errors import ConfigError

_BATCH_SIZE = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says to one prompt."""

    index: int
    """Of the prompt, in the order given."""
    text: str


class RayGang:
    """A model over ranks that are Ray actors, from `with` to its end.

        with launch.RayGang("smollm2", ranks=4, nodes=2, address="auto") as gang:
            for answer in gang.generate(["What is a ring?", "And a torus?"]):
                print(answer.index, answer.text)

    The first failure of a rank ends all of them; the gang is closed then, and another can be made.
    """

    def __init__(
        self,
        model: str,
        *,
        ranks: int = 2,
        nodes: int = 1,
        ring: int = 1,
        address: str | None = None,
        dtype: str = "auto",
        chat: bool | None = None,
        num_threads: int | None = None,
        timeout_s: float = 60.0,
        reporter: Reporter | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            model: as the command's --model; the path must lead to it on every node.
            ranks: that answer together, `ranks / nodes` on each node.
            nodes: of the cluster.
            ring: shares that the tokens of prompt and cache are dealt in, across nodes if there are
                several; `ranks / ring` ranks of a node share the model. Such a gang answers one
                prompt at a time.
            address: of the cluster, as `ray.init` takes it; None: one on this machine.
            dtype: "auto", "bf16" or "fp32".
            chat: use the model's chat template; None: if it has one.
            num_threads: of each rank.
            timeout_s: how long one rank waits for another.
            reporter: hears what rank 0 says.

        Raises:
            ConfigError: a number is out of range.
        """
        if ring < 1 or ranks % ring:
            raise ConfigError(f"ring is {ring}: pass a divisor of the {ranks} rank(s)")
        self._model, self._is_ring = model, ring > 1
        recipe, mesh = "launch.recipes.session:open_session", {}
        args: dict[str, object] = {"dtype": dtype, "chat": chat}
        if self._is_ring:
            recipe, mesh = "launch.recipes.session_ring:open_session", {"ring": ring}
            mesh["tp"] = args["tp"] = ranks // ring
        self._spec = JobSpec(
            recipe=recipe,
            ranks=ranks,
            nodes=nodes,
            mesh=mesh,
            num_threads=num_threads,
            timeout_s=timeout_s,
            args=args,
        )
        self._address = address
        self._reporter = reporter or SilentReporter()
        self._ranks: list[Rank] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Start the ranks and load the model.

        Raises:
            ConfigError, TopologyError: the model or the cluster cannot be had.
            JobFailedError: with the first failing rank's own error; no actor is left.
        """
        directory = str(prepare_model(self._model, self._reporter))
        spec = self._spec.with_args(model=directory)
        with ExitStack() as stack:
            stack.enter_context(connected(self._address))
            self._ranks = stack.enter_context(started_ranks(spec))
            events = follow(self._ranks, lambda rank: rank.actor.serve, spec, with_info=True)
            for kind, value in events:
                if kind != "result":
                    report_event(kind, value, self._reporter)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End the ranks."""
        self.close()

    def close(self) -> None:
        """End the ranks. Closing twice is allowed."""
        self._ranks = []
        self._stack.close()

    def generate(
        self,
        prompts: Sequence[str],
        *,
        batch_size: int | None = None,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[Answer]:
        """Yield the answers, each batch when it is done.

        Args:
            prompts: what to say to the model.
            batch_size: prompts that are answered at a time; None: 8, or 1 over a ring.
            max_new_tokens: longest answer, in tokens.
            temperature: 0 takes the likeliest token, above 0 samples.
            top_p: sample from this share of the probability.
            seed: of the samples.

        Raises:
            ConfigError: the gang is not open, a number is out of range, or a batch is to go over a
                ring.
            JobFailedError: with the first failing rank's own error; the gang is closed.
        """
        if not self._ranks:
            raise ConfigError("the gang is not open: use it in a with statement")
        if batch_size is None:
            batch_size = 1 if self._is_ring else _BATCH_SIZE
        if self._is_ring and batch_size > 1:
            raise ConfigError(
                f"batch_size is {batch_size}, but a ring answers one prompt at a time: leave it out"
            )
        for name, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
            if value < 1:
                raise ConfigError(f"{name} is {value}: pass at least 1")
        request = {
            "prompts": list(prompts),
            "batch_size": batch_size,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
        }
        return self._answers(request)

    def _answers(self, request: dict[str, object]) -> Iterator[Answer]:
        is_done = False
        try:
            for kind, value in follow(self._ranks, lambda rank: rank.actor.ask, request):
                if kind == "item":
                    yield Answer(*value)
                elif kind != "result":
                    report_event(kind, value, self._reporter)
            is_done = True
        finally:
            if not is_done:
                # A caller that stops early leaves ranks in the middle of a batch.
                self.close()
