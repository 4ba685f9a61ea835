"""A prior's part of q: factors of its hyperparameters, and changes jointly along each tree.

What the rows say of a weight enters as Gaussian potentials at the nodes (``Evidence``). The tree
sees one law of changes: what q of the hyperparameters expects of it. Probabilities enter by their
mean; the best factorised q has the odds of the expected logarithms, which are lower, and against
enumeration with the rate integrated out inclusion probabilities by the mean are nearer.
"""

from typing import Any, cast

import pyro.distributions as dist
import torch
from torch import Generator, Tensor, nn

from pyro_tbr.errors import DataError
from pyro_tbr.heads.hyper.base import HyperFactor, by_name
from pyro_tbr.heads.hyper.scales import ScaleFactor
from pyro_tbr.heads.priors.classes import (
    ChangeSums,
    ExpectedLaw,
    expected_law,
    expected_log_density,
)
from pyro_tbr.heads.priors.emitting import emit_sites
from pyro_tbr.heads.priors.evidence import Evidence
from pyro_tbr.tree import Tree
from pyro_tbr.tree.messages import (
    ArcLaw,
    InsideMessages,
    TreePosterior,
    sample,
)

_NUM_POINTS = 64  # of all hyperparameters together, for expectations without a closed form
_CLIMB_STEPS, _CLIMB_RATE = 15, 0.1  # of the update of hyperparameters without a closed form


