r"""The posterior of weights along the tree under any law of their changes, by messages.

The model, for each element of a batch by itself (a latent, an outcome): the root's weight is
:math:`N(\mu_0, \sigma_0^2)`, every arc adds a change drawn from its :class:`ArcLaw`, a mixture of J
normals, and data multiply each node's weight :math:`u` by a potential
:math:`\exp(\eta u - \lambda u^2 / 2)`. Spike and slab is the law of two classes with variances 0
and :math:`\tau^2`; a slab in two halves around :math:`\pm m`, which says that small changes are
rare, has three; a dense prior is that of one class.

:func:`inside_pass` sends messages from the leaves to the root (Felsenstein's pruning),
:func:`outside_pass` goes back; together they give log evidence, probabilities of the classes and
moments of nodes and changes. :func:`smooth` does both in one call and :func:`log_evidence` gives
the first alone; on the CPU they run in compiled loops (``compiled/``), where numba is installed.
:func:`sample` draws along the tree from the messages of an inside pass, and :func:`log_weights`
says by how much a cap has made such draws too likely.

A message is a mixture of Gaussians. With no cap on their number this enumerates the patterns of
classes; with a cap the heaviest are kept and others merged into them (``merging.py``).

All is computed in float64 and returned in the dtype of the input: in float32 a leaf with standard
error 0.005 loses what its siblings say. Probabilities of exactly 0 and 1 work, with finite
gradients.
"""

from pyro_tbr.tree.messages.draws import TreeDraws, sample
from pyro_tbr.tree.messages.evidence import log_evidence
from pyro_tbr.tree.messages.inside import InsideMessages, inside_pass
from pyro_tbr.tree.messages.laws import ArcLaw
from pyro_tbr.tree.messages.outside import TreePosterior, outside_pass
from pyro_tbr.tree.messages.smoothing import smooth
from pyro_tbr.tree.messages.weighing import log_weights

__all__ = [
    "ArcLaw",
    "InsideMessages",
    "TreeDraws",
    "TreePosterior",
    "inside_pass",
    "log_evidence",
    "log_weights",
    "outside_pass",
    "sample",
    "smooth",
]
