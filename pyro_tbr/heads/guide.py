"""What every guide offers, whatever it factorises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from pyro_tbr.errors import DataError, TrainingError
from pyro_tbr.heads.absorbing import taken_up
from pyro_tbr.heads.coupling import NodeRows, Potential, by_outcome
from pyro_tbr.heads.head import Head
from pyro_tbr.heads.hyper.base import HyperFactors, by_name
from pyro_tbr.heads.likelihoods.expectations import Nuisance, as_dict
from pyro_tbr.heads.likelihoods.joint import JointResiduals
from pyro_tbr.heads.local_params import LocalParamsModule
from pyro_tbr.heads.moments import ArcInclusion, DeltaMoments, NodeMoments
from pyro_tbr.heads.priors import PriorFactor
from pyro_tbr.heads.rows import DesignRows
from pyro_tbr.heads.statistics import Statistics
from pyro_tbr.tree import Tree, descendant_sum

_SITE_ELEMENTS = 500_000  # of one block of draws; a draw goes through all components of a message
_FALL, _FALL_SHARE = 1.0, 1e-3  # of the bound in a step of sites that is not taken back
_WHERE_ROWS_ARE = ("informed_arcs", "seen")  # parts of a guide's state
_PATH_DRAWS, _PATH_SEED = 4000, 141_421  # behind the inclusion of several without another form
# What a class of guides has to say for itself; the rest follows from these.
_OWN_METHODS = ("node_moments", "delta_moments", "kl", "start", "update", "step", "sample")


class Settled(NamedTuple):
    """How an update of a guide ended.

    Attributes:
        sweeps: Rounds it took.
        moved: Largest move of a weight in the last of them, in its standard deviations.
        trouble: What did not come to rest, (weight, outcome, node) each; empty if all did.
    """

    sweeps: int
    moved: float
    trouble: tuple[tuple[int, int, int], ...] = ()


class Part(NamedTuple):
    """A guide that is one component of a mixture.

    Attributes:
        weight: Its share; those of all components sum to 1.
        guide: The guide.
        turn: From the design of the mixture to its own, (W, W) double; ``None``: the same.
    """

    weight: float
    guide: Guide
    turn: Tensor | None


class Guide(LocalParamsModule):
    """An approximate posterior of everything but the encoder; abstract.

    A guide holds factors of the hyperparameters; what it says of root weights and changes is the
    business of its class: ``node_moments``, ``delta_moments``, ``kl``, ``start``, ``update``,
    ``step`` and ``sample``. All parameters exist after construction.

    Args:
        head: A head, or a built model that has one; a guide does not own it.
        informed_nodes: (V,) bool, nodes that have rows; ``None``: all.

    Attributes:
        informed_arcs: (A,) bool, arcs with rows below them. The others keep their prior, exactly.
        factor: The prior's part of q.
        nuisance: Factors of the likelihood's own parameters by site name.
        couples_outcomes: It takes outcomes whose noise goes together.
        along_tree: Closed forms along the tree move it, in :meth:`absorb` and :meth:`step`; else
            gradients of the ELBO do.

    Raises:
        DataError: The class lacks some of these methods; the message has their names.
    """

    informed_arcs: Tensor
    along_tree = False
    couples_outcomes = False

    def __init__(self, head: Any, informed_nodes: Tensor | None = None) -> None:
        super().__init__()
        kind = type(self)
        missing = [name for name in _OWN_METHODS if getattr(kind, name) is getattr(Guide, name)]
        if missing:
            raise DataError(
                f"{kind.__name__} lacks {len(missing)} of the {len(_OWN_METHODS)} methods of a "
                f"guide: {', '.join(missing)}; define them as pyro_tbr.heads.Guide describes, or "
                "subclass MeanFieldGuide or TreeGuide, which have all"
            )
        head = head if isinstance(head, Head) else head.head
        self._head = (head,)  # in a tuple: a guide does not own its head
        if head.likelihood.correlated and not self.couples_outcomes:
            raise DataError(
                f"{kind.__name__} takes each outcome alone, and {head.likelihood.because} has "
                f"their noise go together: fit with guide='tree', or {head.likelihood.instead}"
            )
        nodes = torch.ones(head.tree.num_nodes, dtype=torch.bool)
        nodes = nodes if informed_nodes is None else informed_nodes.cpu()
        self.register_buffer("informed_arcs", informed_arcs(head.tree, nodes))
        prior = head.prior
        self.factor: PriorFactor = prior.tree_factor() if self.along_tree else prior.factor()
        self.nuisance = nn.ModuleDict(head.likelihood.factors())
        if not self.along_tree:  # those learn it from the statistics
            head.likelihood.know_nodes(self.nuisance, nodes)

    @property
    def head(self) -> Head:
        """The head this is a guide of."""
        return self._head[0]

    @property
    def hyper(self) -> nn.ModuleDict:
        """Factors of the prior's hyperparameters by site name."""
        return self.factor.hyper

    @property
    def has_gates(self) -> bool:
        """Changes have gates, so they are included or not."""
        return self.head.prior.gated

    @property
    def normal_changes(self) -> bool:
        """Changes are normal, of one width on an arc: neither gated nor of a mixture."""
        gated_or_joint = self.has_gates or self.factor.joint
        return not gated_or_joint and self.factor.law().prob.shape[-1] == 1

    @property
    def closed_form(self) -> bool:
        """A change is a point and a normal, so its quantiles have a closed form."""
        return self.factor.closed_form

    def _match_dtype(self) -> None:
        """Parameters in the head's dtype; potentials along the tree stay in double precision."""
        dtype = self.head.prior.root_loc.dtype
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)

    def nuisance_at(self, nodes: Tensor) -> HyperFactors:
        """Factors of the likelihood's own parameters as rows at some nodes (n,) see them."""
        return self.head.likelihood.at_nodes(self.nuisance, nodes)

    def nuisance_of(self, rows: DesignRows) -> Nuisance:
        """The same for rows, with what is known of each of them."""
        return {**as_dict(self.nuisance_at(rows.env_index)), **rows.terms.values}

    def site_scale(self, nodes: Tensor) -> Tensor:
        """By what precisions of rows at nodes (E,) are multiplied, (E, Q) double.

        1 / noise variance, or 1 where the likelihood is not exact.
        """
        scale = self.head.likelihood.site_scale(self.nuisance_at(nodes)).double()
        return scale.expand(len(nodes), -1)

    def hyper_kl(self) -> Tensor:
        """KL of the hyperparameters that have factors of their own to their hyperpriors."""
        nuisance = by_name(self.nuisance).values()
        return sum((factor.kl().sum() for factor in nuisance), start=self.factor.kl())

    def node_moments(self) -> NodeMoments:
        """Means and variances of the weights at every node, differentiable."""
        raise NotImplementedError

    def node_cov(self, nodes: Tensor) -> Tensor | None:
        """Covariances of the weights at some nodes (n,), (n, Q, W, W); ``None``: independent."""
        del nodes
        return None

    def node_rows(self, stats: Statistics) -> NodeRows:
        """What the rows of each node say of its weights, at the noise as it is now."""
        if stats.joint is None:
            return NodeRows.of(stats, self.site_scale(stats.nodes))
        return NodeRows.of_all(stats, self._noise_terms(stats)[0])

    def _noise_terms(self, stats: Statistics) -> tuple[Tensor, Tensor]:
        """Of outcomes that go together, see ``JointNormalLikelihood.noise_terms``."""
        assert stats.joint is not None
        likelihood = self.head.likelihood
        return likelihood.noise_terms(self.nuisance_at(stats.joint.nodes), stats.joint.seen)

    @torch.no_grad()
    def joint_cov(self, stats: Statistics) -> Tensor:
        """Covariances of the weights at the nodes with rows, (E, Q, W, W), double precision.

        Those of the rows, whose statistics are flattened, and of what is known without them.
        """
        cov = self.node_cov(stats.nodes)
        if cov is not None:
            return cov.double()
        return by_outcome(self.group_cov(stats), self.head.num_outcomes)

    @torch.no_grad()
    def group_cov(self, stats: Statistics) -> Tensor:
        """The same of all weights that are judged together, (E, G, P, P), see :class:`NodeRows`."""
        rows = self.node_rows(stats)
        shared = self.shared_errors(rows, stats.nodes)
        return rows.joint_cov(self._cavity(rows, stats.nodes), shared)

    def shared_errors(self, rows: NodeRows, nodes: Tensor) -> Tensor | None:
        """Covariances (E, G, P, P) of what is known of weights at nodes (E,) without their rows.

        ``None`` where these are taken for independent, as those of single outcomes are.
        """
        del rows, nodes
        return None

    def widen(self, stats: Statistics) -> None:
        """Takes back what its parts have heard of each other twice, at its optimum for rows.

        Of a guide whose parts do not tell each other of their uncertainty there is nothing.
        """

    def _cavity(self, rows: NodeRows, nodes: Tensor) -> Potential:
        """What is known of the weights at nodes (E,) without their rows, (E, Q, W) each."""
        mean, var = (part[nodes].double().mT for part in self.node_moments())
        return rows.cavity(mean, var, rows.given_means(mean))

    def delta_moments(self) -> DeltaMoments:
        """Inclusion probabilities and moments of the changes."""
        raise NotImplementedError

    def delta_cov(self) -> Tensor | None:
        """Covariances of the changes of an arc, (A, Q, W, W); ``None``: independent."""
        return None

    def kl(self) -> Tensor:
        """KL of q to the prior, all sites but the rows' own, differentiable."""
        raise NotImplementedError

    def start(self, root: Tensor, deltas: Tensor, *, sparse: bool = True) -> None:
        """Starts at point estimates.

        Args:
            root: Root weights, (W, Q).
            deltas: (A, W, Q).
            sparse: The deltas are sparse, so hyperparameters start from them too.
        """
        raise NotImplementedError

    def forget_start(self) -> None:
        """Called where a state that an update has left is loaded after :meth:`start`.

        What a guide keeps for its first update alone, outside its state, has no place then.
        """

    def update(
        self,
        stats: Statistics,
        *,
        sweeps: int,
        learn_hyper: bool = True,
        learn_nuisance: bool = True,
        rough: bool = False,
    ) -> Settled:
        """Moves q to its optimum given the rows' statistics, the encoder held fixed.

        Args:
            stats: Of all rows.
            sweeps: Rounds after which it goes on with care only: shorter steps.
            learn_hyper: Update the hyperparameters too.
            learn_nuisance: Update the parameters of an exact likelihood too; those of others are
                learnt from rows, see ``condition``.
            rough: Statistics will change again, so leave out what only the last update needs.

        Raises:
            TrainingError: A number is not finite.
        """
        raise NotImplementedError

    def step(
        self, stats: Statistics, *, learn_hyper: bool = True, learn_nuisance: bool = True
    ) -> None:
        """One round of :meth:`update` from where the guide stands."""
        raise NotImplementedError

    def absorb(self, rows: DesignRows, num_rows: int) -> None:
        """What an objective asks for before it takes the gradients of a step; nothing by default.

        Rows are a minibatch, or all ``num_rows``.
        """

    def refresh(self) -> None:
        """Forgets what is kept of the state for answers, after a change of it; here nothing."""

    def elbo(self, stats: Statistics) -> Tensor:
        """ELBO of all rows, from their statistics.

        For a likelihood that is not exact the statistics hold its sites at the moments they were
        taken at: there it is the ELBO itself, elsewhere an expansion of it.
        """
        return self.expected_log_lik(stats) - self.kl()

    @torch.no_grad()
    def weight_evidence(self, stats: Statistics) -> Tensor:
        """Log evidence for each weight's values over all of them zero, (W,), double precision.

        Here what the rows lose at the means of the others.
        """
        flat, mean = stats.flattened(), self.node_moments().mean.double()
        none = torch.zeros_like(mean)
        scale, best = self.site_scale(stats.nodes), flat.residual(mean, none)
        without = []
        for weight in range(self.head.num_weights):
            other = mean.clone()
            other[:, weight] = 0
            without.append((0.5 * scale * (flat.residual(other, none) - best)).sum())
        return torch.stack(without)

    @torch.no_grad()
    def evidence_beyond(self, stats: Statistics, weight: int, others: Sequence[int]) -> float:
        """The same for one weight over the best multiples of others', see ``absorbing``."""
        flat, mean = stats.flattened(), self.node_moments().mean.double()
        none, scale = torch.zeros_like(mean), self.site_scale(stats.nodes)
        here, gram = mean[stats.nodes].mT, flat.gram.expand(*flat.cross.shape, -1)
        rest = here.clone()
        rest[..., weight] = 0
        linear = flat.cross[..., weight] - (gram[..., weight, :] * rest).sum(-1)
        parts = scale * linear, scale * gram[..., weight, weight]
        echo = mean.clone()
        echo[stats.nodes, weight] = taken_up(*parts, here[..., list(others)])
        lost = flat.residual(echo, none) - flat.residual(mean, none)
        return float((0.5 * scale * lost).sum())

    def expected_log_lik(self, stats: Statistics, moments: NodeMoments | None = None) -> Tensor:
        """E[log likelihood] of all rows, from their statistics; at the guide's own moments."""
        return self._log_lik(stats, self.node_moments() if moments is None else moments)

    def _log_lik(
        self, stats: Statistics, moments: NodeMoments, cov: Tensor | None = None
    ) -> Tensor:
        """The same; ``cov`` (E, Q, W, W) at the nodes with rows in place of the variances."""
        stats = stats.flattened()
        if stats.joint is not None:
            precision, log_norm = self._noise_terms(stats)
            rows = NodeRows.of_all(stats, precision)
            mean, var = (part[stats.nodes].double().mT for part in moments)
            spread = torch.diag_embed(var.reshape(rows.linear.shape)) if cov is None else cov
            misfit = rows.misfit(mean, spread).sum()
            return stats.constant.sum() - 0.5 * misfit + (stats.joint.count * log_norm).sum()
        residual = stats.residual(*moments, cov)
        each = stats.constant - 0.5 * self.site_scale(stats.nodes) * residual
        log_norm = self.head.likelihood.site_norm(self.nuisance_at(stats.nodes)).double()
        return (each + stats.count * log_norm).sum()

    def learn_nuisance_from(
        self, stats: Statistics, cov: Tensor | None = None, *, common: bool = True
    ) -> None:
        """Moves the parameters of an exact likelihood to their optimum, weights held fixed.

        Statistics are flattened; ``cov`` (E, G, P, P) of the weights that are judged together at
        the nodes with rows takes the place of the guide's own variances. Only those of single
        nodes, unless ``common``.
        """
        likelihood, moments = self.head.likelihood, self.node_moments()
        with torch.no_grad():
            own = None if cov is None else by_outcome(cov, self.head.num_outcomes)
            square = stats.residual(*moments, own)
            if stats.joint is None:
                learn = likelihood.learn_from_residuals
                learn(self.nuisance, square, stats.count, stats.nodes, common=common)
                return
            mean, var = (part[stats.nodes].double().mT for part in moments)
            spread = torch.diag_embed(var.flatten(1)) if cov is None else cov.squeeze(1)
            outer = stats.joint.residuals(stats.nodes, mean, spread)
            found = JointResiduals(square, stats.count, stats.nodes, stats.joint, outer)
            likelihood.learn_from_joint(self.nuisance, found, moments, common=common)

    def sample(self, num_samples: int, generator: Generator) -> dict[str, Tensor]:
        """Joint draws by site name, draws first; needs no Pyro and no global generator."""
        raise NotImplementedError

    def sample_arcs(self, site: str, num_samples: int, generator: Generator) -> Iterator[Tensor]:
        """Draws of ``gates`` or ``deltas`` in blocks (s, A, W, Q), together ``num_samples``."""
        for block in self._blocks(num_samples):
            yield self.sample(len(block), generator)[site]

    def sample_some(
        self, site: str, arcs: Tensor, trees: Tensor, num_samples: int, generator: Generator
    ) -> Iterator[Tensor]:
        """The same of some arcs (a,), in rising order, and trees, in blocks (s, a, n).

        A tree is a weight and outcome: number ``weight * Q + outcome``, (n,). Draws are those that
        :meth:`sample_arcs` gives by a generator in that state.
        """
        for block in self.sample_arcs(site, num_samples, generator):
            yield block.flatten(2)[:, arcs][:, :, trees]

    def _blocks(self, num_samples: int, elements: int = _SITE_ELEMENTS) -> tuple[Tensor, ...]:
        each = max(1, self.num_arcs) * self.head.prior.root_loc.numel()
        return torch.arange(num_samples).split(max(1, elements // each))

    @property
    def num_arcs(self) -> int:
        """A."""
        return len(self.informed_arcs)

    @torch.no_grad()
    def change_var(self, relative_length: Tensor) -> Tensor:
        """Variance of a change along new arcs, see :meth:`PriorFactor.new_var`."""
        return self.factor.new_var(relative_length)

    def change_cov(self, relative_length: Tensor) -> Tensor:
        """The same with how weights go together, (A', Q, W, W); here they do not."""
        return torch.diag_embed(self.change_var(relative_length).mT)

    def parts(self) -> list[Part]:
        """The guides that it is a mixture of; here itself."""
        return [Part(1.0, self, None)]

    def in_design(self, weights: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """Draws (S, *B, W, Q) of the prior, given draws of :meth:`sample`, as the design's."""
        del draws
        return weights

    def log_odds(self) -> Tensor:
        """Posterior log odds of inclusion, (A, W, Q) double, finite; NaN without gates."""
        inclusion = self.delta_moments().inclusion.double()
        return logit(inclusion) if self.has_gates else torch.full_like(inclusion, torch.nan)

    def path_inclusion(self, arcs: Tensor) -> Tensor:
        """Probability that some of these arcs changed, (W, Q); here a share of draws."""
        generator = Generator().manual_seed(_PATH_SEED)
        blocks = self.sample_arcs("gates", _PATH_DRAWS, generator)
        return torch.cat([block[:, arcs].any(1) for block in blocks]).double().mean(0)

    @torch.no_grad()
    def arc_inclusion(self, outcomes: Tensor, exists: Tensor) -> ArcInclusion:
        """Probabilities that some of these outcomes (n,) changed; here shares of draws.

        Of several weights together those count that exist, (W,) bool.
        """
        generator = Generator().manual_seed(_PATH_SEED)
        total, num_latents = [], self.head.num_latents
        for block in self.sample_arcs("gates", _PATH_DRAWS, generator):
            some = (block[..., outcomes] > 0).any(-1)  # (s, A, W)
            real = some & exists
            each = [some, real[..., :num_latents].any(-1, True), real.any(-1, True)]
            total.append(torch.cat(each, -1).double().sum(0))
        found = torch.stack(total).sum(0) / _PATH_DRAWS
        return ArcInclusion(found[:, :-2], found[:, -2], found[:, -1])

    def _arc_inclusion_apart(self, none: Tensor, outcomes: Tensor, exists: Tensor) -> ArcInclusion:
        """The same of weights that are independent.

        From the probability that none of the outcomes changed where there are rows, (A, W).
        """
        known = self.informed_arcs.reshape(-1, 1)
        none = torch.where(known, none.double(), self.factor.prior_none(outcomes).double())
        real = torch.where(exists, none, 1.0)
        slopes = 1 - real[:, : self.head.num_latents].prod(-1)
        return ArcInclusion(1 - none, slopes, 1 - real.prod(-1))

    def shrinkage(self) -> Tensor:
        """Posterior mean of the share of a change that its prior takes away, (A, W, Q).

        Raises:
            DataError: The prior has none, or the guide does not hold its scales along the tree.
        """
        raise DataError("shrinkage() needs the scales along the tree: fit with guide='tree'")

    def with_prior_changes(
        self, draws: dict[str, Tensor], generator: Generator
    ) -> dict[str, Tensor]:
        """The draws, with changes on arcs without rows below drawn from the prior.

        There the spread of the hyperparameters is much of the uncertainty.
        """
        if bool(self.informed_arcs.all()):
            return draws
        prior = self.head.prior.draw_changes(draws, generator)
        known = self.informed_arcs.reshape(-1, 1, 1)
        return draws | {name: torch.where(known, draws[name], new) for name, new in prior.items()}

    def sample_hyper(self, num_samples: int, generator: Generator) -> dict[str, Tensor]:
        """Draws of the hyperparameters that have factors of their own, nuisance included."""
        own = self.factor.own()
        draws = {name: factor.sample(num_samples, generator) for name, factor in own.items()}
        return draws | self.head.likelihood.draw_nuisance(self.nuisance, num_samples, generator)

    def settings(self) -> dict[str, Any]:
        """Arguments of the constructor but for head and nodes."""
        return {}

    def knowing(self, informed_nodes: Tensor) -> Guide:
        """A copy in the same state that knows which nodes have rows now, (V,) bool."""
        new = type(self)(self.head, informed_nodes, **self.settings())
        new.to(self.informed_arcs.device)
        new.copy_state(self)
        return new

    def state_copy(self) -> dict[str, Tensor]:
        """A copy of the state, to be gone back to by ``load_state_dict``."""
        return {name: value.clone() for name, value in self.state_dict().items()}

    def copy_state(self, other: Guide) -> None:
        """Goes into the state of another guide of its class, but for where rows are."""
        own = {name for name in self.state_dict() if name.split(".")[-1] in _WHERE_ROWS_ARE}
        state = other.state_copy() | {name: self.state_dict()[name] for name in own}
        self.load_state_dict(state, assign=True)  # dtypes included

    def check_finite(self, where: str) -> None:
        """Raises TrainingError where a number of the state is not finite."""
        bad = [name for name, value in self.state_dict().items() if not torch.isfinite(value).all()]
        if bad:
            raise TrainingError(
                f"{where}: not finite in the guide's {', '.join(bad[:5])}. Look for outcomes or "
                "features of extreme size, or for outcomes that the features determine exactly"
            )


def allowed_fall(bound: float) -> float:
    """By how much a step may lower a bound; expectation propagation climbs another function."""
    return _FALL + _FALL_SHARE * abs(bound)


def everywhere(head: Head) -> tuple[tuple[int, int, int], ...]:
    """Every weight and outcome, at the root: what is in trouble where all are together."""
    return tuple((k, q, 0) for k in range(head.num_weights) for q in range(head.num_outcomes))


def informed_arcs(tree: Tree, informed_nodes: Tensor) -> Tensor:
    """(A,) bool: arcs whose child, or a node below it, is informed (V,)."""
    below = descendant_sum(tree, informed_nodes.double()[:, None])
    return below[1:, 0] > 0


def logit(prob: Tensor) -> Tensor:
    """Log odds in double precision, finite also at 0 and 1."""
    prob = prob.double()
    return prob.clamp(min=1e-300).log() - (1 - prob).clamp(min=1e-16).log()
