"""Encoders: from features to latents that mean the same in every environment.

An :class:`Encoder` is three maps in a row. ``prepare`` standardises the features and reduces them
(no parameters to train, statistics from the training rows); ``body`` is trained; ``output`` is an
affine map in buffers that standardises the latents and carries the rotation to sparsity. Statistics
belong to the encoder, never to a batch, so a single row is encoded as it would be in any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_tbr.data import Features, SparseFeatures, dense, varying_columns
from pyro_tbr.errors import DataError, ShapeError, TbrError
from pyro_tbr.heads.local_params import LocalParamsModule
from pyro_tbr.models.principal_axes import column_moments, principal_axes


def _linear(
    num_in: int, num_out: int, generator: torch.Generator, gain: float = 1.0, bias: bool = True
) -> nn.Linear:
    """A linear layer drawn from a generator of ours; the global one is left alone."""
    layer = nn.utils.skip_init(nn.Linear, num_in, num_out, bias=bias)
    with torch.no_grad():
        layer.weight.normal_(0.0, gain / math.sqrt(num_in), generator=generator)
        if bias:
            layer.bias.zero_()
    return layer


class LatentUnits(NamedTuple):
    """Latents in the user's units: ``shift + scale * (latents the model sees)``; (K,), double."""

    shift: Tensor
    scale: Tensor


class Encoder(LocalParamsModule):
    """Latents (N, K) from features (N, D); abstract.

    Args:
        num_features: D.
        latent_dim: K.
    """

    trainable = True  # there is something to train, so latents are rotated and standardised

    def __init__(self, num_features: int, latent_dim: int) -> None:
        super().__init__()
        self.num_features, self.latent_dim = num_features, latent_dim
        self.register_buffer("output_shift", torch.zeros(latent_dim))
        self.register_buffer("output_map", torch.eye(latent_dim))

    @property
    def width(self) -> int:
        """Number of prepared features R."""
        return self.num_features

    @property
    def latent_units(self) -> LatentUnits:
        """The user's units of the latents; those the model sees, where an encoder makes them."""
        zero = torch.zeros_like(self.output_shift, dtype=torch.float64)
        return LatentUnits(zero, torch.ones_like(zero))

    def use_units(self, units: LatentUnits) -> None:
        """Sets the units of latents that are the features."""
        raise NotImplementedError(f"{type(self).__name__} makes its own latents")

    def prepare(self, x: Tensor | Features) -> Tensor:
        """Features as the body sees them, (N, R), in the encoder's dtype."""
        return dense(x).to(self.output_map.dtype)

    def fit_preparation(self, x: Tensor | Features) -> None:
        """Sets the statistics of ``prepare`` from training rows (N, D); drops what it learnt."""

    def reset(self, generator: torch.Generator) -> None:
        """Draws the body's parameters afresh, for the prepared width."""

    def body(self, prepared: Tensor) -> Tensor:
        """The trained part: (N, R) to (N, K)."""
        raise NotImplementedError

    def encode(self, prepared: Tensor) -> Tensor:
        """Latents from prepared features: body, then the output map."""
        return self.body(prepared) @ self.output_map - self.output_shift

    def forward(self, x: Tensor | Features) -> Tensor:
        """Latents (N, K) from features (N, D); block by block where these are no tensor."""
        if x.shape[-1] != self.num_features:
            raise ShapeError(
                f"x has {x.shape[-1]} columns, encoder {self.class_name} was built for "
                f"{self.num_features}: give it these features, or make it anew"
            )
        if isinstance(x, Features):
            return x.each(lambda run: self.encode(self.prepare(run)))
        return self.encode(self.prepare(x))

    def linear_map(self) -> Tensor | None:
        """How the latents the model sees move with each feature, (D, K) double.

        ``None`` where that differs from row to row.
        """
        return None

    @torch.no_grad()
    def try_out(self, x: Tensor | Features) -> None:
        """Encodes some rows (n, D), so that what does not fit is said before any training.

        Raises:
            ShapeError: Latents or features are of another number.
            DataError: What comes out is no tensor of floats, or an error comes out.
        """
        try:
            self(x)
        except TbrError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            kind = str(self.output_map.dtype).removeprefix("torch.")
            raise DataError(
                f"encoder {self.class_name} fails on x of shape {tuple(x.shape)}, {kind}: "
                f"{type(error).__name__}: {error}; it has to take (N, {self.num_features}) in this "
                "precision (FitOptions(dtype='float64') gives double) and return "
                f"(N, {self.latent_dim})"
            ) from error

    @property
    def class_name(self) -> str:
        """What messages call it: its class."""
        return type(self).__name__

    @torch.no_grad()
    def set_output(self, loc: Tensor, linear: Tensor, offset: Tensor | None = None) -> None:
        """Appends an affine map: new latents are ``(z - loc) @ linear - offset``.

        A column of zeros in ``linear`` (K, K) makes a latent that is not used.
        """
        linear = linear.double()
        shift = loc.double() @ linear + (0.0 if offset is None else offset.double())
        # z = body @ map - shift, so both compose without an inverse.
        self.output_shift.copy_(self.output_shift.double() @ linear + shift)
        self.output_map.copy_(self.output_map.double() @ linear)


