"""Moves a tree guide to its optimum: sweeps over the latents' trees.

Mean field first, which always converges. Then, where the guide is coupled, expectation propagation
between the latents (``coupling``), in steps a little shorter than whole, and shorter still where it
does not come to rest. A sweep moves all latents at once, in one pass along the tree, as long as
sweeps get shorter by that; where they do not, as where latents correlate, one latent after the
other. Hyperparameters and noise are moved after every sweep. Expectation propagation that never
rests, or ends where it fits the rows worse than mean field, even from mean field at rest, is given
up: the guide is then left at mean field, and what was in trouble is reported.
"""

import math

import torch
from torch import Tensor

import pyro_tbr.progress as progress
from pyro_tbr.heads.coupling import NodeRows, Potential
from pyro_tbr.heads.guide import Settled
from pyro_tbr.heads.second_start import choose_start
from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.heads.tree_state import TreeState

# A sweep that moves no leaf's weight by more than this share of its standard deviation is the last.
_SETTLED = 0.05
_COUPLED_SETTLED = 0.01  # and nor the standard deviation itself, when coupled
_BEFORE_COUPLED = 0.2  # mean field that is only on the way to coupled sweeps,
_FIRST_SWEEPS = 8  # of which there are no more than this unless coupled sweeps fail after them
_TROUBLE = 0.25  # a last sweep that moved a weight by more has not come to rest
# Sweeps run with few components and are polished with all: the passes take most of a fit's time.
_POLISHING_SWEEPS = 2
_STEP = 0.8  # of a potential towards its new value, when coupled;
_SHRINK = 0.5  # shorter by this factor after a sweep that moved more than the one before,
_DRIFT = 0.1  # and more than this, which other components that are kept can do
_CAREFUL = (0.3, 0.1)  # steps of the runs that go on where one has not come to rest
_PROGRESS, _PATIENCE = 0.9, 10  # expectation propagation that does not get shorter by this ends
_TALK = 0.6  # step of what outcomes tell each other of their gates,
_QUIETER, _LEAST_TALK = 0.7, 0.2  # shorter by this factor, down to that, where news get larger
_PACE = 0.7  # all weights move at once while each sweep moves less than this share of the last
# Squared residuals over the noise variance, of weights of a node that are judged together, by which
# expectation propagation may be above mean field, and as many again for each of them: it shrinks
# what is uncertain.
_WORSE, _WORSE_A_WEIGHT = 10.0, 3.0


