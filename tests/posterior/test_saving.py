"""Saved and loaded: the same answers from a file without classes, or an error that says why not."""

import os
import pickletools
import subprocess
import sys
import zipfile

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch

import pyro_tbr as tbr
from pyro_tbr.models import MLPEncoder
from pyro_tbr.posterior.plain import from_plain, to_plain
from tests.brief import mostly_slow

TINY = {
    "restarts": 1,
    "mixture_components": 4,
    "max_steps": 10,
    "sparse_steps": 2,
    "encoder_decays": (0.3,),
    "cross_fit": 0,
    "batch_size": 64,
}
PRIOR_VALUES = torch.tensor([[1.0], [2.0], [0.5]], dtype=torch.float64)


class Own(torch.nn.Module):
    """A user's encoder, with a buffer of its own."""

    def __init__(self):
        super().__init__()
        layer = torch.nn.utils.skip_init(torch.nn.Linear, 4, 2)
        with torch.no_grad():
            layer.weight.copy_(torch.arange(8.0).reshape(2, 4) / 8)
            layer.bias.zero_()
        self.layer = layer
        self.register_buffer("centre", torch.ones(4, dtype=torch.float64))

    def forward(self, x):
        return self.layer((x - self.centre).to(x.dtype))


# Arguments of the model, of the simulation, and the guide.
CASES = {
    "all learnt": ({"encoder": "linear"}, {}, "tree"),
    "mlp": ({"encoder": "mlp"}, {}, "tree"),
    "identity": ({"encoder": "identity"}, {"num_features": 2}, "tree"),
    "encoder object": ({"encoder": MLPEncoder(4, 2, num_components=3, hidden=(5, 6))}, {}, "tree"),
    "own module": ({"encoder": Own()}, {}, "tree"),
    "mean field": ({"encoder": "linear"}, {}, "mean_field"),
    "exact zeros, mean field": (
        {"encoder": "linear", "prior": tbr.SpikeSlabPrior(spike_scale=0)},
        {"num_outcomes": 2},
        "mean_field",
    ),
    "fixed": (
        {
            "encoder": "linear",
            "prior": tbr.SpikeSlabPrior(expected_num_nonzero=2, slab_scale=np.float32(3.0)),
            "likelihood": tbr.GaussianLikelihood(scale=0.2),
        },
        {"num_outcomes": 2},
        "tree",
    ),
    "fixed by tensors": (
        {
            "encoder": "linear",
            "prior": tbr.SpikeSlabPrior(inclusion_prob=PRIOR_VALUES / 4, root_scale=PRIOR_VALUES),
        },
        {"num_outcomes": 2},
        "tree",
    ),
    "gaussian": (
        {"encoder": "linear", "prior": tbr.GaussianPrior(pooled=True), "intercept": False},
        {},
        "tree",
    ),
    "gaussian, mean field": (
        {"encoder": "linear", "prior": tbr.GaussianPrior(scale=PRIOR_VALUES)},
        {"num_outcomes": 2},
        "mean_field",
    ),
    "horseshoe": (
        {"encoder": "linear", "prior": tbr.HorseshoePrior(3, slab_scale=2.0, slab_df=6)},
        {},
        "tree",
    ),
    "horseshoe, mean field": (
        {"encoder": "linear", "prior": tbr.HorseshoePrior(global_scale=0.3)},
        {"num_outcomes": 2},
        "mean_field",
    ),
    "binary": (
        {"encoder": "identity", "likelihood": "bernoulli"},
        {"likelihood": "bernoulli", "num_features": 2},
        "tree",
    ),
    "missing": ({"encoder": "linear"}, {"missing": 0.3, "num_outcomes": 2}, "tree"),
}


def simulated(**changes):
    sizes = {"num_leaves": 4, "latent_dim": 2, "num_features": 4, "rows_per_leaf": 20, "seed": 4}
    return tbr.simulate(**(sizes | changes))


def tiny_fit(tree, x, y, env, guide="tree", options=None, **model):
    options = tbr.FitOptions(**(TINY | (options or {})))
    model = tbr.TreeModel(tree, 2, **model)
    return tbr.fit(model, x, y, env, guide=guide, progress=False, options=options)


