"""An encoder that is a torch module of the user's own, and what is said of one that will not do."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from pyro_tbr.data import Features
from pyro_tbr.errors import DataError, ShapeError
from pyro_tbr.models.encoders import Encoder


class ModuleEncoder(Encoder):
    """Any module from (N, D) to (N, K), the user's own; its input is left as it is.

    Args:
        module: The module, of any floating dtype; the encoder holds a copy, and brings it to its
            own dtype where the module's parameters are of another.
        num_features: D.
        latent_dim: K.
    """

    def __init__(self, module: nn.Module, num_features: int, latent_dim: int) -> None:
        super().__init__(num_features, latent_dim)
        self.module = copy.deepcopy(module)

    def prepare(self, x: Tensor | Features) -> Tensor:
        """The features in the encoder's dtype, to which the module is brought once."""
        # Buffers follow the parameters: one in double, a statistic, is meant so.
        tensors: list[Tensor] = [*self.module.parameters()] or [*self.module.buffers()]
        dtype = self.output_map.dtype
        if any(part.is_floating_point() and part.dtype != dtype for part in tensors):
            self.module.to(dtype)
        return super().prepare(x)

    def linear_map(self) -> Tensor | None:
        """See :meth:`Encoder.linear_map`: of a single linear layer."""
        if not isinstance(self.module, nn.Linear):
            return None
        return self.module.weight.double().T @ self.output_map.double()

    def body(self, prepared: Tensor) -> Tensor:
        """The user's module, its output checked."""
        z = self.module(prepared)
        said = f"encoder {self.class_name} returned "
        if not isinstance(z, Tensor):
            what, remedy = f"no tensor but {type(z).__name__}", "keep to torch, which can train it"
            if isinstance(z, tuple | list):
                what, remedy = f"a {type(z).__name__} of {len(z)}", "return one tensor"
            raise DataError(f"{said}{what}: {remedy}, (N, {self.latent_dim}), one column a latent")
        if not z.is_floating_point():
            kind = str(z.dtype).removeprefix("torch.")
            raise DataError(f"{said}{kind}: latents are floats, such as z.to(x.dtype) makes them")
        if z.shape != (*prepared.shape[:-1], self.latent_dim):
            raise ShapeError(
                f"{said}shape {tuple(z.shape)} for x of shape {tuple(prepared.shape)}: expected "
                f"{(*prepared.shape[:-1], self.latent_dim)}, one column a latent and a row for "
                f"each row of x; {self._remedy(z, prepared)}"
            )
        return z.to(prepared.dtype)

    def _remedy(self, z: Tensor, prepared: Tensor) -> str:
        """What to do about latents of another shape."""
        if z.shape[:1] != prepared.shape[:1]:
            return "leave the rows apart: no pooling, no flattening over them"
        if z.dim() == 2:
            return f"give its last layer {self.latent_dim} outputs, or latent_dim={z.shape[1]}"
        return "a single latent is z[:, None]" if z.dim() == 1 else "flatten all but the rows"

    @property
    def class_name(self) -> str:
        """The class of the user's module."""
        return type(self.module).__name__
