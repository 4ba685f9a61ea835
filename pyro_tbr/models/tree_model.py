"""The model: what is believed about outcomes in environments on a tree."""

from __future__ import annotations

import copy
from collections.abc import Collection, Hashable, Mapping, Sequence
from numbers import Integral
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_tbr.data import Features
from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.heads.head import Head
from pyro_tbr.heads.likelihoods import LIKELIHOODS, Likelihood, MixedLikelihood
from pyro_tbr.heads.local_params import LocalParamsModule
from pyro_tbr.heads.priors import ArcPrior, SpikeSlabPrior
from pyro_tbr.heads.rows import RowTerms
from pyro_tbr.models.basis import BASES, LatentBasis, basis_of
from pyro_tbr.models.encoders import (
    ENCODERS,
    Encoder,
    IdentityEncoder,
    LatentUnits,
)
from pyro_tbr.models.module_encoder import ModuleEncoder
from pyro_tbr.models.parts import check_choosable, check_known, likelihood_of
from pyro_tbr.tree import Tree
from pyro_tbr.tree.readers.naming import listed

INTERCEPT = "intercept"  # the name of its weights
_OF_A_POSTERIOR = ("fit", "predict", "pips", "deltas", "encode", "score", "summary", "save")


class TreeModel(LocalParamsModule):
    r"""Outcomes whose dependence on shared latents changes sparsely along the arcs of a tree.

    .. math::
        z = \mathrm{encoder}(x), \quad w_v = w_{\mathrm{root}} + \sum_{a \in \mathrm{path}(v)}
        \delta_a, \quad y \sim \mathrm{likelihood}(z^\top w_{\mathrm{env}})

    An encoder and a :class:`~pyro_tbr.heads.Head`. A Pyro model: ``model(x, env_index, y=None)``
    has the sites ``root_scale``, ``root_weights``, those of the prior (``inclusion_rate``,
    ``sharing``, ``slab_scale``, ``gates``, ``slab``, ``deltas``; ``global_scale``,
    ``local_scale``), ``noise_scale``, ``z`` and ``y``. It believes in whatever units its ``y`` has;
    :func:`~pyro_tbr.fit` gives it standardised outcomes. Pyro's HMC, NUTS and autoguides work with
    :class:`HorseshoePrior` and :class:`GaussianPrior`; the gates of :class:`SpikeSlabPrior` are 0
    or 1, which they cannot move: that is what ``fit`` and ``sample_posterior`` are for.

    With a ``basis`` outcomes are curves of the latents: each latent has several functions of its
    own, see :class:`~pyro_tbr.models.basis.LatentBasis`, whose weights change together along an
    arc or not at all.

    Args:
        tree: The environments.
        latent_dim: K; ``None``: :func:`~pyro_tbr.fit` chooses it, see
            :func:`~pyro_tbr.choose_latent_dim`.
        encoder: ``"linear"``, ``"mlp"``, ``"identity"``, or a torch module from (N, D) to (N, K).
        prior: Prior on the arcs' changes; default :class:`SpikeSlabPrior` with all learnt.
        likelihood: ``"gaussian"``, ``"student_t"``, ``"bernoulli"``, ``"binomial"``, ``"poisson"``,
            ``"negative_binomial"``, a likelihood object, or a dict of one for each outcome by name.
        intercept: One more latent that is always 1, with sparse deltas of its own.
        num_features: D; where absent, :meth:`build` or ``fit`` sets it.
        num_outcomes: Q; likewise.
        basis: Functions of each latent that outcomes are linear in: ``"spline"``,
            ``"polynomial"``, a :class:`LatentBasis` such as ``SplineBasis(5)`` or one of your own;
            ``None``: the latent itself. Latents that are learnt are found by their slopes, so
            effects that are no line at all, such as a square around zero, need known latents.

    Attributes:
        head: Weights on the tree given a design, once built.
        encoder: From features to latents, once built.
        basis: The built basis; ``None`` without one.

    Source:
        Tree-based regularization: arXiv 2405.20482.
    """

    def __init__(
        self,
        tree: Tree,
        latent_dim: int | None,
        encoder: str | nn.Module = "mlp",
        prior: ArcPrior | None = None,
        likelihood: str | Likelihood | Mapping[Hashable, str | Likelihood] = "gaussian",
        intercept: bool = True,
        num_features: int | None = None,
        num_outcomes: int | None = None,
        basis: str | LatentBasis | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(tree, Tree):
            raise DataError(
                f"tree must be a pyro_tbr.Tree, got {type(tree).__name__}: make one by "
                "Tree.from_parents, from_networkx, from_newick, from_taxonomy or from_linkage"
            )
        whole = isinstance(latent_dim, Integral) and not isinstance(latent_dim, bool)
        if latent_dim is not None and not (whole and latent_dim >= 1):
            raise DataError(
                f"latent_dim={latent_dim!r} must be a whole number, 1 or more, or None to have it "
                "chosen"
            )
        latent_dim = None if latent_dim is None else int(latent_dim)
        self.tree, self._latent_dim, self.intercept = tree, latent_dim, bool(intercept)
        module = "a torch module from (N, D) to (N, latent_dim)"
        check_known(encoder, ENCODERS, nn.Module, "encoder", module)
        likelihoods = "a likelihood such as GaussianLikelihood(scale=0.3)"
        if isinstance(likelihood, Mapping):
            for column, part in likelihood.items():
                name = f"likelihood[{column!r}]"
                check_known(part, LIKELIHOODS, Likelihood, name, likelihoods)
            likelihood = MixedLikelihood({c: likelihood_of(part) for c, part in likelihood.items()})
        check_known(likelihood, LIKELIHOODS, Likelihood, "likelihood", likelihoods)
        prior = SpikeSlabPrior() if prior is None else prior
        priors = "a prior: SpikeSlabPrior(), HorseshoePrior() or GaussianPrior()"
        check_known(prior, {}, ArcPrior, "prior", priors)
        if basis is not None:
            check_known(basis, BASES, LatentBasis, "basis", "a basis such as SplineBasis(5)")
        if latent_dim is None:
            check_choosable(encoder, num_features, num_outcomes)
        # In a tuple: descriptions are no part of what is trained, moved or saved.
        self._specs = (encoder, prior, likelihood)
        self._basis_spec = (basis,)
        self.basis: LatentBasis | None = None
        self.num_features: int | None = None
        self.num_outcomes: int | None = None
        self._feature_names: tuple[str, ...] = ()  # where they name the latents
        if num_features is not None and num_outcomes is not None:
            self.build(num_features, num_outcomes)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if name not in _OF_A_POSTERIOR:
                raise
            raise AttributeError(
                f"a TreeModel has no {name!r}: posterior = fit(model, x, y, env) fits it, and "
                "what came out is asked of the posterior"
            ) from error

    @property
    def latent_dim(self) -> int:
        """K.

        Raises:
            DataError: It has not been chosen yet.
        """
        if self._latent_dim is None:
            raise DataError(
                "latent_dim=None is not chosen yet: fit(model, ...) chooses it and its posterior's "
                "model has it; or give the number that choose_latent_dim(model, ...).best says"
            )
        return self._latent_dim

    @property
    def chooses_latent_dim(self) -> bool:
        """K is still to be chosen."""
        return self._latent_dim is None

    def with_latent_dim(self, latent_dim: int) -> TreeModel:
        """The same model with another K, not built yet."""
        return TreeModel(self.tree, latent_dim, *self._specs, self.intercept, basis=self.basis_spec)

    def with_tree(self, tree: Tree, prior: ArcPrior) -> TreeModel:
        """The same model on another tree with a prior for it, not built yet."""
        encoder, _, likelihood = self._specs
        return TreeModel(
            tree, self._latent_dim, encoder, prior, likelihood, self.intercept,
            basis=self.basis_spec,
        )  # fmt: skip

    def without_basis(self) -> TreeModel:
        """The same model of outcomes that are linear in the latents, not built yet."""
        return TreeModel(self.tree, self._latent_dim, *self._specs, self.intercept)

    def without_small_changes(self) -> TreeModel:
        """A copy of this built model whose prior has none; itself if it learns no width of them."""
        encoder, prior, likelihood = self._specs
        sharp = prior.without_learnt_spike()
        if sharp is prior:
            return self
        other = copy.deepcopy(self)
        other._specs = (encoder, sharp, likelihood)
        other.head = Head(self.tree, other.prior.without_learnt_spike(), other.likelihood)
        other.num_rows = self.num_rows
        return other

    @property
    def encoder_spec(self) -> str | nn.Module:
        """The encoder as it was given."""
        return self._specs[0]

    @property
    def prior_spec(self) -> ArcPrior:
        """The prior as it was given."""
        return self._specs[1]

    @property
    def likelihood_spec(self) -> str | Likelihood:
        """The likelihood as it was given."""
        return self._specs[2]

    @property
    def basis_spec(self) -> str | LatentBasis | None:
        """The basis as it was given."""
        return self._basis_spec[0]

    @property
    def num_curves(self) -> int:
        """Functions of each latent beside itself, B - 1."""
        basis = basis_of(self.basis_spec)
        return 0 if basis is None else basis.num_curves

    @property
    def num_weights(self) -> int:
        """W: latents, their curves, and the intercept where there is one."""
        return self.latent_dim * (1 + self.num_curves) + self.intercept

    @property
    def latent_of(self) -> tuple[int, ...] | None:
        """Of which latent each weight is, the intercept's number K; ``None`` without a basis."""
        if not self.num_curves:
            return None
        latents = range(self.latent_dim)
        curves = [k for k in latents for _ in range(self.num_curves)]
        return (*latents, *curves, *([self.latent_dim] if self.intercept else []))

    @property
    def weight_names(self) -> tuple[str, ...]:
        """``z0``, ``z1``, ..., then ``intercept`` where there is one.

        Latents that are the features bear their names, where all of these are text and none is
        ``"intercept"``. Curves of a basis are between them, ``z0.curve1``, ...
        """
        latents = self._feature_names or tuple(f"z{k}" for k in range(self.latent_dim))
        numbers = range(1, self.num_curves + 1)
        curves = tuple(f"{latent}.curve{number}" for latent in latents for number in numbers)
        return (*latents, *curves, *([INTERCEPT] if self.intercept else []))

    @property
    def prior(self) -> ArcPrior:
        """The built prior."""
        return self.head.prior

    @property
    def likelihood(self) -> Likelihood:
        """The built likelihood, or, before, an unbuilt one of its kind."""
        if self.num_features is not None:
            return self.head.likelihood
        return likelihood_of(self.likelihood_spec)

    @property
    def num_rows(self) -> int | None:
        """Rows in the whole data set, for the scale of a minibatch; ``None``: the rows given."""
        return self.head.num_rows

    @num_rows.setter
    def num_rows(self, num_rows: int | None) -> None:
        self.head.num_rows = num_rows

    def build(
        self,
        num_features: int,
        num_outcomes: int,
        *,
        outcome_scale: Tensor | None = None,
        latent_units: LatentUnits | None = None,
        root_loc: Tensor | None = None,
        standard_error: float = 0.1,
        outcome_names: Sequence[Hashable] | None = None,
        known: Collection[str] = (),
        feature_names: Sequence[Hashable] | None = None,
    ) -> TreeModel:
        """Makes every parameter and buffer; after that nothing is lazy.

        ``num_features`` is D, ``num_outcomes`` Q, ``latent_units`` are of latents that are the
        features, whose names ``feature_names`` are, ``outcome_names`` and ``known`` as of
        :meth:`Likelihood.build`; for the others see :meth:`ArcPrior.build`. Returns this model.
        """
        likelihood = likelihood_of(self.likelihood_spec).build(
            num_outcomes, outcome_scale=outcome_scale, num_nodes=self.tree.num_nodes,
            names=outcome_names, known=known, num_latents=self.latent_dim,
            latent_scale=None if latent_units is None else latent_units.scale,
        )  # fmt: skip
        latent_dim, spec = self.latent_dim, self.encoder_spec  # refused where it is not chosen yet
        self.num_features, self.num_outcomes = num_features, num_outcomes
        if isinstance(spec, str):
            self.encoder = ENCODERS[spec](num_features, latent_dim)
        elif isinstance(spec, Encoder):
            if spec.latent_dim != latent_dim:
                raise ShapeError(
                    f"encoder {spec.class_name} makes {spec.latent_dim} latents, and the model has "
                    f"latent_dim={latent_dim}: make them equal"
                )
            self.encoder = copy.deepcopy(spec)
        else:
            self.encoder = ModuleEncoder(spec, num_features, latent_dim)  # which copies it
        if latent_units is not None:
            self.encoder.use_units(latent_units)
        named = isinstance(self.encoder, IdentityEncoder) and _can_name_latents(feature_names)
        self._feature_names = tuple(map(str, feature_names or ())) if named else ()
        prior = self.prior_spec.build(
            self.tree,
            self.num_weights,
            num_outcomes,
            num_latents=self.latent_dim,
            outcome_scale=outcome_scale,
            latent_units=latent_units,
            root_loc=root_loc,
            standard_error=standard_error,
            predictor_scale=likelihood.predictor_scale,
            latent_of=self.latent_of,
        )
        basis = basis_of(self.basis_spec)
        if basis is not None and likelihood.by_weights:
            raise DataError(
                f"basis={self.basis_spec!r} together with latent_noise: noise of a latent is "
                "integrated out where outcomes are linear in it; leave one of the two out"
            )
        self.basis = None if basis is None else basis.build(latent_dim, latent_units)
        self.head = Head(self.tree, prior, likelihood)
        return self

    def design(self, z: Tensor) -> Tensor:
        """Latents (N, K), their curves and the intercept's 1 behind them: (N, W)."""
        parts = [z] if self.basis is None else [z, self.basis(z)]
        if self.intercept:
            parts.append(z.new_ones(*z.shape[:-1], 1))
        return torch.cat(parts, dim=-1) if len(parts) > 1 else z

    def __repr__(self) -> str:
        latents = (
            "latent_dim to be chosen" if self._latent_dim is None else f"{self.latent_dim} latents"
        )
        spec = self.encoder_spec
        parts = [
            f"tree: {self.tree!r}",
            f"encoder: {spec!r}" if isinstance(spec, str) else f"encoder: {type(spec).__name__}",
            f"prior: {self.prior_spec!r}",
            f"likelihood: {likelihood_of(self.likelihood_spec)!r}",
        ]
        if self.basis_spec is not None:
            parts.append(f"basis: {basis_of(self.basis_spec)!r}")
        if self.num_features is None:
            parts.append("not built yet: fit, or model.build(num_features, num_outcomes), does it")
        else:
            trained = sum(part.numel() for part in self.encoder.parameters())
            parts[1] += f", {self.num_features} features, {trained} parameters"
            parts.append(f"{self.num_outcomes} outcomes, weights {listed(self.weight_names)}")
        intercept = "with" if self.intercept else "without"
        return "\n  ".join([f"TreeModel: {latents}, {intercept} intercept", *parts])

    def forward(
        self,
        x: Tensor,
        env_index: Tensor,
        y: Tensor | None = None,
        terms: RowTerms | None = None,
    ) -> Tensor:
        """The generative process.

        Args:
            x: Features, (N, D).
            env_index: Node of each row in ``tree.nodes`` order, (N,) int64.
            y: Outcomes (N, Q), or (N,) where Q is 1; NaN where not observed.
            terms: What else is known of the rows, in the model's units: exposure, trials, weights.

        Returns:
            Outcomes (N, Q), drawn where not given.
        """
        if self.num_features is None:
            raise ShapeError(
                "the model does not know its sizes yet: call model.build(num_features, "
                "num_outcomes), or give both to TreeModel"
            )
        for argument, value in {"x": x, "env_index": env_index}.items():
            if not isinstance(value, Tensor | Features):
                raise DataError(
                    f"{argument} is of type {type(value).__name__}: the model itself takes tensors,"
                    " env_index places in tree.nodes; tables and labels are for fit and predict"
                )
        z = pyro.deterministic("z", self.encoder(x), event_dim=2)
        return self.head(self.design(z), env_index, y, terms)


def _can_name_latents(names: Sequence[Hashable] | None) -> bool:
    """All are text, so that a number still says a place, and none is the intercept's."""
    return all(isinstance(name, str) and name != INTERCEPT for name in names or ())