def answers(posterior, x, env):
    """All that can be asked, by name."""
    new = tbr.NewLeaf("new", posterior.tree.leaves[0])
    predictions = {
        name: posterior.predict(x, where, num_draws=50)
        for name, where in [("rows", env), ("new leaf", new), ("unknown", None)]
    }
    found = {
        f"{name} {part}": np.asarray(getattr(prediction, part))
        for name, prediction in predictions.items()
        for part in ("mean", "sd", "lower", "upper")
    }
    found |= {f"draws of {name}": value for name, value in posterior.sample(7, seed=1).items()}
    return found | {
        "pips": posterior.pips(),
        "deltas": posterior.deltas(),
        "node weights": posterior.node_weights(),
        "history": posterior.history,
        "latents": np.asarray(posterior.encode(x)),
        "summary": str(posterior.summary()),
        "repr": repr(posterior),
        "evidence": posterior.report.evidence,
        "options": posterior.report.options,
    }


def assert_same_answers(one, other):
    """Bit for bit, labels and their types included."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(value, other[name], check_exact=True)
        elif isinstance(value, np.ndarray):
            assert value.dtype == other[name].dtype, name
            assert np.array_equal(value, other[name], equal_nan=True), name
        else:
            assert value == other[name], name


SLOW_CASES = (
    "exact zeros, mean field",
    "fixed by tensors",
    "gaussian, mean field",
    "horseshoe, mean field",
    "missing",
    "encoder object",
)
QUICK_CASES = [name for name in CASES if name not in SLOW_CASES]


@pytest.mark.parametrize(("model", "data", "guide"), mostly_slow(CASES, *QUICK_CASES))
def test_loaded_posterior_gives_the_same_answers(model, data, guide, tmp_path):
    sim = simulated(**data)
    posterior = tiny_fit(sim.tree, sim.x, sim.y, sim.env, guide, **model)
    before = answers(posterior, sim.x, sim.env)
    path = tmp_path / "posterior.pt"
    posterior.save(path)
    own = {"encoder": Own()} if isinstance(model["encoder"], Own) else {}
    loaded = tbr.load(path, **own)
    assert_same_answers(before, answers(loaded, sim.x, sim.env))
    assert loaded.guide.head is loaded.model.head
    assert loaded.tree == sim.tree
    for part in ("prior", "likelihood", "encoder"):
        assert type(getattr(loaded.model, part)) is type(getattr(posterior.model, part))
    assert type(loaded.guide) is type(posterior.guide)
    for one, other in ((posterior.model, loaded.model), (posterior.guide, loaded.guide)):
        assert state_of(one) == state_of(other)
    content = torch.load(path, weights_only=True)
    assert_plain(content)
    loaded.save(path)  # nothing was lost that only a fit knows
    assert_same_state(torch.load(path, weights_only=True), content)


def state_of(module):
    """Names, shapes, dtypes and what is trained; values show in the answers."""
    trained = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    return {
        name: (value.shape, value.dtype, trained.get(name))
        for name, value in module.state_dict().items()
    }


def assert_same_state(one, other):
    """Equal trees of plain values."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, part in one.items():
            assert_same_state(part, other[key])
    elif isinstance(one, list):
        for part, twin in zip(one, other, strict=True):
            assert_same_state(part, twin)
    else:
        assert repr(one) == repr(other)  # NaN is itself


def assert_plain(value):
    assert type(value) in (dict, list, str, int, float, bool, type(None), torch.Tensor)
    if isinstance(value, dict):
        assert all(type(key) is str for key in value)
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            assert_plain(part)


def test_file_names_no_class_but_those_of_tensors(linear, tmp_path):
    linear.save(tmp_path / "posterior.pt")
    with zipfile.ZipFile(tmp_path / "posterior.pt") as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        steps = list(pickletools.genops(archive.read(name)))
    named = {arg for opcode, arg, _ in steps if opcode.name == "GLOBAL"}
    assert named
    assert all(arg.split()[0] in ("torch", "torch._utils", "collections") for arg in named)


ODD_NODES = [
    0, np.int64(1), ("a", 1), ("a", (2, "b")), "CD4+ T/NK", "a.b", "µ-\u2603", " lead", "10", 10,
    2.5, b"raw", np.str_("text"), "it's; (odd):",
]  # fmt: skip


def test_labels_keep_their_types(tmp_path):
    tree = tbr.Tree.from_networkx(nx.DiGraph([("root", node) for node in ODD_NODES]))
    rng = np.random.default_rng(0)
    x = pd.DataFrame(rng.standard_normal((80, 2)), columns=[("x", 1), 7])
    y = pd.DataFrame({"a/b": rng.standard_normal(80), " c": rng.standard_normal(80)})
    env = pd.Series(["10", 10, ("a", 1), "CD4+ T/NK"] * 20)
    posterior = tiny_fit(tree, x, y, env, encoder="identity")
    posterior.save(tmp_path / "odd name.pt")
    (path,) = tmp_path.rglob("*.pt")
    loaded = tbr.load(path)
    assert loaded.tree == tree
    plain = {np.int64: int, np.str_: str}
    for node, back in zip(tree.nodes, loaded.tree.nodes, strict=True):
        assert (type(back), back) == (plain.get(type(node), type(node)), node)
    assert loaded.schema == posterior.schema
    assert loaded.schema.feature_names == (("x", 1), 7)
    assert_same_answers(answers(posterior, x, env), answers(loaded, x, env))
    at = {label: loaded.predict(x[:1], label).mean for label in ("10", 10)}
    assert not at["10"].equals(at[10])


