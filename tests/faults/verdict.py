"""When a disturbed job ended as it must."""

from tests.faults.cases import Case
from tests.faults.runner import CHECKPOINT_EVERY, STEPS, Outcome

# A gang ends by signals and closed connections: at once, but for a busy machine. Ray asks its nodes
# and actors every few seconds whether they live.
KNOWN_WITHIN_S = {"torchrun": 2.0, "two nodes": 2.0, "ray": 10.0}
# A checkpoint gets its name one or two steps after the one that it is of.
MOST_STEPS_AGAIN = 2 * CHECKPOINT_EVERY + 1
# Sums in another order, over STEPS steps.
SAME_LOSS = 1e-5


def problems(case: Case, outcome: Outcome) -> list[str]:
    """Return what of an outcome is not as it must be."""
    found = []
    if outcome.left:
        found.append(f"left running: {', '.join(outcome.left)}")
    if outcome.unfinished:
        found.append(f"checkpoints {outcome.unfinished} are not whole")
    limit_s = KNOWN_WITHIN_S[case.launcher]
    if not outcome.knew_s < limit_s:
        found.append(f"the last survivor knew after {outcome.knew_s:.1f} s, not {limit_s:g} s")
    if case.survives:
        if outcome.code != 0 or outcome.loss_difference is None or outcome.steps_lost is None:
            found.append(f"it did not go on to step {STEPS}: {outcome.said}")
        elif outcome.loss_difference > SAME_LOSS:
            found.append(f"the last loss is off by {outcome.loss_difference:.1e}")
        elif not 0 <= outcome.steps_lost <= MOST_STEPS_AGAIN:
            found.append(f"{outcome.steps_lost} steps were done again")
    elif outcome.code == 0:
        found.append("it ended as if nothing had happened")
    elif case.what in ("rank", "raylet") and "failed: " not in outcome.said:
        found.append(f"the user is not told who failed: {outcome.said}")
    return found