class PriorFactor(nn.Module):
    """Hyperparameters with factors of their own, and what follows for the changes.

    A prior whose expectations have a closed form overrides :meth:`law` and :meth:`learn_changes`;
    one whose hyperparameters are held jointly with the weights, as the horseshoe's, overrides
    :meth:`passes` and what reads their result.

    Attributes:
        prior: The built :class:`ArcPrior`, whose file imports this one.
        hyper: Factors of the hyperparameters by site name.
        joint: Sites of hyperparameters held jointly with the weights; what their factors say is
            matched to that, for reports.
        rough_components: Cap on the components of a message while sweeps still move far.
        trees_apart: Draws of a weight's and outcome's tree do not depend on those of others.
        trees_joint: Messages of several trees go together, so :meth:`passes` takes all weights.
    """

    joint: frozenset[str] = frozenset()
    rough_components: int = 4
    trees_apart: bool = True
    trees_joint: bool = False

    def __init__(self, prior: Any) -> None:
        super().__init__()
        self._prior = (prior,)  # in a tuple: the head owns the prior, not we
        self.hyper = nn.ModuleDict({h.name: h.factor() for h in prior.hyperparameters()})

    @property
    def prior(self) -> Any:
        """See above."""
        return self._prior[0]

    def scale(self, name: str) -> ScaleFactor:
        """The factor of a scale."""
        return cast(ScaleFactor, self.hyper[name])

    def own(self) -> dict[str, HyperFactor]:
        """Factors of the hyperparameters that are not held jointly with the weights."""
        return {name: f for name, f in by_name(self.hyper).items() if name not in self.joint}

    @property
    def closed_form(self) -> bool:
        """A change is a point and a normal, or one normal."""
        prior = self.prior
        return not prior.has_spike and (prior.gated or self.law().prob.shape[-1] == 1)

    def kl(self) -> Tensor:
        """KL of the hyperparameters with factors of their own to their hyperpriors."""
        return sum((f.kl().sum() for f in self.own().values()), start=torch.zeros(()))

    def law(self, relative_length: Tensor | None = None) -> ExpectedLaw:
        """What q of the hyperparameters expects of the law of changes, differentiable.

        Here an average over points that cover q of all hyperparameters evenly. Arcs are those of
        :meth:`ArcPrior.classes`.
        """
        learnt = [name for name, factor in self.own().items() if factor.learnt]
        standard = torch.zeros(1, 1, dtype=torch.float64)
        if learnt:
            sobol = torch.quasirandom.SobolEngine(len(learnt)).draw(_NUM_POINTS).double()
            standard = torch.special.ndtri(sobol + 0.5 / _NUM_POINTS)
        values = {}
        for name, factor in self.own().items():
            column = standard[:, learnt.index(name)] if name in learnt else 0 * standard[:, 0]
            column = column.reshape(-1, *[1] * len(factor.hyper.shape))
            values[name] = factor.at(column.to(self.prior.root_loc))
        return expected_law(self.prior.classes(values, relative_length))

    def prior_inclusion(self) -> Tensor:
        """Prior mean of the inclusion probability, (A, W, Q); 1 where changes have no gates."""
        if not self.prior.gated:
            return torch.ones(self.prior.delta_shape, dtype=torch.float64)
        return self.law().prob[..., 1:].sum(-1).double().expand(self.prior.delta_shape)

    def silent_square(self) -> Tensor:
        """Mean squared change by class where there are no rows, (A, W, Q, J) double."""
        square = self.law().square.double()
        return square.expand(*self.prior.delta_shape, square.shape[-1])

    def new_var(self, relative_length: Tensor) -> Tensor:
        """Variance of a change along new arcs, (A', W, Q) double, from lengths over the mean's."""
        square = self.law(relative_length).square.double().sum(-1)
        return square.expand(len(relative_length), *self.prior.delta_shape[1:])

    def root_law(self, weights: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the root weights as the passes take them, (w, Q) each."""
        scale = self.scale("root_scale").mean_power(-2.0).rsqrt().expand(self.prior.delta_shape[1:])
        loc, scale = (p.detach().double()[weights] for p in (self.prior.root_loc, scale))
        return loc, scale

    def root_gap(self) -> Tensor:
        """KL that the root's law leaves out, as its scale has a factor of its own, (W,)."""
        return (self.scale("root_scale").mean_log() - self.root_law()[1].log()).sum(-1)

    def arc_law(self, weights: slice = slice(None)) -> ArcLaw:
        """The law of changes as the passes take it, at q's centre, for some weights."""
        law = self.law()
        parts = torch.broadcast_tensors(law.prob, law.mean, law.var)
        shape = self.prior.delta_shape[1:]
        prob, mean, var = (
            part.detach().double().movedim(-4, -2).expand(*shape, *part.shape[:1], -1)[weights]
            for part in parts
        )
        return ArcLaw.of(prob, mean, var, gated=self.prior.gated)

    def inside(self, data: Evidence, law: ArcLaw | None = None) -> InsideMessages:
        """Inside messages, under q's own law of changes where no other is given."""
        law = self.arc_law(data.weights) if law is None else law
        return data.inside(law, *self.root_law(data.weights))

    def log_evidence(self, data: Evidence, law: ArcLaw | None = None) -> Tensor:
        """Log evidence of each weight's and outcome's tree, (w, Q), by q's own law or another."""
        law = self.arc_law(data.weights) if law is None else law
        return data.log_evidence(law, *self.root_law(data.weights))

    @torch.no_grad()
    def passes(self, data: Evidence, refit: bool = False) -> TreePosterior:
        """Both passes; with ``refit`` joint hyperparameters are moved too."""
        del refit
        return data.moments(self.arc_law(data.weights), *self.root_law(data.weights))

    @torch.no_grad()
    def start_from(self, root: Tensor, deltas: Tensor, informed: Tensor) -> None:
        """Starts at what point estimates say: root weights (W, Q), deltas (A, W, Q)."""
        law, change = self.law(), deltas.unsqueeze(-1)
        normal = dist.Normal(law.mean, law.var.clamp(min=1e-12).sqrt())
        share = (law.log_prob + normal.log_prob(change)).softmax(-1)
        share = torch.where(informed.reshape(-1, 1, 1, 1), share, 0.0)
        self.learn_root((root - self.prior.root_loc).square())
        self.learn_changes(ChangeSums(share, share * change, share * change * change))

    @torch.no_grad()
    def learn(self, now: TreePosterior, informed: Tensor) -> None:
        """Moves the hyperparameters to their optimum given the passes of all weights."""
        self.learn_root(root_square(now, self.prior.root_loc))
        parts = (now.class_prob, now.class_mean, now.class_second)
        mask = informed.reshape(-1, 1, 1, 1)
        sums = (torch.where(mask, part.movedim(-2, 0), 0.0) for part in parts)
        self.learn_changes(ChangeSums(*sums))

    def learn_root(self, square: Tensor) -> None:
        """Moves the root's scale given expected squared deviations from its mean, (W, Q)."""
        self.update_scale("root_scale", square, torch.ones_like(square))

    def update_scale(
        self, name: str, square: Tensor, count: Tensor, size: Tensor | float = 0.0
    ) -> None:
        """Moves the factor of a scale; as for ``ScaleFactor.update``, (W, Q) each."""
        factor = self.scale(name)
        size = torch.as_tensor(size).expand_as(square)
        if factor.hyper.shape[-1] == 1:
            square, count, size = (p.sum(-1, keepdim=True) for p in (square, count, size))
        factor.update(square, count, size)

    @torch.enable_grad()
    def learn_changes(self, sums: ChangeSums) -> None:
        """Moves the hyperparameters of the changes given expected changes, by climbing the ELBO."""
        factors = [f for name, f in by_name(self.hyper).items() if name != "root_scale"]
        params = [p for factor in factors for p in factor.parameters()]
        if not params:
            return
        # Small steps: a line search may step to where a scale is zero in this precision.
        optimizer = torch.optim.Adam(params, lr=_CLIMB_RATE)
        sums = ChangeSums(*(part.detach().to(params[0]) for part in sums))
        for step in range(_CLIMB_STEPS):
            optimizer.param_groups[0]["lr"] = _CLIMB_RATE * (1 - step / _CLIMB_STEPS)
            loss = -expected_log_density(self.law(), sums).sum()
            loss = loss + sum(factor.kl().sum() for factor in factors)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def second_start(self, now: TreePosterior, informed: Tensor) -> bool:
        """Goes to another start of the hyperparameters that is worth trying, if there is one."""
        del now, informed
        return False

    def shrinkage(self, now: TreePosterior) -> Tensor:
        """Posterior mean of the share of a change that its prior takes away, (A, W, Q).

        Raises:
            DataError: The prior has no scale for every change.
        """
        raise DataError(
            f"shrinkage() is a horseshoe's, {type(self.prior).__name__} has none: use pips() or "
            "deltas()"
        )

    def gap(self, now: TreePosterior, informed: Tensor) -> Tensor:
        """KL of root, changes and joint hyperparameters less what the passes have of it, (W,)."""
        law = self.law()
        each = law.prob.clamp(min=torch.finfo(law.prob.dtype).tiny).log() - law.log_prob
        share = torch.where(informed.reshape(-1, 1, 1, 1), now.class_prob.movedim(-2, 0), 0.0)
        return self.root_gap() + (share * (each - law.excess)).sum((0, 2, 3))

    def exchange(self, now: TreePosterior, informed: Tensor, step: float) -> Tensor:
        """Lets the trees of a weight's outcomes tell each other what passes have found.

        Args:
            now: The passes.
            informed: Arcs with rows below, (A,) bool.
            step: Share of the way from what they have told before.

        Returns:
            The largest change of an inclusion probability by the whole way, (Q, W); 0 where
            outcomes have nothing to tell.
        """
        del informed, step
        return now.log_evidence.new_zeros(())

    def places(self) -> list[list[int]]:
        """Weights in the turns that they are moved in, those of a turn side by side."""
        return [[weight] for weight in range(self.prior.num_weights)]

    def together(self, inclusion: Tensor) -> Tensor:
        """Expected log probability of gates that no gate's own term in the law has, (A, W).

        Args:
            inclusion: Probabilities of open gates, independent, (A, W, Q).
        """
        return torch.zeros_like(inclusion[..., 0])

    def none_open(self, now: TreePosterior, outcomes: Tensor) -> Tensor:
        """Probability that none of some outcomes (n,) changed, on arcs with rows, (A, W)."""
        assert now.pips is not None  # the caller has asked for gates
        return (1 - now.pips[:, outcomes]).prod(1).T

    def prior_none(self, outcomes: Tensor) -> Tensor:
        """Prior probability that none of some outcomes (n,) changed, (A, W)."""
        return (1 - self.prior_inclusion()[..., outcomes]).prod(-1)

    @torch.no_grad()
    def draw(self, data: Evidence, num_samples: int, generator: Generator) -> dict[str, Tensor]:
        """Joint draws by site name, of joint hyperparameters too; others are at q's centre."""
        return self.draw_from(self.inside(data), data.tree, num_samples, generator)

    def draw_from(
        self, messages: InsideMessages, tree: Tree, num_samples: int, generator: Generator
    ) -> dict[str, Tensor]:
        """The same from messages that were sent before."""
        root, classes, deltas = sample(tree, messages, num_samples, generator)
        dtype = self.prior.root_loc.dtype
        draws = {"root_weights": root.to(dtype), "deltas": deltas.permute(0, 3, 1, 2).to(dtype)}
        if self.prior.gated:
            draws["gates"] = (classes > 0).permute(0, 3, 1, 2).to(dtype)
        return draws

    @torch.no_grad()
    def log_prob(self, data: Evidence, now: TreePosterior, draws: dict[str, Tensor]) -> Tensor:
        """Log q of joint draws (S,) of root weights, and gates and changes where there are rows.

        Relative to a point mass at zero for gates that are closed, if the spike has no width.
        """
        return self.log_density(data, now.log_evidence.sum(), draws, self.law())

    def log_density(
        self, data: Evidence, log_evidence: Tensor, draws: dict[str, Tensor], law: ExpectedLaw
    ) -> Tensor:
        """The same of draws under a law of changes, given the log evidence of all trees."""
        loc, scale = self.root_law()
        root, deltas = draws["root_weights"].double(), draws["deltas"].double()
        log_q = data.log_potential(root, deltas) - log_evidence
        log_q = log_q + dist.Normal(loc, scale).log_prob(root).sum((1, 2))
        law = ExpectedLaw(*(part.detach().double() for part in law))
        normal = dist.Normal(law.mean, torch.where(law.var > 0, law.var, 1.0).sqrt())
        each = torch.where(law.var > 0, normal.log_prob(deltas.unsqueeze(-1)), 0.0)
        each = each + law.prob.clamp(min=1e-300).log()
        if self.prior.gated:
            open_ = each[..., 1:].logsumexp(-1)
            total = torch.where(draws["gates"] > 0, open_, each[..., 0])
        else:
            total = each.logsumexp(-1)
        informed = data.informed.reshape(-1, 1, 1)
        return log_q + torch.where(informed, total, 0.0).sum((1, 2, 3))

    def draw_one(
        self, data: Evidence, now: TreePosterior, generator: Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """One joint draw as of :meth:`draw`, and its log q."""
        draws = self.draw(data, 1, generator)
        return draws, self.log_prob(data, now, draws)[0]

    def emit(self, data: Evidence, now: TreePosterior, generator: Generator) -> None:
        """Pyro sites: one joint draw along the tree, its log density on ``root_weights``."""
        values = {name: factor() for name, factor in self.hyper.items()}
        draws, density = self.draw_one(data, now, generator)
        emit_sites(self.prior, values, draws, density, data.informed)


def root_square(now: TreePosterior, root_loc: Tensor) -> Tensor:
    """Expected squared deviation of the root weights from their prior mean, (W, Q)."""
    return now.node_var[..., 0] + (now.node_mean[..., 0] - root_loc).square()