def test_lengths_labels_and_support_of_a_tree_come_back(tmp_path):
    tree = tbr.Tree.from_newick("((a:1,b:0.5)95:0.25,('c d':2,e:1)95:1)root;")
    sim = simulated(num_features=2, tree=tree)
    prior = tbr.SpikeSlabPrior(use_lengths=True)
    posterior = tiny_fit(tree, sim.x, sim.y, sim.env, encoder="identity", prior=prior)
    posterior.save(tmp_path / "posterior.pt")
    loaded = tbr.load(tmp_path / "posterior.pt")
    assert loaded.tree == tree
    assert loaded.tree.lengths == tree.lengths
    assert loaded.tree.support == tree.support != {}
    assert loaded.tree.labels == tree.labels
    assert loaded.tree.to_newick() == tree.to_newick()
    assert_same_answers(answers(posterior, sim.x, sim.env), answers(loaded, sim.x, sim.env))


def test_double_precision_stays(tmp_path):
    sim = simulated(num_features=2)
    posterior = tiny_fit(
        sim.tree, sim.x, sim.y, sim.env, encoder="identity", options={"dtype": "float64"}
    )
    posterior.save(tmp_path / "posterior.pt")
    loaded = tbr.load(tmp_path / "posterior.pt")
    floats = [
        t for t in (*loaded.model.parameters(), *loaded.model.buffers()) if t.is_floating_point()
    ]
    assert {t.dtype for t in floats} == {torch.float64}
    assert loaded.scaling.scale.dtype == torch.float64
    assert_same_answers(answers(posterior, sim.x, sim.env), answers(loaded, sim.x, sim.env))


def test_another_process_reads_the_file(linear, sim, tmp_path):
    linear.save(tmp_path / "posterior.pt")
    np.save(tmp_path / "x.npy", sim.x[:9])
    code = (
        "import numpy as np, pyro_tbr as tbr, torch\n"
        "torch.set_num_threads(1)\n"
        "before = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()\n"
        "posterior = tbr.load('posterior.pt')\n"
        "assert before == (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist())\n"
        "np.save('upper.npy', posterior.predict(np.load('x.npy'), 'leaf3').upper)\n"
    )
    here = os.path.dirname(os.path.dirname(tbr.__file__))
    environment = os.environ | {"PYTHONPATH": here}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
    expected = linear.predict(sim.x[:9], "leaf3").upper
    assert np.load(tmp_path / "upper.npy").tolist() == expected.tolist()


@pytest.fixture(scope="module")
def own():
    """Fitted with a user's encoder."""
    sim = simulated()
    return tiny_fit(sim.tree, sim.x, sim.y, sim.env, encoder=Own())


def test_loaded_posterior_shares_nothing_with_the_module_it_was_given(own, tmp_path):
    own.save(tmp_path / "posterior.pt")
    module, x = Own(), simulated().x
    loaded = tbr.load(tmp_path / "posterior.pt", encoder=module)
    assert torch.equal(module.layer.weight, Own().layer.weight)
    with torch.no_grad():
        module.layer.weight.zero_()
    assert loaded.encode(x).tolist() == own.encode(x).tolist()


class Wider(Own):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.utils.skip_init(torch.nn.Linear, 4, 3)


def test_own_encoder_has_to_be_given(own, linear, tmp_path):
    path = tmp_path / "own.pt"
    own.save(path)
    with pytest.raises(tbr.DataError, match=r"not its class .*Own: load\(path, encoder=module\)"):
        tbr.load(path)
    with pytest.raises(tbr.DataError, match="(?s)encoder does not fit.*size mismatch"):
        tbr.load(path, encoder=Wider())
    linear.save(path)
    with pytest.raises(tbr.DataError, match="leave it out"):
        tbr.load(path, encoder=Own())


def with_tree(posterior, tree):
    """The posterior as if it had been fitted to another tree of the same form."""
    other = posterior.copy()
    other.model.tree = tree
    return other


