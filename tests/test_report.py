"""The report: intervals that are right, paired and reproducible; pages that last."""

import sys

import numpy as np
import pytest

from espnet_hra import cli
from espnet_hra.files.tables import write_table
from espnet_hra.report import statistics
from espnet_hra.report.page import BEGIN, END
from espnet_hra.report.results import Results, Row, Utterance
from espnet_hra.report.statistics import ReportError


def make(systems, tasks=("a", "b"), split="test", n=40, noise=0):
    """Tables of systems, given as name: (per-task parameters, rate, seeds)."""
    rows, utterances = [], []
    for t, task in enumerate(tasks):
        draw = np.random.default_rng([noise, t])
        lengths = draw.integers(5, 50, n)
        hardness = draw.uniform(0, 2, n)
        for method, (size, rate, seeds) in systems.items():
            for seed in seeds:
                errors = np.random.default_rng([t, seed, noise]).binomial(
                    lengths, np.clip(rate * hardness, 0, 1)
                )
                total = 100.0 * errors.sum() / lengths.sum()
                rows.append(
                    Row(method, task, split, seed, 10, size, n, n, total, total)
                )
                utterances += [
                    Utterance(method, task, split, seed, f"u{i}", int(c), int(e), 1, 1)
                    for i, (c, e) in enumerate(zip(lengths, errors))
                ]
    return Results(rows, utterances)


SYSTEMS = {"none": (0, 0.4, [0]), "hra": (100, 0.2, [1, 2]), "lora_r4": (90, 0.3, [1])}


def test_resampled_rates_have_the_mean_and_spread_of_their_kind():
    # Equal lengths: the rate is a mean of n numbers; its standard error is known.
    errors = np.random.default_rng(1).integers(0, 10, (200, 1)).astype(float)
    lengths = np.full(200, 10.0)
    rates = statistics.resample(errors, lengths, 4000, np.random.default_rng(0))
    assert rates.mean() == pytest.approx(10 * errors.mean(), rel=0.01)
    assert rates.std() == pytest.approx(10 * errors.std() / 200**0.5, rel=0.05)


def test_a_resample_is_the_same_for_all_methods_and_in_blocks():
    errors = np.stack([np.arange(30.0), np.arange(30.0) + 1], axis=1)
    lengths = np.full(30, 10.0)
    rates = statistics.resample(errors, lengths, 50, np.random.default_rng(0))
    # One error more in every utterance is 10 points more, whatever is drawn.
    assert np.allclose(rates[:, 1] - rates[:, 0], 10.0)
    many = statistics.resample(errors, lengths, 100_000, np.random.default_rng(0))
    assert np.array_equal(many[:50], rates)


def test_differences_are_paired_means_over_tasks_and_seeds():
    results = make(SYSTEMS)
    found = statistics.systems(results, "test", samples=2000)
    delta, tasks = found["lora_r4"].difference(found["hra"])
    assert tasks == ["a", "b"]
    rate = {  # by hand: sum over utterances, mean over seeds, mean over tasks
        method: np.mean(
            [
                np.mean([r.cer for r in results.rows if (r.method, r.task) == key])
                for key in ((method, "a"), (method, "b"))
            ]
        )
        for method in SYSTEMS
    }
    assert found["hra"].mean("ab").value == pytest.approx(rate["hra"], abs=1e-9)
    assert delta.value == pytest.approx(rate["lora_r4"] - rate["hra"], abs=1e-9)
    assert delta.low < delta.value < delta.high
    # Hard utterances are hard for both: pairing must make the interval narrower.
    one, other = found["hra"].mean("ab"), found["lora_r4"].mean("ab")
    apart = np.hypot(one.high - one.low, other.high - other.low)
    assert delta.high - delta.low < 0.8 * apart
    again = statistics.systems(results, "test", samples=2000)
    assert again["lora_r4"].difference(again["hra"])[0] == delta
    fewer = Results(results.rows, [u for u in results.utterances if u.task == "a"])
    alone = statistics.systems(fewer, "test", samples=2000)
    assert np.array_equal(alone["hra"].resampled["a"], found["hra"].resampled["a"])


