"""A guide that holds what it was given: it answers, and rows cannot move it."""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor

from pyro_tbr.errors import DataError
from pyro_tbr.heads.guide import Guide, Settled
from pyro_tbr.heads.rows import DesignRows
from pyro_tbr.heads.statistics import Statistics


class HeldGuide(Guide):
    """Refuses all that moves a guide or asks for its density, and says what to do; abstract.

    Attributes:
        held: What such a posterior is, for errors.
        remade: The call that makes one of what ``fit`` returned.
    """

    abstract = True
    held: str
    remade: str

    def _refuse(self, what: str) -> NoReturn:
        raise DataError(
            f"{what} a guide that rows can move, and this posterior {self.held}: do so with the "
            f"one that fit() returned, then {self.remade} again"
        )

    def forward(self, *args: object, **kwargs: object) -> None:
        """Not for training."""
        self._refuse("SVI trains")

    def kl(self) -> Tensor:
        """It has no density."""
        self._refuse("elbo() and kl() are of")

    def start(self, root: Tensor, deltas: Tensor, *, sparse: bool = True) -> None:
        """Not for training."""
        self._refuse("fit starts")

    def update(
        self,
        stats: Statistics,
        *,
        sweeps: int,
        learn_hyper: bool = True,
        learn_nuisance: bool = True,
        rough: bool = False,
    ) -> Settled:
        """Rows do not move it."""
        self._refuse("fit moves")

    def step(
        self, stats: Statistics, *, learn_hyper: bool = True, learn_nuisance: bool = True
    ) -> None:
        """Rows do not move it."""
        self._refuse("fit moves")

    def absorb(self, rows: DesignRows, num_rows: int) -> None:
        """Rows do not move it."""
        self._refuse("SVI trains")

    def knowing(self, informed_nodes: Tensor) -> Guide:
        """Rows do not move it."""
        self._refuse("update() moves")
