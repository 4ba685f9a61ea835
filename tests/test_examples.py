"""Every example runs, with tiny arguments, and its numbers lie where they should."""

import importlib.util
import math
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
DATA = EXAMPLES.parents[1] / "shared" / "data"


def run(name, *arguments):
    """Numbers that ``main`` of an example returns."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([str(argument) for argument in arguments])


def data(name):
    """Folder of a data set; the test is skipped where it is not there."""
    if not (DATA / name).is_dir():
        pytest.skip(f"no data set at {DATA / name}")
    return DATA / name


def test_quickstart(capsys):
    found = run("quickstart", "--rows-per-leaf", 50, "--restarts", 16)
    assert found["mcc"] > 0.99
    assert found["auroc"] > 0.9
    assert found["mean_pip_changed"] > 0.6 > 0.2 > found["mean_pip_unchanged"]
    assert found["coverage"] > 0.5  # of one leaf, whose rows are right or wrong together
    # Where nothing was measured the model is less sure.
    assert found["width_new_leaf"] > 2 * found["width_known_leaf"]
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("held out", "PIP", "MCC", "coverage"))


def test_cell_types(capsys):
    found = run(
        *("cell_types", "--data", data("neurons_m1"), "--seeds", 1, "--max-folds", 1),
        *("--held-out-leaves", 1, "--max-outcomes", 2, "--latent-dim", 2, "--components", 2),
        *("--restarts", 4),
    )
    # As many latents as components, so that there is no encoder to learn; references near 0.4.
    assert 0.3 < found["r2"] < 0.6
    assert found["r2"] > found["r2_pooled"] - 0.1
    assert 0.8 < found["coverage"] < 0.98
    assert 0.5 < found["held_out_coverage"] <= 1
    assert found["expected_changes_intercept"] > 1
    assert found["largest_pip"] > 0.9
    assert "Expected number of changes" in capsys.readouterr().out


def test_antibiotic_resistance(capsys):
    found = run(
        *("antibiotic_resistance", "--data", data("erythromycin_firmicutes")),
        *("--genera", "Clostridioides", "--latent-dim", 1, "--components", 4, "--restarts", 2),
    )
    assert 0.9 < found["auroc_pooled"] < 1  # the data's README: 0.9934 with its own scaling
    assert 0 <= found["auroc"] <= 1
    assert -5 < found["log_score"] < 0
    assert 0 <= found["brier"] <= 1
    assert all(math.isfinite(value) for value in found.values())
    assert "Who wins" in capsys.readouterr().out


def test_calibration(capsys):
    found = run(
        *("calibration", "--settings", "half", "--fits", 1, "--restarts", 8, "--compare"),
    )
    row = found["table"].iloc[0]
    assert row["worst MCC"] > 0.9
    assert row["AUROC"] > 0.9
    assert row["95 % sets right"] > 0.8
    assert row["false at FDR 0.05"] < 0.25
    bins = found["reliability"]["half"]
    assert bins["true_share"].iloc[-1] > 0.9
    assert bins["true_share"].iloc[0] < 0.03
    scores = found["held_out"]["log score"].droplevel("setting")
    assert scores["tree of sparse changes"] > scores["pooled"]
    assert "leaf by leaf" in capsys.readouterr().out


def test_how_many_environments(capsys, tmp_path):
    found = run(
        *("how_many_environments", "--leaves", 4, 16, "--latents", 2, "--outcomes", 3),
        *("--seeds", 1, "--restarts", 8, "--rotation-steps", 300, "--csv", tmp_path / "fits.csv"),
    )
    assert found["table"]["median_mcc"].loc[16].item() > 0.95
    assert found["found"] + found["not_found"] == 2
    assert len((tmp_path / "fits.csv").read_text().splitlines()) == 3
    assert "false alarms" in capsys.readouterr().out


def test_rivals(capsys, tmp_path):
    found = run(
        *("rivals", "--settings", 0.3, "--seeds", 1, "--leaves", 8, "--latent-dim", 2),
        *("--features", 6, "--rows-per-leaf", 60, "--held-out", 2, "--csv", tmp_path / "runs.csv"),
        *("--methods", "ours", "l1_tbr", "dense_tree", "pooled", "irm"),
    )
    means = found["means"].loc["0.3"]
    assert means["r2"].loc[["ours", "l1_tbr"]].min() > 0.99
    assert means["held_out_mse"].gt(0).all()
    assert math.isnan(means["held_out_log_score"]["irm"])  # it has no distribution
    assert ("0.3", "pooled", "held_out_log_score") in found["differences"].index
    assert len((tmp_path / "runs.csv").read_text().splitlines()) == 6
    assert "Worst MCC" in capsys.readouterr().out
