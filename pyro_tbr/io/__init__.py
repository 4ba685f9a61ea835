"""To and from what other tools read; each file for one of them, imported where it is used.

:mod:`~pyro_tbr.io.anndata` and :mod:`~pyro_tbr.io.treedata` read these objects and write to them,
:mod:`~pyro_tbr.io.arviz` gives posteriors to ArviZ, :mod:`~pyro_tbr.io.sklearn` holds estimators
with scikit-learn's face. Importing this room loads no other package.
"""