def test_words_have_rates_and_intervals_of_their_own():
    lines = {"hra": [(4, 1), (6, 3)], "none": [(4, 4), (6, 6)]}
    results = Results(
        [Row(m, "a", "test", 1, 1, 1, 2, 10, 50.0, 99.0) for m in lines],
        [
            Utterance(m, "a", "test", 1, f"u{i}", 20, 10, words, wrong)
            for m, own in lines.items()
            for i, (words, wrong) in enumerate(own)
        ],
    )
    found = statistics.systems(results, "test", samples=500, measure="wer")
    assert found["hra"].rates == {"a": 40.0} and found["none"].rates == {"a": 100.0}
    delta, _ = found["none"].difference(found["hra"])
    # One utterance or the other twice: 75 % or 50 % better.
    assert (delta.low, delta.value, delta.high) == (50.0, 60.0, 75.0)
    assert statistics.systems(results, "test")["hra"].rates == {"a": 50.0}


def test_intervals_cover_the_truth():
    truth = 100 * 0.3
    hits = 0
    for trial in range(60):
        results = make({"hra": (1, 0.3, [1])}, tasks=("a",), n=60, noise=trial)
        interval = statistics.systems(results, "test", 400)["hra"].mean("a")
        hits += interval.low <= truth <= interval.high
    assert hits >= 50  # 57 are expected


def test_only_the_same_utterances_are_compared():
    results = make(SYSTEMS)
    other = [
        (
            u
            if u.method != "lora_r4" or u.task == "b"
            else Utterance(*(u.key), "v" + u.utterance, u.characters, u.errors, 1, 1)
        )
        for u in results.utterances
    ]
    found = statistics.systems(Results(results.rows, other), "test", samples=100)
    delta, tasks = found["lora_r4"].difference(found["hra"])
    assert tasks == ["b"] and not np.isnan(delta.value)
    # A seed without its utterances: rates stay, intervals go.
    some = [u for u in results.utterances if (u.method, u.seed) != ("hra", 2)]
    found = statistics.systems(Results(results.rows, some), "test", samples=100)
    assert found["hra"].mean("ab").text() == f"{found['hra'].mean('ab').value:.1f}"
    assert np.isnan(found["none"].difference(found["hra"])[0].value)


def test_the_reference_is_the_best_on_dev_of_those_called_hra():
    test = make({**SYSTEMS, "hra_x": (200, 0.1, [1]), "hra_part": (1, 0.01, [1])})
    part = [r for r in test.rows if r.method != "hra_part" or r.task == "a"]
    dev = make({"hra": (100, 0.1, [1, 2]), "hra_x": (200, 0.3, [1])}, split="dev")
    results = Results([*part, *dev.rows], [*test.utterances, *dev.utterances])
    found = statistics.systems(results, "test", samples=10)
    rates = statistics.selection_rates(results, "test")
    assert statistics.choose_reference(found, None, rates) == "hra"
    assert statistics.choose_reference(found, "hra_x", rates) == "hra_x"
    assert statistics.choose_reference(found, "lora", rates) == "lora_r4"
    only = Results(part, test.utterances)  # without dev, the split itself
    rates = statistics.selection_rates(only, "test")
    assert statistics.choose_reference(found, None, rates) == "hra_x"
    with pytest.raises(ReportError, match="--reference x: no such method; there are"):
        statistics.choose_reference(found, "x", rates)
    frozen = {"none": found["none"]}
    assert statistics.choose_reference(frozen, None, rates) == "none"


@pytest.fixture
def tables(tmp_path):
    """The two tables of some systems."""
    results = make(SYSTEMS)
    write_table(tmp_path / "results.tsv", results.rows, Row)
    write_table(tmp_path / "utterances.tsv", results.utterances, Utterance)
    return tmp_path


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", *map(str, arguments)])
    return ended.value.code


