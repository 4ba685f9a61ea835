"""Classes of a kind by name: what a file that holds no class is read with."""

from pyro_tbr.errors import DataError


class Registered(dict[str, type]):
    """Concrete subclasses of a base by name; a name that none or several have is an error."""

    def __init__(self, base: type) -> None:
        self.base, self.several = base, dict[str, list[str]]()
        places: dict[str, dict[str, type]] = {}
        waiting: list[type] = [base]
        while waiting:
            below: list[type] = waiting.pop(0).__subclasses__()
            waiting += below
            for kind in below:
                if not vars(kind).get("abstract"):
                    # One that is defined anew in its place, as by a notebook's cell, is the newer.
                    place = f"{kind.__module__}.{kind.__qualname__}"
                    places.setdefault(kind.__name__, {})[place] = kind
        for name, found in places.items():
            if len(found) == 1:
                self[name] = next(iter(found.values()))
            else:
                self.several[name] = list(found)

    def __missing__(self, name: str) -> type:
        what = self.base.__name__
        if name in self.several:
            raise DataError(
                f"{what}: {' and '.join(self.several[name])} have one name, so {name!r} does not "
                "say which is meant: rename one of them"
            )
        raise DataError(
            f"{what}: no class {name!r} is known, only {', '.join(sorted(self))}: import the "
            "module that defines it first"
        )


def registered(base: type) -> Registered:
    """Every concrete subclass of a base by name, those of the user's imported modules too.

    Asking for a name that no class has, or that classes of several modules have, is a
    :class:`~pyro_tbr.DataError`.

    Example:
        >>> from pyro_tbr.heads.likelihoods import Likelihood
        >>> registered(Likelihood)["GaussianLikelihood"].__name__
        'GaussianLikelihood'
    """
    return Registered(base)