class IdentityEncoder(Encoder):
    """Latents are the features: D must equal K.

    Training sees them centred and scaled, in double precision, and results are in their units: what
    is far from zero for its spread, such as a year, is no worse a latent than any other.
    """

    trainable = False

    def __init__(self, num_features: int, latent_dim: int) -> None:
        if num_features != latent_dim:
            raise ShapeError(
                f"encoder='identity' takes features as latents, but x has {num_features} columns "
                f"and latent_dim={latent_dim}: make them equal or choose another encoder"
            )
        super().__init__(num_features, latent_dim)
        self.register_buffer("feature_loc", torch.zeros(num_features, dtype=torch.float64))
        self.register_buffer("feature_scale", torch.ones(num_features, dtype=torch.float64))

    @property
    def latent_units(self) -> LatentUnits:
        """Those of the features."""
        loc, scale = self.feature_loc.double(), self.feature_scale.double()
        return LatentUnits(loc + scale * self.output_shift.double(), scale)

    def use_units(self, units: LatentUnits) -> None:
        """See :meth:`Encoder.use_units`."""
        self.feature_loc.copy_(units.shift)
        self.feature_scale.copy_(units.scale)

    def prepare(self, x: Tensor | Features) -> Tensor:
        """Features centred and scaled, (N, D)."""
        standard = (dense(x).double() - self.feature_loc) / self.feature_scale
        return standard.to(self.output_map.dtype)

    def linear_map(self) -> Tensor | None:
        """See :meth:`Encoder.linear_map`."""
        return self.output_map.double() / self.feature_scale.double().unsqueeze(-1)

    def body(self, prepared: Tensor) -> Tensor:
        """The features."""
        return prepared


