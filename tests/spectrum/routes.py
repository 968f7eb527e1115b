"""Routes to the same numbers, by which every case is computed."""

from dataclasses import dataclass, field
from functools import cache

from localrank_cli.jacobian.engine import Modes
from localrank_cli.measures.table import demand_of
from localrank_cli.spectrum.solve import Demand
from localrank_cli.spectrum.tolerance import Tolerance
from tests.cases import Case
from tests.naive import Array, naive_jacobians, naive_spectra

TOLERANCES = (
    Tolerance(atol=0.01),
    Tolerance(atol=0.1),
    Tolerance(rtol=1e-3),
    Tolerance(rtol=0.1),
    Tolerance(rtol=None),
)


@dataclass(frozen=True)
class Route:
    chain: bool = True
    forward: bool = True
    tight: bool = False  # a budget that holds no Jacobian whole
    demand: Demand = field(default=demand_of(TOLERANCES))
    batched_reverse: bool = True

    def modes(self) -> Modes:
        return Modes(self.chain, self.forward, self.batched_reverse)


ROUTES = {
    "as_chosen": Route(),
    "no_chain": Route(chain=False),
    "reverse": Route(chain=False, forward=False),
    "row_by_row": Route(chain=False, forward=False, batched_reverse=False),
    "blocks": Route(chain=False, tight=True),
    "blocks_in_reverse": Route(chain=False, forward=False, tight=True),
}


@cache
def jacobians(case: Case) -> dict[str, Array]:
    """Return the naive Jacobians of a case, by layer."""
    model, points = case.build()
    return naive_jacobians(model, points, case.layers, case.wrt)


@cache
def truth(case: Case) -> dict[str, Array]:
    """Return the naive singular values of a case, by layer."""
    return naive_spectra(jacobians(case))