def test_everything_is_made_of_the_tables_alone_and_twice_the_same(tables, tmp_path):
    assert not run(tables / "results.tsv", "--samples", "200")
    names = ["RESULTS.md", "results.png", "results.svg", "tradeoff.png", "tradeoff.svg"]
    first = {name: (tables / name).read_bytes() for name in names}
    page = first["RESULTS.md"].decode("utf-8")
    assert "![CER of each task, test](results.png)" in page
    assert "](tradeoff.png)" in page
    assert "## Comparison with hra on test" in page
    row = next(
        line for line in page.splitlines() if line.startswith("|lora_r4|1|90|2|")
    )
    assert row.count("[") == 4 and row.endswith(" %|") and row.count("|+") >= 2
    assert "|method|seeds|shared|per task|a|b|mean|change|" in page
    for name in ("results.svg", "tradeoff.svg"):
        assert b"<svg" in first[name]
    assert first["results.png"].startswith(b"\x89PNG")
    other = tmp_path / "elsewhere"
    assert not run(tables, "--samples", "200", "--out_dir", other)
    for name in names[1:]:
        assert (other / name).read_bytes() == first[name]


def test_what_people_write_around_the_tables_stays(tables):
    page = tables / "RESULTS.md"
    page.write_text(f"# Mine\n\nWords.\n\n{BEGIN}\nold\n{END}\n\n## Time\n\nlong\n")
    assert not run(tables, "--samples", "50")
    text = page.read_text()
    assert text.startswith(f"# Mine\n\nWords.\n\n{BEGIN}\n")
    assert text.endswith(f"{END}\n\n## Time\n\nlong\n") and "old" not in text
    assert not run(tables, "--samples", "50") and page.read_text() == text
    page.write_text("# By hand\n")
    assert "was not written by this program" in run(tables)
    assert page.read_text() == "# By hand\n"
    page.write_bytes("# caf\u00e9\n".encode("latin-1"))
    assert f"{page} cannot be read" in run(tables)


def test_many_tasks_and_methods_without_utterances(tmp_path, capsys):
    rows = [
        Row(method, f"t{i:02d}", "test", 1, 0, 10 * (m + 1), 1, 1, 10.0 + m, 10.0)
        for i in range(50)
        for m, method in enumerate(["none", *"abcdefgh", "a_x", "hra"])
    ]
    write_table(tmp_path / "results.tsv", rows, Row)
    assert not run(tmp_path)
    assert "no intervals" in capsys.readouterr().out
    page = (tmp_path / "RESULTS.md").read_text()
    assert "||none|a|b|" in page and "|a_x|1|100|50|19.0|||" in page
    assert "\n|t49|10.0|11.0|" in page  # many tasks become rows


def test_many_methods_of_which_none_has_all_tasks_are_drawn(tmp_path):
    rows = [Row(f"m{i}", f"t{i}", "test", 1, 1, i, 1, 1, 5.0, 5.0) for i in range(9)]
    write_table(tmp_path / "results.tsv", rows, Row)
    assert not run(tmp_path)
    assert (tmp_path / "results.png").exists()
    assert not (tmp_path / "tradeoff.png").exists()  # there is no mean to show


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["/no/such/results.tsv"], "there is no table /no/such/results.tsv"),
        (["--split", "eval"], "no such data set; there are: test"),
        (["--reference", "x"], "no such method; there are: none, hra, lora_r4"),
    ],
)
def test_mistakes_are_one_line(tables, monkeypatch, arguments, message):
    monkeypatch.chdir(tables)
    said = run(*arguments)
    assert said.startswith("espnet-hra report: ") and message in said
    assert "\n" not in said and not (tables / "RESULTS.md").exists()


def test_pictures_without_matplotlib_name_the_command_that_installs_it(
    tables, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'espnet-hra[plots]'" in run(tables)


def test_a_task_that_is_called_mean_is_not_the_mean(tmp_path):
    results = make(SYSTEMS, tasks=("a", "mean"))
    results.write(tmp_path)
    assert not run(tmp_path, "--samples", "50")
    page = (tmp_path / "RESULTS.md").read_text()
    assert "|method|seeds|shared|per task|a|mean|mean of all tasks|change|" in page
    row = next(line for line in page.splitlines() if line.startswith("|hra|2|10|"))
    a, mean, of_all = map(float, row.split("|")[5:8])
    assert of_all == pytest.approx((a + mean) / 2, abs=0.06)
    assert b"mean of all tasks" in (tmp_path / "results.svg").read_bytes()