class Sweeps:
    """Sweeps of a guide over rows, which move what it holds; arguments as of ``Guide.update``."""

    def __init__(
        self, guide: TreeState, stats: Statistics, *, learn_hyper: bool, learn_nuisance: bool
    ) -> None:
        self.guide, self.stats = guide, stats.flattened()
        self.learn_hyper = learn_hyper
        self.learn_nuisance = learn_nuisance
        likelihood = guide.head.likelihood
        self._moves_noise = likelihood.exact and (learn_nuisance or likelihood.moves_at_nodes)
        self._done = 0
        self._talk, self._told = _TALK, math.inf

    @property
    def few(self) -> int:
        """Components of a message while sweeps still move far."""
        few, full = self.guide.factor.rough_components, self.guide.num_components
        return few if full is None else min(full, few)

    def settle(self, start: Tensor | None, sweeps: int, *, rough: bool) -> Settled:
        """Sweeps until weights no longer move.

        Args:
            start: Means of the weights to start from, (E, Q, W); ``None``: the guide's own.
            sweeps: After this many steps get shorter, and later the run ends.
            rough: No second start of the hyperparameters, no polish, no run that goes on.
        """
        guide = self.guide
        mean = self._moments()[0] if start is None else start.clone()
        guide.eta.zero_()
        guide.lam.zero_()
        coupled = guide.coupled and (mean.shape[-1] > 1 or self.stats.joint is not None)
        limit = (sweeps + 1) // 2 if coupled else sweeps
        settled = _BEFORE_COUPLED if coupled else _SETTLED
        few = limit if rough or not coupled else min(limit, _FIRST_SWEEPS)
        moves = self._run(False, few, settled, mean)
        if not (rough or coupled):
            moves = self._go_on(moves, False, sweeps, settled)
        if not rough and self.learn_hyper and choose_start(guide, self.few):
            moves = self._run(False, few, settled)
        if rough:
            if coupled:
                moves = self._run(True, limit, _COUPLED_SETTLED)
            return Settled(self._done, _largest(moves))
        if not coupled:
            return self._polished(settled)
        found = self._coupled(limit)
        if found.trouble and _largest(moves) > settled:  # once more, from mean field at rest
            moves = self._run(False, limit, settled)
            self._go_on(moves, False, sweeps, settled)
            found = self._coupled(limit)
        return self._polished(_SETTLED)._replace(trouble=found.trouble) if found.trouble else found

    def once(self) -> None:
        """One sweep from where the guide stands, hyperparameters and noise after it."""
        joint = self.stats.joint is not None
        coupled = self.guide.coupled and (len(self.guide.eta) > 1 or joint)
        self._run(coupled, 1, 0.0)
        self._widen(coupled)

    def _coupled(self, limit: int) -> Settled:
        """Expectation propagation from mean field, which is there again where it is in trouble."""
        before, rows = self.guide.state_copy(), self._rows(True)
        misfit = self.guide.misfit(rows, self.stats.nodes)
        moves = self._run(True, limit, _COUPLED_SETTLED)
        moves = self._go_on(moves, True, limit, _COUPLED_SETTLED)
        if _largest(moves) < _TROUBLE:
            moves = self._run(True, _POLISHING_SWEEPS, _COUPLED_SETTLED, polish=True)
        if _largest(moves) > _TROUBLE:  # all components may mean another optimum
            moves = self._run(True, limit, _DRIFT, step=_CAREFUL[0], polish=True)
        worse = (
            self.guide.misfit(rows, self.stats.nodes) - misfit
            > _WORSE + _WORSE_A_WEIGHT * rows.linear.shape[-1]
        )
        trouble = (moves > _TROUBLE) | worse.unsqueeze(-1)
        if not bool(trouble.any()):
            self._widen(True)
            return Settled(self._done, _largest(moves))
        self.guide.load_state_dict(before)
        return Settled(self._done, _largest(moves), self._places(trouble))

    def _widen(self, coupled: bool) -> None:
        """See :meth:`Guide.widen`; sites that will move again are left as the bound has them."""
        if coupled and self.guide.head.likelihood.exact:
            self.guide.widen(self.stats)

    def _polished(self, settled: float) -> Settled:
        """Last sweeps of mean field, with all components."""
        moves = self._run(False, _POLISHING_SWEEPS, settled, polish=True)
        return Settled(self._done, _largest(moves), self._places(moves > _TROUBLE))

    def _go_on(self, moves: Tensor, coupled: bool, limit: int, settled: float) -> Tensor:
        """More sweeps where a run has not come to rest: shorter steps, or as many again.

        With few components another one that is kept may move a weight at every step, however
        short; so the last sweeps of expectation propagation have them all.
        """
        for step in _CAREFUL:
            if _largest(moves) < max(settled, _DRIFT):
                break
            last = coupled and step == _CAREFUL[-1]
            end = _DRIFT if last else settled
            moves = self._run(coupled, 2 * limit, end, step=step, polish=last)
        return moves

    def _run(
        self,
        coupled: bool,
        limit: int,
        settled: float,
        mean: Tensor | None = None,
        *,
        step: float = _STEP,
        polish: bool = False,
    ) -> Tensor:
        """Sweeps of one kind until one moves less than ``settled``, the first from given means.

        Returns the last moves of the weights, (E, Q, W).
        """
        guide, last, together = self.guide, math.inf, True
        best, since = math.inf, 0  # the shortest sweep, and sweeps since
        components = None if polish else self.few
        moves = guide.eta.new_zeros(len(self.stats.nodes), *guide.eta.shape[1::-1])
        for _ in range(limit):
            self._done += 1
            progress.step(unit="sweep")
            if together:
                moves = self._all_at_once(coupled, components, step, mean)
            else:
                moves = self._in_turns(coupled, components, step)
            mean = None
            if self.learn_hyper:
                guide.factor.learn(guide.current, guide.informed_arcs)
            if self._moves_noise:
                self._move_noise(coupled)
            guide.check_finite("after a sweep over the latents")
            moved = moves.max().item()
            best, since = (moved, 0) if moved < _PROGRESS * best else (best, since + 1)
            if moved < settled or (coupled and moved > _DRIFT and since == _PATIENCE):
                break
            if together:
                together = moved < max(_PACE * last, _DRIFT)
            elif coupled and moved > max(last, _DRIFT):
                step *= _SHRINK
            last = moved
        return moves

    def _all_at_once(
        self, coupled: bool, components: int | None, step: float, start: Tensor | None
    ) -> Tensor:
        """Every weight once, as the others were before; of mean field maybe from given means."""
        guide, nodes = self.guide, self.stats.nodes
        rows, own = self._rows(coupled), self._potentials()
        # Mean field asks for no variances, and those of before the start would cost a pass.
        here, var = self._moments() if start is None else (start, torch.ones_like(start))
        shared = guide.shared_errors(rows, nodes) if coupled else None
        new = self._potentials_given(rows, here, var, own, step if coupled else None, shared)
        for everywhere, value in zip((guide.eta, guide.lam), new, strict=True):
            everywhere[:, :, nodes] = value.permute(2, 1, 0).to(everywhere)
        guide.refresh(guide.passes(slice(None), components, refit=self.learn_hyper))
        after, var_after = self._moments()
        moves = (after - here).abs() / var_after.sqrt()
        if coupled:
            moves = torch.maximum(moves, ((var / var_after).sqrt() - 1).abs())
        return self._with_gates(moves)

    @staticmethod
    def _potentials_given(
        rows: NodeRows,
        mean: Tensor,
        var: Tensor,
        own: Potential,
        step: float | None,
        shared: Tensor | None,
    ) -> Potential:
        """New potentials of all weights, (E, Q, W): a step towards those given the others'.

        Without a step mean field's, given the others' means.
        """
        if step is None:
            return rows.given_means(mean)
        aim = rows.given_cavities(rows.cavity(mean, var, own), shared)
        pairs = zip(own, aim, strict=True)
        return Potential(*(torch.lerp(old, new, step) for old, new in pairs))

    def _in_turns(self, coupled: bool, components: int | None, step: float) -> Tensor:
        """Every weight once, one of ``places`` after the other; returns moves, (E, Q, W).

        See ``_SETTLED``. Where trees go jointly a pass is one of all weights.
        """
        guide, nodes = self.guide, self.stats.nodes
        rows, own, joint = self._rows(coupled), self._potentials(), guide.factor.trees_joint
        mean, var = self._moments()
        first, first_var = mean.clone(), var.clone()
        shared = guide.shared_errors(rows, nodes) if coupled else None
        for weights in guide.factor.places():
            new = self._potentials_given(rows, mean, var, own, step if coupled else None, shared)
            for everywhere, here, value in zip((guide.eta, guide.lam), own, new, strict=True):
                for k in weights:
                    everywhere[k][:, nodes] = value[:, :, k].T.to(everywhere)
                    here[:, :, k] = value[:, :, k]
            where = slice(None) if joint else slice(weights[0], weights[-1] + 1)
            now = guide.passes(where, components, refit=self.learn_hyper)
            mean[:, :, where] = now.node_mean[..., nodes].permute(2, 1, 0)
            var[:, :, where] = now.node_var[..., nodes].permute(2, 1, 0).clamp(min=1e-300)
        if not joint:
            now = guide.passes(slice(None), components, refit=self.learn_hyper)
        guide.refresh(now)
        moves = (mean - first).abs() / var.sqrt()
        if coupled:
            moves = torch.maximum(moves, ((first_var / var).sqrt() - 1).abs())
        return self._with_gates(moves)

    def _with_gates(self, moves: Tensor) -> Tensor:
        """Moves (E, Q, W), or those of inclusion probabilities as outcomes hear of each other."""
        guide = self.guide
        found = guide.factor.exchange(guide.current, guide.informed_arcs, self._talk)
        told = found.max().item()
        if told > max(self._told, _DRIFT):
            self._talk = max(_LEAST_TALK, _QUIETER * self._talk)
        self._told = told
        return torch.maximum(moves, found)

    def _rows(self, coupled: bool) -> NodeRows:
        """What the rows say of the weights at the noise as it is.

        Mean field takes each outcome alone even where their noise goes together: with the others
        at their means, outcomes would move by hundreds of short steps.
        """
        stats = self.stats if coupled else self.stats._replace(joint=None)
        return self.guide.node_rows(stats)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Means and variances of the weights at the nodes with rows, (E, Q, W) each."""
        return self.guide.moments_at(self.stats.nodes)

    def _potentials(self) -> Potential:
        """Potentials at the nodes with rows, (E, Q, W) each."""
        return self.guide.potentials_at(self.stats.nodes)

    def _move_noise(self, coupled: bool) -> None:
        cov = self.guide.group_cov(self.stats) if coupled else None
        self.guide.learn_nuisance_from(self.stats, cov, common=self.learn_nuisance)

    def _places(self, trouble: Tensor) -> tuple[tuple[int, int, int], ...]:
        """Weight, outcome and node of what is in trouble, (E, Q, W) bool."""
        node, outcome, weight = trouble.nonzero().T
        places = torch.stack([weight, outcome, self.stats.nodes[node]], 1)
        return tuple((int(k), int(q), int(v)) for k, q, v in places.tolist())


def _largest(moves: Tensor) -> float:
    return moves.max().item() if moves.numel() else 0.0
