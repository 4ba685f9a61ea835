"""Pyro modules whose parameters are their own, whatever Pyro's global store holds."""

from __future__ import annotations

import weakref
from typing import Any

import pyro
from pyro.nn import PyroModule
from pyro.poutine.runtime import am_i_wrapped
from torch import nn


class LocalParamsModule(PyroModule):
    """A Pyro module that neither writes to the global parameter store nor reads from it; abstract.

    Pyro keeps parameters by name in one global store, where two instances of a class meet. A call
    of this module is made under ``module_local_params``, so ``SVI``, autoguides, ``Predictive``
    and NUTS see its sites and parameters while the store stays as it is. Without a handler nobody
    listens: then the call is that of a plain torch module, which changes nothing global, not even
    for a moment, so it may be made in several threads.

    Attributes:
        always_local: Parts from outside are Pyro modules, so every call is guarded.
    """

    always_local = False

    def __init__(self) -> None:
        super().__init__()
        # What Pyro sets where module_local_params is on at birth.
        self._pyro_context.param_state = {"params": {}, "constraints": {}}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward, with parameters kept out of the global store."""
        listened_to = am_i_wrapped() or self._pyro_context.active
        if not listened_to and not self.always_local:
            return nn.Module.__call__(self, *args, **kwargs)
        for parameter in self.parameters():
            # ``SVI.step`` asks for this; the store sets it on parameters that it holds.
            parameter.unconstrained = weakref.ref(parameter)
        with pyro.settings.context(module_local_params=True):
            return super().__call__(*args, **kwargs)

    def __delattr__(self, name: str) -> None:
        """Replacing a part must not delete what has a similar name in the global store."""
        if name in self._parameters or name in self._modules:
            nn.Module.__delattr__(self, name)
        else:
            super().__delattr__(name)
