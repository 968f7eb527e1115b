"""Routes to the same numbers, by which every case is computed."""

from dataclasses import dataclass, field

from localrank_cli.jacobian.engine import Modes
from localrank_cli.measures.table import demand_of
from localrank_cli.spectrum.solve import Demand
from tests.spectrum.test_naive import TOLERANCES


@dataclass(frozen=True)
class Route:
    chain: bool = True
    forward: bool = True
    tight: bool = False  # a budget that holds no Jacobian whole
    demand: Demand = field(default=demand_of(TOLERANCES))

    def modes(self) -> Modes:
        return Modes(chain=self.chain, forward=self.forward)


ROUTES = {
    "as_chosen": Route(),
    "no_chain": Route(chain=False),
    "reverse": Route(chain=False, forward=False),
    "blocks": Route(chain=False, tight=True),
    "blocks_in_reverse": Route(chain=False, forward=False, tight=True),
}