def renamed(tree, label):
    _, parents, *_ = tree.__reduce__()[1]
    return tbr.Tree((*tree.nodes[:-1], label), parents)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (pd.Timestamp("2020-01-01", tz="UTC"), r"node Timestamp\('2020-01-01 00:00:00.*Timestamp"),
        (frozenset({1}), r"node frozenset\(\{1\}\).*builtins.frozenset"),
        (("a", pd.Timedelta(1, "D")), r"node \('a', Timedelta.*Timedelta"),
        (None, "node None cannot be saved"),
        (3 + 1j, r"node \(3\+1j\).*builtins.complex"),
        (np.datetime64("2020-01-01"), "node .*datetime.date"),
        (np.longdouble(1.5), "node .*numpy.longdouble"),
    ],
)
def test_label_that_would_not_come_back_is_refused(linear, label, message, tmp_path):
    path = tmp_path / "posterior.pt"
    path.write_bytes(b"older")
    with pytest.raises(tbr.DataError, match=message):
        with_tree(linear, renamed(linear.tree, label)).save(path)
    assert path.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["posterior.pt"]


class OwnPrior(tbr.GaussianPrior):
    """A user's prior; what it was made with is in its description."""

    def __init__(self, width=0.3):
        super().__init__(scale=width)
        self.description = {"width": width}


class OwnLikelihood(tbr.GaussianLikelihood):
    """A user's likelihood, with the arguments of the one it comes from."""


class OwnGuide(tbr.MeanFieldGuide):
    """A user's guide."""


class Forgetful(tbr.GaussianPrior):
    """A prior whose description is not that of its own constructor."""

    def __init__(self, width, depth):
        super().__init__(scale=width * depth)


@pytest.mark.parametrize(
    "change",
    [{"prior": OwnPrior(width=0.7)}, {"likelihood": OwnLikelihood(scale=0.2)}, {"guide": OwnGuide}],
)
def test_classes_of_the_user_come_back(change, tmp_path):
    sim = simulated(num_features=2)
    posterior = tiny_fit(sim.tree, sim.x, sim.y, sim.env, **({"encoder": "identity"} | change))
    posterior.save(tmp_path / "posterior.pt")
    assert_plain(torch.load(tmp_path / "posterior.pt", weights_only=True))
    loaded = tbr.load(tmp_path / "posterior.pt")
    for part in ("prior", "likelihood"):
        one, other = (getattr(p.model, part) for p in (posterior, loaded))
        assert type(one) is type(other)
        assert one.description == other.description
    assert type(loaded.guide) is type(posterior.guide)
    assert_same_answers(answers(posterior, sim.x, sim.env), answers(loaded, sim.x, sim.env))


def test_prior_that_cannot_be_made_again_is_refused(tmp_path):
    sim = simulated(num_features=2)
    model = {"encoder": "identity", "prior": Forgetful(0.1, 2)}
    posterior = tiny_fit(sim.tree, sim.x, sim.y, sim.env, **model)
    with pytest.raises(tbr.DataError, match="prior: Forgetful cannot be made again.*pickle"):
        posterior.save(tmp_path / "posterior.pt")
    assert os.listdir(tmp_path) == []


def test_class_that_is_not_imported_is_named(tmp_path):
    sim = simulated(num_features=2)
    posterior = tiny_fit(sim.tree, sim.x, sim.y, sim.env, encoder="identity", prior=OwnPrior())
    path = tmp_path / "posterior.pt"
    posterior.save(path)
    code = "import torch\ntorch.set_num_threads(1)\nimport pyro_tbr\npyro_tbr.load('posterior.pt')"
    environment = os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(tbr.__file__))}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert found.returncode
    assert "DataError: the file has a ArcPrior of class OwnPrior in " in found.stderr
    assert f"import {OwnPrior.__module__} first" in found.stderr


def test_settings_of_the_guide_come_back(linear, tmp_path):
    other = linear.copy()
    other.guide.num_components, other.guide.coupled = 7, False
    other.guide.refresh()
    other.save(tmp_path / "posterior.pt")
    guide = tbr.load(tmp_path / "posterior.pt").guide
    assert (guide.num_components, guide.coupled) == (7, False)


def test_save_that_breaks_off_leaves_the_older_file(linear, sim, tmp_path, monkeypatch):
    path = tmp_path / "posterior.pt"
    linear.save(path)

    def full_disk(content, file):
        file.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        linear.save(path)
    assert os.listdir(tmp_path) == ["posterior.pt"]
    assert tbr.load(path).pips().equals(linear.pips())


