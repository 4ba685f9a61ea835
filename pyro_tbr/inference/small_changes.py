"""Known latents: may changes be small where gates are off?

With small changes of learnt width a weak trace of a change is taken for a small one, even where
there are none of that kind: the rows do not tell a width below their errors from none. Latents that
are learnt mix a little of each other, so there the prior always has them. Latents that are known
need not have any: the weights are fitted without, and once more with them unless the rows speak
clearly against these. Where rows say too little for that, small changes stay: without them what is
seen dimly would be taken for a change too often. They stay too where latents correlate within
environments: expectation propagation then errs, and low PIPs would be too high without them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from pyro_tbr.heads import Guide, Statistics
from pyro_tbr.heads.conditioning import condition, warn_unsettled
from pyro_tbr.heads.guide import Settled
from pyro_tbr.heads.second_start import gain_by_small_changes
from pyro_tbr.heads.tree_guide import TreeGuide
from pyro_tbr.inference.encoder.rows import StandardRows
from pyro_tbr.inference.sparse_stage import Task, settle
from pyro_tbr.models import TreeModel
from pyro_tbr.posterior.checking import largest_correlation
from pyro_tbr.progress import detail, stage

_MOST_CORRELATION = 0.5  # up to which PIPs by expectation propagation are exact to 0.01
_CLEAR = 3.0  # log evidence a weight against small changes; strong, after Kass & Raftery (1995)


class Weighed(NamedTuple):
    """Weights of known latents at their optimum, and the answer, ``None`` where not asked."""

    model: TreeModel
    guide: Guide
    stats: Statistics
    small_changes: bool | None


def weighed(
    task: Task,
    model: TreeModel,
    begun: Callable[[TreeModel], Guide],
    design: Tensor,
    rows: StandardRows,
) -> Weighed:
    """Weights of known latents under the prior that their rows speak for.

    Args:
        task: What is to be done.
        model: Built.
        begun: A guide of a model's weights, where it starts.
        design: Of the rows, (N, W).
        rows: The rows.

    Warns:
        ConvergenceWarning: The guide did not come to rest.
    """
    sharp, guide = model.without_small_changes(), begun(model)
    known = rows.with_design(design)
    asked = sharp is not model and isinstance(guide, TreeGuide)
    if asked and largest_correlation(known, model.latent_dim).max(initial=0) > _MOST_CORRELATION:
        asked = False
        detail("latents correlate within environments: changes may be small where gates are off")
    if not asked:
        return Weighed(model, guide, settle(task, guide, design, rows, last=True), None)
    ends: list[Settled] = []
    with stage("", plan={"without small changes": 40, "with small changes": 60}):
        plain = begun(sharp)
        assert isinstance(plain, TreeGuide)
        assert isinstance(guide, TreeGuide)
        with stage("without small changes", total=1):
            stats = condition(plain, known, ends=ends.append)
        with stage("with small changes", total=1):
            gain = gain_by_small_changes(plain, guide)
            detail("evidence by small changes: %s, by weight", _shown(gain))
            if bool((gain > 0).any()) or gain.mean() > -_CLEAR:
                guide = begun(model)
                return Weighed(model, guide, settle(task, guide, design, rows, last=True), True)
    warn_unsettled(plain, ends[-1], task.names)
    return Weighed(sharp, plain, stats, False)


def _shown(gain: Tensor) -> str:
    return ", ".join(f"{value:.1f}" for value in gain.tolist())