class PreparedEncoder(Encoder):
    """Standardises features in double precision and projects them on leading components; abstract.

    Args:
        num_features: D.
        latent_dim: K.
        num_components: Leading principal components to keep; ``None``: all (``fit`` chooses on
            held-out rows where there are many features).
    """

    def __init__(self, num_features: int, latent_dim: int, num_components: int | None) -> None:
        super().__init__(num_features, latent_dim)
        self.num_components = num_components
        self.register_buffer("feature_loc", torch.zeros(num_features, dtype=torch.float64))
        # Empty until there are rows; a unit matrix of 20,000 features would be 3 GB.
        self.register_buffer("projection", torch.zeros(num_features, 0, dtype=torch.float64))
        width = min(num_features, num_components or num_features)
        self.register_buffer("component_share", torch.ones(width))

    @property
    def width(self) -> int:
        """Number of prepared features R."""
        return len(self.component_share)

    def prepare(self, x: Tensor | Features) -> Tensor:
        """Whitened leading principal components of the standardised features, (N, R).

        Before :meth:`fit_preparation`, the first R features as they are.
        """
        projection = self.projection
        if not projection.shape[1]:
            return super().prepare(x)[..., : self.width]
        if isinstance(x, SparseFeatures):  # the stored entries alone, then the shift of all rows
            prepared = x @ projection - self.feature_loc @ projection
        else:
            prepared = (dense(x).to(projection.dtype) - self.feature_loc) @ projection
        return prepared.to(self.output_map.dtype)

    @torch.no_grad()
    def fit_preparation(self, x: Tensor | Features) -> None:
        """Standardises columns (constant ones get no influence) and whitens them."""
        loc, scale = column_moments(x)
        # A constant column has a spread of rounding errors only; dividing by it would make noise.
        alive = varying_columns(x)
        inverse = torch.where(alive, 1 / torch.where(alive, scale, 1.0), 0.0)
        variance, vectors = principal_axes(x, loc, inverse, self.num_components)
        self.feature_loc = loc
        self.projection = inverse[:, None] * vectors / variance.sqrt()
        self.component_share = (variance / variance[0]).to(self.output_map.dtype)


class LinearEncoder(PreparedEncoder):
    """Latents are linear in the features; arguments as for :class:`PreparedEncoder`."""

    def __init__(
        self, num_features: int, latent_dim: int, num_components: int | None = None
    ) -> None:
        super().__init__(num_features, latent_dim, num_components)
        self.reset(torch.Generator().manual_seed(0))

    def reset(self, generator: torch.Generator) -> None:
        """A random map from the prepared features."""
        # No bias: latents are centred by the output map.
        layer = _linear(self.width, self.latent_dim, generator, bias=False)
        self.layer = layer.to(self.output_map)

    @torch.no_grad()
    def set_directions(self, directions: Tensor) -> None:
        """Sets the map to these directions of the prepared features, (R, K)."""
        self.layer.weight.copy_(directions.T)

    def latent_directions(self) -> Tensor:
        """How the latents the model sees move with each prepared feature, (R, K) double."""
        return self.layer.weight.double().T @ self.output_map.double()

    @torch.no_grad()
    def set_latent_directions(self, directions: Tensor) -> None:
        """Sets these, (R, K); the latents of prepared features that are zero stay as they are."""
        self.set_directions(directions)
        self.output_map.copy_(torch.eye(self.latent_dim))

    def linear_map(self) -> Tensor | None:
        """See :meth:`Encoder.linear_map`."""
        projection = self.projection
        if not projection.shape[1]:  # before there were rows
            projection = torch.eye(self.num_features, self.width).to(projection)
        return projection @ self.latent_directions()

    def body(self, prepared: Tensor) -> Tensor:
        """One linear layer."""
        return self.layer(prepared)


class MLPEncoder(PreparedEncoder):
    """A multilayer perceptron, ``hidden`` its widths; else as :class:`PreparedEncoder`."""

    def __init__(
        self,
        num_features: int,
        latent_dim: int,
        num_components: int | None = None,
        hidden: Sequence[int] = (128, 128),
    ) -> None:
        super().__init__(num_features, latent_dim, num_components)
        self.hidden = tuple(hidden)
        self.reset(torch.Generator().manual_seed(0))

    def reset(self, generator: torch.Generator) -> None:
        """Draws all layers."""
        widths = [self.width, *self.hidden]
        layers: list[nn.Module] = []
        for num_in, num_out in zip(widths, widths[1:], strict=False):
            layers += [_linear(num_in, num_out, generator, gain=math.sqrt(2)), nn.SiLU()]
        layers.append(_linear(widths[-1], self.latent_dim, generator))
        self.network = nn.Sequential(*layers).to(self.output_map)

    def body(self, prepared: Tensor) -> Tensor:
        """The network."""
        return self.network(prepared)


ENCODERS: dict[str, Callable[..., Encoder]] = {
    "linear": LinearEncoder,
    "mlp": MLPEncoder,
    "identity": IdentityEncoder,
}
