"""Pyro modules whose parameters are their own, whatever Pyro's global store holds."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.poutine as poutine
from pyro.nn import PyroModule
from pyro.poutine.runtime import am_i_wrapped, effectful
from torch import Tensor, nn
from torch.distributions import constraints


class LocalParamsModule(PyroModule):
    """A Pyro module that neither writes to the global parameter store nor reads from it; abstract.

    Pyro keeps parameters by name in one global store, where two instances of a class meet. Here the
    outermost call shows every parameter that may be trained to whoever listens (``SVI``,
    ``poutine.trace``), once, by its name in ``named_parameters``, and runs as a plain torch module
    inside. Nothing global changes, so without a handler it may be called in several threads.

    Two private parts of :class:`PyroModule` are used, ``_pyro_name`` and ``_pyro_set_supermodule``:
    inside a user's own Pyro module there is no public way to keep apart from its parameters.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward, its parameters shown to Pyro's handlers."""
        # Pyro modules from outside use the store by themselves.
        parts = (part for part in self.modules() if isinstance(part, PyroModule))
        foreign = not all(isinstance(part, LocalParamsModule) for part in parts)
        if not am_i_wrapped() and not foreign:
            return nn.Module.__call__(self, *args, **kwargs)
        self.show_parameters()
        # What is inside has been shown, so parts of this module need not show it again.
        with poutine.block(hide_types=["param"]):
            if not foreign:
                return nn.Module.__call__(self, *args, **kwargs)
            with _store_put_back(self):
                return nn.Module.__call__(self, *args, **kwargs)

    def show_parameters(self) -> None:
        """Tells Pyro's handlers of the parameters, as reading them from a Pyro module does."""
        for name, parameter in self.named_parameters(prefix=self._pyro_name):
            if parameter.requires_grad:
                # The store sets this on parameters that it holds, and ``SVI.step`` asks for it.
                parameter.unconstrained = weakref.ref(parameter)
                show_parameter(name, parameter)

    def _pyro_set_supermodule(self, name: str, context: object) -> None:
        """Takes the name an outer module gives, and not its link to the global store."""
        self._pyro_name = name
        for key, part in self.named_children():
            if isinstance(part, LocalParamsModule):
                part._pyro_set_supermodule(f"{name}.{key}", context)

    def __delattr__(self, name: str) -> None:
        """Replacing a part must not delete what has a similar name in the global store."""
        if name in self._parameters or name in self._modules:
            nn.Module.__delattr__(self, name)
        else:
            super().__delattr__(name)


def show_parameter(name: str, value: Tensor) -> None:
    """A param statement that leaves Pyro's store out; SVI steps ``value.unconstrained()``."""
    effectful(lambda *_, **__: value, type="param")(
        name, value, constraint=constraints.real, name=name
    )


@contextmanager
def _store_put_back(module: nn.Module) -> Iterator[None]:
    """Pyro modules inside find an empty store; after it all is as it was."""
    store, own = pyro.get_param_store(), list(module.parameters())
    frozen = [parameter for parameter in own if not parameter.requires_grad]
    # The store takes these off whenever it is put aside, and ``SVI.step`` needs them.
    held = [*own, *(parameter for _, parameter in store.named_parameters())]
    links = [(p, vars(p)["unconstrained"]) for p in held if "unconstrained" in vars(p)]
    try:
        with pyro.settings.context(module_local_params=False), store.scope():
            yield
    finally:
        for parameter, link in links:
            parameter.unconstrained = link
        for parameter in frozen:  # the store takes every parameter for one to be trained
            parameter.requires_grad_(False)
