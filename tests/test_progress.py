"""What long work shows: a line that moves, a line a stage, or nothing; and what it logs."""

import importlib
import io
import logging
import threading
from types import SimpleNamespace

import pytest

import pyro_tbr as tbr
import pyro_tbr.progress.telling as telling
import pyro_tbr.progress.work as work
from pyro_tbr.progress import aside, beat, detail, querying, stage, step, working
from pyro_tbr.progress.stages import duration
from pyro_tbr.progress.work import LOGGER, Work

OPTIONS = tbr.FitOptions(restarts=4, sparse_steps=20, max_steps=40, cross_fit=2)
STAGES = ["dense stage", "honest latents", "rotation", "sparse stage", "checks"]


class Terminal(io.StringIO):
    """A stream that lines can be drawn on over and over."""

    def isatty(self):
        return True

    def lines(self):
        """All that was drawn, one after the other, without trailing blanks."""
        return [line.rstrip() for line in self.getvalue().split("\r") if line.strip()]


class Clock:
    """Time as the test says."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def terminal(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(telling, "sys", SimpleNamespace(stderr=stream))
    return stream


@pytest.fixture
def plain(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(telling, "sys", SimpleNamespace(stderr=stream))
    return stream


def some_work(clock, seconds=1.0):
    """Two stages of a plan, the second one with ten steps."""
    with working("fit", show=True, plan={"first": 30, "second": 70}, clock=clock):
        with stage("first"):
            clock.now += 3
        with stage("second", total=10):
            for _ in range(10):
                clock.now += seconds
                step()


def test_the_line_says_stage_count_share_and_time_left(terminal, clock):
    some_work(clock)
    assert "fit   0%|          | 0:00, 1 of 2 first" in terminal.lines()
    # 30 % by the plan, and four tenths of the other 70 %; four steps took 4 s, six are left.
    assert (
        "fit  58%|#####8    | 0:07, 2 of 2 second (about 0:06 left): step 4 of 10"
        in terminal.lines()
    )


def test_the_line_is_gone_at_the_end(terminal, clock):
    some_work(clock)
    last = terminal.getvalue().split("\r")[-2:]
    assert last[0].strip() == last[1] == ""
    assert "\n" not in terminal.getvalue()


def test_it_is_drawn_five_times_a_second_at_most_however_many_steps(terminal, clock):
    with working("fit", show=True, total=1000, clock=clock):
        for _ in range(1000):
            clock.now += 0.001
            step()
    texts = {line for line in terminal.lines() if "step" in line}
    assert 5 <= len(texts) <= 6


def test_where_there_is_no_terminal_a_line_a_stage(plain, clock):
    some_work(clock)
    assert plain.getvalue().splitlines() == [
        "fit: 1 of 2, first (0:00 so far)",
        "fit: 2 of 2, second (0:03 so far)",
        "fit: done in 0:13",
    ]


def test_in_a_notebook_the_line_is_drawn(monkeypatch, clock):
    kind = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})
    stream = kind()
    monkeypatch.setattr(telling, "sys", SimpleNamespace(stderr=stream))
    some_work(clock)
    assert "2 of 2 second" in stream.getvalue()
    assert "\r" in stream.getvalue()


def test_without_any_stream_nothing_is_shown(monkeypatch, clock):
    monkeypatch.setattr(telling, "sys", SimpleNamespace(stderr=None))  # as under pythonw
    some_work(clock)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing_behind(terminal, clock, error):
    threads = threading.active_count()

    def stopped():
        with working("fit", show=True, plan={"a": 1, "b": 1}), stage("a", total=3), stage("inside"):
            step()
            raise error

    with pytest.raises(error):
        stopped()
    assert terminal.getvalue().split("\r")[-2].strip() == ""
    assert threading.active_count() == threads
    drawn = terminal.getvalue()
    with stage("of no work"):
        step()
        beat()
        detail("nobody hears this")
    with aside():
        pass
    assert terminal.getvalue() == drawn


def test_work_goes_on_after_an_exception_that_is_caught(terminal, clock):
    with working("fit", show=True, plan={"first": 1, "second": 1}, clock=clock):
        with pytest.raises(ValueError, match="given up"), stage("first"), stage("inside"):
            raise ValueError("given up")
        clock.now += 1
        with stage("second"):
            pass
    assert "fit  50%|#####     | 0:01, 2 of 2 second" in terminal.lines()


def test_stages_of_the_plan_that_are_left_out_are_done(terminal, clock):
    with working("fit", show=True, plan={"one": 25, "two": 25, "three": 50}, clock=clock):
        clock.now += 1
        with stage("three"):
            pass
    assert "fit  50%|#####     | 0:01, 3 of 3 three" in terminal.lines()


def test_a_stage_of_unknown_length_moves_on_and_never_back(terminal, clock):
    shares = []
    with working("fit", show=True, plan={"one": 1, "two": 1}, clock=clock), stage("one", about=10):
        for _ in range(50):
            clock.now += 1
            step()
            shares.append(int(terminal.lines()[-1].split("%")[0].split()[-1]))
    assert shares == sorted(shares)
    assert 20 < shares[9] < 40  # as many steps as it mostly takes are most of it
    assert shares[-1] == 50
    assert terminal.lines()[-1].endswith("1 of 2 one: step 50")  # no time left: nobody knows


def test_steps_of_another_kind_are_no_steps_of_this_stage(terminal, clock):
    with (
        working("fit", show=True, plan={"all": 1}, clock=clock),
        stage("all", total=4, unit="fold"),
    ):
        for _ in range(3):
            clock.now += 1
            step(unit="sweep")
        assert terminal.lines()[-1].endswith("fold 0 of 4")
        clock.now += 1
        step(unit="fold", note="loss 0.5")
        assert terminal.lines()[-1].endswith("fold 1 of 4, loss 0.5")


def test_work_asked_for_by_other_work_is_a_part_of_that(terminal, clock):
    with working("compare", show=True, plan={"given": 1, "star": 1}, clock=clock):
        for name in ("given", "star"):
            with (
                stage(name, total=1),
                working("fit", show=False, plan={"a": 1, "b": 1}, clock=clock),
                stage("b"),
            ):
                clock.now += 1
                beat()
    assert "compare  25%|##5       | 0:01, 1 of 2 given (about 0:01 left): b" in terminal.lines()
    assert "compare  75%|#######5  | 0:02, 2 of 2 star (about 0:01 left): b" in terminal.lines()


def test_threads_do_not_see_each_others_work(terminal, clock):
    seen = []

    def other():
        step()
        seen.append(telling._WORK.get())

    with working("fit", show=True, total=4, clock=clock):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert telling._WORK.get().stages[0].done == 0
    assert seen == [None]


def test_a_second_without_a_step_is_drawn_too(terminal, clock):
    class Waits:
        """Two seconds pass, then it is time to stop."""

        left = 2

        def wait(self, seconds):
            clock.now += seconds
            self.left -= 1
            return self.left < 0

    with working("fit", show=True, total=4, clock=clock):
        before = len(terminal.lines())
        telling._WORK.get().tick(Waits())
        times = [line.split("| ")[-1][:4] for line in terminal.lines()[before:]]
    assert times == ["0:01", "0:02"]


def test_a_warning_meets_a_line_that_is_out_of_its_way(terminal, clock):
    with working("fit", show=True, total=4, clock=clock):
        with aside():
            assert terminal.getvalue().split("\r")[-2].strip() == ""
            terminal.write("a warning\n")
        assert terminal.lines()[-1].startswith("fit")


def test_a_question_shows_nothing_for_two_seconds_and_then_a_line(terminal, clock):
    with working("summary", show=True, total=1, patience=2.0, clock=clock):
        with stage("draws", total=10, unit="draw"):
            for _ in range(4):
                clock.now += 0.4
                step(unit="draw")
            assert terminal.lines() == []
            clock.now += 0.8
            beat()
            assert terminal.lines() == [
                "summary  40%|####      | 0:02, draws (about 0:04 left): draw 4 of 10"
            ]
    assert terminal.getvalue().split("\r")[-2].strip() == ""


def test_a_question_is_quiet_where_there_is_no_terminal(plain, caplog):
    caplog.set_level(logging.INFO, logger="pyro_tbr")
    with querying("summary"), stage("draws"):
        step()
    assert plain.getvalue() == ""
    assert not caplog.records  # of level DEBUG


def test_stages_and_their_seconds_are_logged(caplog, plain, clock):
    caplog.set_level(logging.DEBUG, logger="pyro_tbr")
    with working("fit", show=False, plan={"first": 1, "second": 1}, clock=clock):
        with stage("first"), stage("inside"):
            clock.now += 2
            detail("%d things", 3)
        with stage("second"):
            clock.now += 1
    found = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert found == [
        ("INFO", "fit begins"),
        ("INFO", "fit: first begins (1 of 2)"),
        ("DEBUG", "fit: inside begins"),
        ("DEBUG", "fit: 3 things"),
        ("DEBUG", "fit: inside took 2.00 s"),
        ("INFO", "fit: first took 2.00 s"),
        ("INFO", "fit: second begins (2 of 2)"),
        ("INFO", "fit: second took 1.00 s"),
        ("INFO", "fit took 3.00 s"),
    ]
    assert {record.name for record in caplog.records} == {"pyro_tbr"}
    assert plain.getvalue() == ""


def test_a_record_does_not_end_up_in_the_middle_of_the_line(terminal, clock):
    handler = logging.StreamHandler(terminal)
    LOGGER.addHandler(handler)
    try:
        LOGGER.setLevel(logging.INFO)
        some_work(clock)
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(logging.NOTSET)
    printed = [line for line in terminal.getvalue().split("\r") if "\n" in line]
    assert printed[1].startswith("fit: first begins (1 of 2)\n")
    assert not any(line.split("\n")[0].count("|") for line in printed)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.fixture(scope="module")
def rows():
    return tbr.simulate(num_leaves=4, latent_dim=2, num_features=4, rows_per_leaf=20, seed=0)


@pytest.fixture(scope="module")
def shown_fit(rows):
    """A whole fit with all stages, its lines, records, and how often each stage said something."""
    said, records, stream = {}, [], Terminal()
    handler = logging.Handler(logging.DEBUG)
    handler.emit = records.append

    def show(self, *, now=False, show=Work.show):
        where = ": ".join(one.name for one in self.stages[1:] if one.name)
        said[where] = said.get(where, 0) + 1
        show(self, now=now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(telling, "sys", SimpleNamespace(stderr=stream))
        patch.setattr(Work, "show", show)
        patch.setattr(work, "_REDRAWN", 0.0)
        patch.setattr(LOGGER, "level", logging.DEBUG)
        LOGGER.addHandler(handler)
        LOGGER.manager._clear_cache()
        model = tbr.TreeModel(rows.tree, 2, encoder="mlp")
        posterior = tbr.fit(model, rows.x, rows.y, rows.env, options=OPTIONS)
        LOGGER.removeHandler(handler)
    LOGGER.manager._clear_cache()
    return stream.lines(), records, said, posterior


def test_a_fit_announces_every_stage_in_order(shown_fit):
    lines, records, _, _ = shown_fit
    infos = [record.getMessage() for record in records if record.levelno == logging.INFO]
    begun = [text.split(": ")[1].split(" begins")[0] for text in infos if "begins (" in text]
    assert begun == STAGES
    for number, name in enumerate(STAGES, start=1):
        assert any(f"{number} of 5 {name}" in line for line in lines)


def test_every_long_loop_of_a_fit_says_that_it_goes_on(shown_fit):
    _, _, said, _ = shown_fit
    at_least = {
        "dense stage: all rows: training": 20,  # steps, half as many from a start
        "honest latents: fold 2 of 2: training": 30,
        "rotation: search": 3,  # every hundred steps
        "rotation: climb": 30,  # passes along trees
        "rotation: weights of bases": 2,
        "sparse stage: first weights": 30,
        "sparse stage: encoder: training": 20,
        "sparse stage: last weights": 20,
        "checks": 30,
    }
    assert {
        name: said.get(name, 0) for name in at_least if said.get(name, 0) < at_least[name]
    } == {}


def test_the_share_of_a_fit_never_goes_back(shown_fit):
    lines, _, _, _ = shown_fit
    shares = [int(line.split("%")[0].split()[-1]) for line in lines]
    assert shares == sorted(shares)
    assert shares[-1] >= 99


def test_a_fit_logs_what_it_chose(shown_fit):
    _, records, _, _ = shown_fit
    details = [record.getMessage() for record in records if record.levelno == logging.DEBUG]
    for part in ("rows held out fit", "log evidence", "sweeps", "held-out rows"):
        assert any(part in text for text in details), part


def test_without_progress_nothing_is_printed(rows, capsys):
    model = tbr.TreeModel(rows.tree, 2, encoder="identity")
    tbr.fit(model, rows.z, rows.y, rows.env, progress=False, options=OPTIONS)
    assert capsys.readouterr() == ("", "")


def stages_shown(stream):
    """The stages by their lines, which are gone afterwards."""
    lines = [line.split(" (")[0] for line in stream.getvalue().splitlines()]
    stream.seek(0)
    stream.truncate()
    assert "done in" in lines.pop()
    return lines


def test_other_calls_name_their_stages(rows, shown_fit, plain, monkeypatch):
    model = tbr.TreeModel(rows.tree, 2, encoder="linear")
    data = rows.x, rows.y, rows.env
    options = tbr.FitOptions(restarts=4, sparse_steps=0, max_steps=1)
    tbr.choose_latent_dim(model, *data, [1, 2], num_folds=2, options=options)
    assert stages_shown(plain) == [
        "choose_latent_dim: 1 of 2, encoders",
        "choose_latent_dim: 2 of 2, numbers",
    ]
    *_, posterior = shown_fit
    tbr.average_bases(posterior, max_bases=1)
    assert stages_shown(plain) == [
        "average_bases: 1 of 4, latents in use",
        "average_bases: 2 of 4, weights of bases",
        "average_bases: 4 of 4, weights of each",
    ]
    with pytest.warns(tbr.ConvergenceWarning, match="have not settled"):
        tbr.sample_posterior(posterior, num_chains=2, num_sweeps=40)
    assert stages_shown(plain) == [
        "sample_posterior: 1 of 2, chains",
        "sample_posterior: 2 of 2, convergence",
    ]
    compare = importlib.import_module("pyro_tbr.evaluation.compare_trees")
    monkeypatch.setattr(compare, "fit", lambda *_, **__: posterior)  # its own lines are tested
    tbr.compare_trees(model, *data, num_folds=2, options=options)
    assert stages_shown(plain) == [
        "compare_trees: 1 of 4, given",
        "compare_trees: 2 of 4, star",
        "compare_trees: 3 of 4, no sharing",
        "compare_trees: 4 of 4, one environment",
    ]