def test_save_replaces_and_follows_links(linear, tmp_path):
    (tmp_path / "real.pt").write_bytes(b"older")
    (tmp_path / "link.pt").symlink_to(tmp_path / "real.pt")
    linear.save(str(tmp_path / "link.pt"))
    assert (tmp_path / "link.pt").is_symlink()
    assert tbr.load(tmp_path / "real.pt").pips().equals(linear.pips())
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        linear.save(tmp_path / "no such folder" / "posterior.pt")


def saved_with(posterior, path, **changes):
    posterior.save(path)
    torch.save(torch.load(path, weights_only=True) | changes, path)


def truncated(posterior, path):
    posterior.save(path)
    path.write_bytes(path.read_bytes()[:-2000])


BAD_FILES = {
    "text": (lambda _, path: path.write_text("no model"), "no complete file that Posterior.save"),
    "empty": (lambda _, path: path.write_bytes(b""), "no complete file"),
    "truncated": (truncated, "no complete file"),
    "whole object": (lambda p, path: torch.save(p.report, path), "no complete file"),
    "other dict": (lambda _, path: torch.save({"a": 1}, path), "not one Posterior.save wrote"),
    "tensor": (lambda _, path: torch.save(torch.ones(2), path), "not one Posterior.save wrote"),
    "other library": (
        lambda p, path: saved_with(p, path, library="other"),
        "not one Posterior.save wrote",
    ),
    "newer": (
        lambda p, path: saved_with(p, path, format=7, version="9.1"),
        r"format 7, written by pyro_tbr 9.1, and this pyro_tbr reads format 5: update",
    ),
    "older": (
        lambda p, path: saved_with(p, path, format=1, version="0.1.0"),
        r"format 1, written by pyro_tbr 0.1.0, and this pyro_tbr reads format 5: fit anew, or read",
    ),
}


@pytest.mark.parametrize(("write", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_file_that_is_not_ours_or_of_another_format(write, message, linear, tmp_path):
    path = tmp_path / "file.pt"
    write(linear, path)
    with pytest.raises(tbr.DataError, match=message) as caught:
        tbr.load(path)
    assert "file.pt" in str(caught.value)


def test_missing_file_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        tbr.load(tmp_path / "nowhere.pt")


PLAIN = {
    "numbers": [1, 2.5, True, None, float("inf")],
    "nested tuples": (1, ("a", (b"b", [2])), ()),
    "dicts": {"a": {1: (2,)}, (3, 4): None, "tuple": [1]},
    "large": 2**80,
    "times": (pd.Timestamp("2020-01-02 03:04:05.000000006"), pd.Timestamp("2020")),
}


@pytest.mark.parametrize("value", PLAIN.values(), ids=PLAIN.keys())
def test_plain_values_come_back_as_they_are(value):
    plain = to_plain(value, "value")
    assert_plain(plain)
    assert repr(from_plain(plain)) == repr(value)


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"stage": ["dense", "dense"], "step": [1, 2], "loss": [0.5, float("nan")]}),
        pd.DataFrame(columns=["stage", "step"]),
    ],
)
def test_tables_come_back_as_they_are(frame):
    plain = to_plain(frame, "value")
    assert_plain(plain)
    pd.testing.assert_frame_equal(from_plain(plain), frame, check_index_type=False)


def test_view_does_not_take_its_whole_storage_along(tmp_path):
    big = torch.zeros(1_000_000)
    torch.save(to_plain(big[:3], "value"), tmp_path / "part.pt")
    assert (tmp_path / "part.pt").stat().st_size < 10_000


@pytest.mark.parametrize("described", ["gaussian", {"scale": None}])
def test_a_file_of_format_2_has_common_noise(described, sim, tmp_path):
    likelihood = tbr.GaussianLikelihood(noise="common")
    model = tbr.TreeModel(sim.tree, 2, "identity", likelihood=likelihood)
    posterior = tbr.fit(model, sim.z, sim.y, sim.env, progress=False)
    path = tmp_path / "fit.tbr"
    posterior.save(path)
    content = torch.load(path, weights_only=True)
    content["format"] = 2
    parts = from_plain(content["posterior"]["model"])
    if isinstance(described, str):
        parts["likelihood"] = described
    else:
        parts["likelihood"]["arguments"] = described
    report = from_plain(content["posterior"]["report"])
    report.pop("check")
    content["posterior"] |= {
        "model": to_plain(parts, "model"),
        "report": to_plain(report, "report"),
    }
    torch.save(content, path)
    again = tbr.load(path)
    assert again.model.likelihood.description["noise"] == "common"
    one, two = (p.predict(sim.z[:5], "leaf0") for p in (posterior, again))
    np.testing.assert_array_equal(one.sd, two.sd)
    with pytest.raises(tbr.DataError, match="the fit left no check"):
        again.check()
