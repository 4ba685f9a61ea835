"""The passes along the tree in compiled loops; those of torch's tensors are their oracle."""

from pyro_tbr.tree.messages.compiled.calls import compiled_evidence, compiled_moments, compiles

__all__ = ["compiled_evidence", "compiled_moments", "compiles"]
