"""The dense stage: finds the encoder with weights that may change on every arc.

The dense Gaussian tree prior shares strength between leaves, so leaves with fewer rows than latents
are fine, and it is easy to fit: no gates, no bad optima but rotations. What the stage chooses on
held-out rows is how strongly the encoder is held back: its weight decay, for wide features the
number of leading components it sees, and when to stop. Where outcomes are normal a linear encoder
is trained by closed forms (``alternating``), any other by gradients while the weights follow in
closed form (``following``); else encoder and weights are trained by SVI (``training``).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tbr.data import Features
from pyro_tbr.heads import GaussianPrior, MeanFieldGuide, Statistics, TreeGuide, condition
from pyro_tbr.heads.joint_guide import JointGuide
from pyro_tbr.heads.moments import predictor_moments
from pyro_tbr.inference.checkpoint import Checkpoint, Part, part
from pyro_tbr.inference.encoder.alternating import SVI_STEPS, alternate, has_closed_form
from pyro_tbr.inference.encoder.directions import dense_guide, leading_directions, spans_all
from pyro_tbr.inference.encoder.following import follow
from pyro_tbr.inference.encoder.latents import as_kept
from pyro_tbr.inference.encoder.rows import StandardRows
from pyro_tbr.inference.encoder.training import GUIDE_LR, FitTrace, Schedule, train
from pyro_tbr.inference.options import FitOptions
from pyro_tbr.models.encoders import Encoder, LinearEncoder, PreparedEncoder
from pyro_tbr.models.tree_model import TreeModel
from pyro_tbr.posterior.describing import restore_encoder
from pyro_tbr.progress import detail, stage

_ROWS_A_FEATURE = 10  # with fewer rows than this a feature, the number of components is chosen
_DENSE_SWEEPS = 40
_EARLY = 0.6  # share of the steps before which training that ended has ended early
_PART = 0.25  # of the way to its optimum that a step of a linear encoder in closed form goes


class Recipe(NamedTuple):
    """How an encoder is trained: on so many leading components (``None``: all).

    Steps and rate are those by gradients; a step in closed form stands for several. Where ``stop``
    is given it ends there, as on the way to all of them.
    """

    decay: float
    num_components: int | None
    steps: int
    lr: float
    stop: int | None = None


class Losses(NamedTuple):
    """Losses of observed outcomes, and by how much of a row each counts, (n,) both."""

    each: Tensor
    shares: Tensor

    def mean(self) -> Tensor:
        """Of all rows."""
        return (self.shares * self.each).sum() / self.shares.sum()

    def mean_var(self) -> Tensor:
        """Variance of the mean; rows that count by two are two rows."""
        square = (self.each - self.mean()).square()
        return (self.shares * square).sum() / self.shares.sum().square()


@dataclass(frozen=True)
class DenseFit:
    """An encoder with the posterior of its dense weights given the rows of training.

    The trace is ``None`` where the encoder was not trained, as where it spans all features or has
    no steps beyond where it starts.
    """

    model: TreeModel
    guide: JointGuide | TreeGuide
    stats: Statistics
    recipe: Recipe
    trace: FitTrace | None

    @torch.no_grad()
    def latents(self, x: Tensor | Features) -> Tensor:
        """Latents of features (N, D), in double precision unless there are very many."""
        return as_kept(self.model.encoder(x))

    @property
    def _nodes(self) -> Tensor:
        return torch.arange(self.model.tree.num_nodes, device=self.stats.nodes.device)

    @torch.no_grad()
    def loss(self, rows: StandardRows, *, seen: bool) -> Losses:
        """Of each outcome that counts: an estimate of its noise variance.

        The squared residual, less the weights' own variance on new rows; plus it on rows of
        training (``seen``), which the weights have moved towards. So the two agree but for the
        optimism of the encoder. Outcomes without normal noise: negative expected log score.
        """
        moments, cov = self.guide.node_moments(), self.guide.node_cov(self._nodes)
        cov = None if cov is None else cov.to(moments.mean)
        design = self.model.design(self.model.encoder(rows.x))
        likelihood, losses = self.model.likelihood, []
        for block in rows.with_design(design).blocks():
            mean, var = predictor_moments(block.design, block.env_index, moments, cov)
            if likelihood.exact:
                each = (block.y - mean).square() + (var if seen else -var)
            else:
                nuisance = self.guide.nuisance_of(block)
                each = -likelihood.expected_log_prob(block.y, mean, var, nuisance)
            shares = block.shares()
            losses.append((each[shares > 0].double(), shares[shares > 0]))
        return Losses(*(torch.cat(parts) for parts in zip(*losses, strict=True)))


@dataclass(frozen=True)
class DenseStage:
    """Makes dense fits for a built model, which is not changed.

    ``kept`` are scales that one of them has found, for the next one to start from. Encoders that a
    checkpoint holds are not trained again.
    """

    model: TreeModel
    options: FitOptions
    generator: torch.Generator
    checkpoint: Checkpoint | None = None
    kept: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @property
    def follows(self) -> bool:
        """Whether the weights follow an encoder that is trained by gradients."""
        return self.model.likelihood.exact and not isinstance(self.model.encoder, LinearEncoder)

    def recipes(self, num_rows: int) -> list[Recipe]:
        """What to choose from on held-out rows, in the order of warm starts."""
        options, encoder = self.options, self.model.encoder
        linear = isinstance(encoder, LinearEncoder)
        steps = options.max_steps
        if steps is None:
            steps = 600 if linear else 1000 if self.follows else 2500
        lr = options.encoder_lr or 3e-3
        decays = options.encoder_decays
        if decays is None:
            decays = (0.0,) if linear else (0.3, 0.03)
        components: tuple[int | None, ...] = (None,)
        if isinstance(encoder, PreparedEncoder) and encoder.num_components is None:
            width = encoder.num_features
            if options.num_components is not None:
                components = tuple(min(n, width) for n in options.num_components)
            elif width > 20 and width * _ROWS_A_FEATURE > num_rows:
                least = max(self.model.latent_dim, 15)
                components = tuple(n for n in (least, 2 * least, 4 * least) if n < width)
        return [Recipe(d, c, steps, lr) for c in components for d in decays]

    def choose(
        self, rows: StandardRows, held_out: StandardRows, recipes: list[Recipe] | None = None
    ) -> DenseFit:
        """The fit to ``rows`` by the recipe that does best on held-out rows, of these or of all.

        Where training has ended early an encoder that is held back less would have to end sooner,
        and is not tried.
        """
        best, best_score, last = None, float("inf"), None
        recipes = self.recipes(len(rows)) if recipes is None else recipes
        with stage("", total=len(recipes)):
            for number, recipe in enumerate(recipes, start=1):
                again = last is not None and last.recipe.num_components == recipe.num_components
                if again and self.follows and _ended_early(last):
                    continue
                warm = again and not self.follows
                name = f"encoder {number} of {len(recipes)}" if len(recipes) > 1 else ""
                with stage(name, total=1):
                    last = self.fit(rows, recipe, held_out, start=last if warm else None)
                score = last.loss(held_out, seen=False).mean().item()
                detail("%s has loss %.4g on held-out rows", recipe, score)
                if best is None or score < best_score:
                    best, best_score = last, score
        assert best is not None  # there is at least one recipe
        return best

    def fit(
        self,
        rows: StandardRows,
        recipe: Recipe,
        held_out: StandardRows | None = None,
        start: DenseFit | None = None,
    ) -> DenseFit:
        """Trains an encoder with dense weights, on from a start for half the steps or afresh.

        Held-out rows choose among states of the training.
        """
        with stage("", plan={"start": 15, "training": 75, "weights": 10}):
            model, trace = part(
                self.checkpoint,
                "encoder",
                lambda: self._trained(rows, recipe, held_out, start),
                lambda found: self._described(*found, rows),
                lambda left: self._restored(left, rows),
            )
            return DenseFit(model, *self._weights(model, rows), recipe, trace)

    def _trained(
        self,
        rows: StandardRows,
        recipe: Recipe,
        held_out: StandardRows | None,
        start: DenseFit | None,
    ) -> tuple[TreeModel, FitTrace | None]:
        """See :meth:`fit`."""
        with stage("start", total=1):
            model = self.begun(rows, recipe) if start is None else copy.deepcopy(start.model)
        trainable, trace = any(p.requires_grad for p in model.encoder.parameters()), None
        if trainable and not spans_all(model.encoder) and recipe.steps:
            trace = self._train(model, rows, recipe, held_out, start)
        rows.holding.agree(model.encoder)
        return model, trace

    def _described(self, model: TreeModel, trace: FitTrace | None, rows: StandardRows) -> Part:
        """What training leaves, for a checkpoint."""
        return {
            "encoder": dict(model.encoder.state_dict()),
            "num_components": getattr(model.encoder, "num_components", None),
            "num_rows": model.num_rows,
            "trace": None if trace is None else tuple(trace),
            "kept": dict(self.kept),
            "correlation": None if rows.groups is None else rows.groups.correlation,
        }

    def _restored(self, left: Part, rows: StandardRows) -> tuple[TreeModel, FitTrace | None]:
        """The same again."""
        model = copy.deepcopy(self.model)
        model.head = self.model.head.apart().with_prior(GaussianPrior())
        if isinstance(model.encoder, PreparedEncoder):
            model.encoder.num_components = left["num_components"]
        restore_encoder(model.encoder, left["encoder"])
        model.encoder.to(rows.y.device)
        model.num_rows = left["num_rows"]
        self.kept.clear()
        self.kept.update(left["kept"])
        if rows.groups is not None:
            rows.groups.correlation = left["correlation"].to(rows.y.device)
        trace = left["trace"]
        return model, None if trace is None else FitTrace(*trace)

    def resumed(self, encoder: Encoder, rows: StandardRows, recipe: Recipe) -> DenseFit:
        """The dense fit of an encoder that is trained already, by this recipe."""
        model = copy.deepcopy(self.model)
        model.encoder = copy.deepcopy(encoder)
        model.head = self.model.head.apart().with_prior(GaussianPrior())
        return DenseFit(model, *self._weights(model, rows), recipe, None)

    def begun(self, rows: StandardRows, recipe: Recipe) -> TreeModel:
        """A model with a fresh encoder, in closed form if it has one, and the dense prior.

        Its latents are standardised.
        """
        model = copy.deepcopy(self.model)
        encoder = model.encoder
        if isinstance(encoder, PreparedEncoder):
            encoder.num_components = recipe.num_components or encoder.num_components
        encoder.fit_preparation(rows.x)
        encoder.reset(self.generator)
        model.head = self.model.head.apart().with_prior(GaussianPrior())
        if isinstance(encoder, LinearEncoder):
            directions = leading_directions(model, rows.prepared(encoder), self.kept)
            encoder.set_directions(directions)
        if encoder.trainable:
            with torch.no_grad():
                z = encoder(rows.x)
                encoder.set_output(z.mean(0), torch.diag(1 / z.std(0).clamp(min=1e-6)))
        return model

    def _train(
        self,
        model: TreeModel,
        rows: StandardRows,
        recipe: Recipe,
        held_out: StandardRows | None,
        start: DenseFit | None,
    ) -> FitTrace:
        """Training of the encoder; only the guide of SVI is mean field."""
        prepared = rows.prepared(model.encoder)
        tried = None if held_out is None else held_out.prepared(model.encoder)
        exact = dense_guide(model.head, rows.nodes(model.tree.num_nodes))
        if isinstance(exact, JointGuide) and has_closed_form(model, prepared):
            return alternate(
                model,
                exact,
                prepared,
                recipe.steps,
                part=_PART,
                decay=recipe.decay * recipe.lr * SVI_STEPS,
                held_out=tried,
                patience=self.options.patience,
            )
        schedule = Schedule(
            steps=max(1, recipe.steps // (1 if start is None else 2)),
            batch_size=min(self.options.batch_size, len(rows)),
            encoder_lr=recipe.lr,
            guide_lr=GUIDE_LR,
            encoder_decay=recipe.decay,
            patience=self.options.patience,
            stop=recipe.stop,
        )
        if self.follows:
            return follow(model, exact, prepared, schedule, self.generator, held_out=tried)
        guide = MeanFieldGuide(model, rows.nodes(model.tree.num_nodes)).to(rows.y.device)
        known = start.guide if start is not None else None
        if known is None and isinstance(model.encoder, LinearEncoder):
            with stage("start", total=1):
                # The encoder is good already: so be the weights.
                known = self._weights(model, rows)[0]
        if known is not None:
            guide.start(known.node_moments().mean[0], known.delta_moments().mean)
        else:
            with torch.no_grad():
                draw = torch.randn(guide.root_loc.shape, generator=self.generator)
                guide.root_loc += 0.3 * draw.to(guide.root_loc)
        return train(model, guide, prepared, schedule, self.generator, held_out=tried)

    def _weights(
        self, model: TreeModel, rows: StandardRows
    ) -> tuple[JointGuide | TreeGuide, Statistics]:
        """Posterior of the dense weights for the encoder as it is, exact along the tree."""
        guide = dense_guide(model.head, rows.nodes(model.tree.num_nodes))
        with torch.no_grad():
            design = model.design(model.encoder(rows.x))
        return guide, condition(guide, rows.with_design(design), sweeps=_DENSE_SWEEPS)


def _ended_early(fit: DenseFit | None) -> bool:
    """Whether held-out rows were fitted best by a state long before the last step."""
    if fit is None or fit.trace is None:
        return False
    return fit.trace.best_step < _EARLY * fit.recipe.steps
