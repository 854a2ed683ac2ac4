"""Whole servers in memory, with everything going wrong that can, from a seed.

    outcome = simulate(Scenario.of_seed(7))
    assert not outcome.violations, "".join(outcome.trace.lines())

A `Scenario` is plain values: what the engines, the network and the workers do. `simulate` runs the real `Server` with
it, from WebSocket frames to results, on virtual time, and judges what each worker heard with a `Ledger`.
"""

from .run import Outcome as Outcome
from .run import simulate as simulate
from .scenario import EnginePlan as EnginePlan
from .scenario import Manners as Manners
from .scenario import Scenario as Scenario
from .scenario import Trouble as Trouble
from .scenario import WorkerPlan as WorkerPlan
