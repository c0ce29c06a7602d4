"""Plans with numbers of tasks, and the page that is made of what came of them."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from espnet_hra.bench import findings
from espnet_hra.bench.quality_counts import nested
from espnet_hra.bench.quality_plan import BenchError, DevRow
from espnet_hra.bench.quality_runs import Comparison
from espnet_hra.files.tables import write_table
from espnet_hra.report.results import Row, Utterance

RECIPE = ROOT / "egs2" / "hra_asr"
PLANS = ("controllers", "prompts", "tasks", "whisper")


def test_more_tasks_hold_the_fewer_and_are_spread_over_all():
    tasks = [f"s{i:03d}" for i in range(125)]
    assert nested(tasks, 1) == ["s000"]
    assert nested(tasks, 4) == ["s000", "s064", "s032", "s096"]
    for fewer, more in ((1, 2), (2, 5), (5, 20), (20, 60), (60, 125)):
        assert set(nested(tasks, fewer)) < set(nested(tasks, more))
    assert sorted(nested(tasks, 125)) == tasks == sorted(nested(tasks, 999))
    assert nested(["a"], 3) == ["a"] and nested([], 3) == []


@pytest.mark.parametrize("name", PLANS)
def test_the_plans_of_open_questions_can_be_run(name, tmp_path):
    plan = yaml.safe_load((ROOT / "conf" / f"findings_{name}.yaml").read_text())
    steps = Comparison(RECIPE, plan, [], tmp_path).steps()
    texts = [(step.part, step.text) for step in steps]
    assert steps and len(set(texts)) == len(texts)
    # Every row that a question names is one of a plan, or a row that is there.
    questions = yaml.safe_load((ROOT / "conf" / "findings.yaml").read_text())[
        "findings"
    ]
    named = {step.name for step in steps}
    for question in questions:
        if f"conf/findings_{name}.yaml" in question["command"]:
            assert set(question["rows"]) <= named


@pytest.fixture
def comparison(tmp_path):
    plan = {
        "corpus": "c",
        "counts": {"config": "hra", "numbers": [1, 2]},
        "newcomers": {"config": "hra", "after": [0, 2], "new": 1, "utterances": [3]},
        "each": {"config": "full", "seeds": [1], "tasks": 3, "together": 2},
    }
    made = Comparison(RECIPE, plan, [], tmp_path)
    for split in ("dev", "test"):
        folder = tmp_path / "c" / "dump" / split
        folder.mkdir(parents=True)
        (folder / "text").write_text("".join(f"u{t} x\n" for t in "abcd"))
        (folder / "utt2task").write_text("".join(f"u{t} {t}\n" for t in "abcd"))
    (tmp_path / "c" / "dump" / "tasks").write_text("a\nb\nc\nd\n")
    return made


def test_trainings_of_so_many_tasks_are_runs_of_the_recipe(comparison, monkeypatch):
    runs, scores = [], []
    monkeypatch.setattr(comparison, "recipe_run", lambda *words: runs.append(words))
    monkeypatch.setattr(comparison, "score", lambda *words: scores.append(words))
    work = comparison.work
    (work / "asr_hra_others2_seed1").mkdir(parents=True)
    best = work / "asr_hra_others2_seed1" / "valid.cer_ctc.ave.pth"
    best.write_text("")
    for step in comparison.steps():
        assert not step.is_done()
        if step.part == "each":  # of which one of two parts is done
            found = [Row("full", t, "test", 1, 1, 1, 1, 1, 1.0, 1.0) for t in "ac"]
            write_table(work / "results.tsv", found, Row)
            (work / "asr_full_2_seed1").mkdir()
            (work / "asr_full_2_seed1" / "latest.pth").write_text("")
        step.run()
    assert not (work / "asr_full_2_seed1" / "latest.pth").exists()
    told = [dict(zip(words[::2], words[1::2])) for words in runs]
    assert [one["--tasks"] for one in told] == [
        *("a", "a c", "a", "b d", "a", "b d", "a", "b"),
    ]
    # A task hears as much: 640,000 samples are for all four.
    bins = [one["--asr_args"] for one in told]
    assert bins[:2] == ["--batch_bins 160000", "--batch_bins 320000"]
    assert bins[-1] == "--batch_bins 640000"  # those of its file
    # New ones come after others, whose controller they take.
    assert told[3]["--stop_stage"] == "11" and "--regime" not in told[2]
    assert told[4]["--regime"] == "new_task"
    assert told[4]["--init_adapter"] == str(best)
    # And once more with few utterances of each.
    assert "--train_utterances" not in told[4]
    few = {"--train_utterances": "3", "--asr_tag": "hra_after2_train3_seed1"}
    assert told[6] == {**told[4], **few}
    names = [words[words.index("--method") + 1] for words in scores]
    after = ["hra_after0", "hra_after2", "hra_after2_train3"]
    assert names == ["hra_n1", "hra_n2", *after, "full"]
    lines = (work / "asr_hra_n2_seed1" / "references" / "test").read_text()
    assert lines == "ua x\nuc x\n"
    rows = [Row("hra_n2", t, "test", 1, 1, 1, 1, 1, 1.0, 1.0) for t in "ac"]
    write_table(work / "results.tsv", rows, Row)
    assert [step.is_done() for step in comparison.steps()] == [
        False,
        True,
        False,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "part, message",
    [
        ({"counts": {"config": "hra"}}, "expected config: CONFIG, seeds: .*numbers"),
        ({"counts": {"config": "hra", "numbers": ["2"]}}, "expected config: CONFIG"),
        ({"newcomers": {"config": "hra", "after": [1]}}, "after: .*new: HOW_MANY"),
        ({"newcomers": {"config": "hra", "after": [1], "new": 0}}, "new: HOW_MANY"),
        (
            {"newcomers": {"config": "hra", "after": [1], "new": 1, "utterances": [0]}},
            "utterances: ",
        ),
        ({"each": {"config": "full", "seeds": [1], "tasks": 3}}, "together: HOW_MANY"),
        ({"counts": {"config": "x", "numbers": [1]}}, "names x: there is neither"),
    ],
)
def test_numbers_that_cannot_be_are_refused(part, message, tmp_path):
    with pytest.raises(BenchError, match=message):
        Comparison(RECIPE, part, [], tmp_path)


# ------------------------------------------------------------------------- the page


def table(folder: Path, *systems: tuple[str, int, list[int]]) -> None:
    """Tables with one task; the errors of each utterance among ten characters."""
    rows, lines = [], []
    for method, seed, errors in systems:
        rate = 100 * sum(errors) / (10 * len(errors))
        row = Row(method, "a", "test", seed, 100, 7, len(errors), 10, rate, rate)
        rows.append(row)
        for i, n in enumerate(errors):
            lines.append(Utterance(*row.key, f"u{i}", 10, n, 1, 0))
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "results.tsv", rows, Row)
    write_table(folder / "utterances.tsv", lines, Utterance)


def asked(tmp_path: Path, **question: object) -> str:
    """The page of one question."""
    usual = {
        "name": "one",
        "title": "Which?",
        "question": "A or B.",
        "command": "espnet-hra bench quality",
        "tables": ["tables"],
        "would_change": "more.",
    }
    path = tmp_path / "findings.yaml"
    path.write_text(yaml.safe_dump({"findings": [{**usual, **question}]}))
    argv = ["--questions", str(path), "--root", str(tmp_path), "--samples", "200"]
    assert findings.main([*argv, "--out", str(tmp_path / "docs")]) == 0
    return (tmp_path / "docs" / "findings.md").read_text()


ROWS = {"hra": "ours", "hra_a": "A", "hra_b": "B", "hra_c": "C"}


def test_answers_are_those_of_the_tables(tmp_path):
    question = {"kind": "compare", "reference": "hra", "rows": ROWS}
    page = asked(tmp_path, **question)
    assert "**Not answered: the runs that would answer it are not there.**" in page
    assert "Not run yet: ours; A; B; C." in page and "![" not in page
    ours = [3, 4, 3, 4, 3, 4, 3, 4, 3, 4]
    better = [n - 2 for n in ours]
    other = ours[1:] + ours[:1]
    table(
        tmp_path / "tables", ("hra", 1, ours), ("hra_a", 1, better), ("hra_b", 1, other)
    )
    page = asked(tmp_path, **question)
    assert (
        "A better (-20.0 [-20.0, -20.0]), one seed; B cannot be told apart (+0.0"
        in page
    )
    assert "|C|not run yet|||||" in page and "Not run yet: C." in page
    assert "|ours|1|100|7|35.0 [" in page
    assert (tmp_path / "docs" / "findings" / "one.png").read_bytes()[1:4] == b"PNG"
    # A picture of the reference alone shows nothing.
    table(tmp_path / "tables", ("hra", 1, ours))
    assert "![" not in asked(tmp_path, **question)
    assert not (tmp_path / "docs" / "findings" / "one.png").exists()
    # Another result, another answer.
    worse = [n + 2 for n in ours]
    table(
        tmp_path / "tables",
        *[(m, s, e) for s in (1, 2, 3) for m, e in (("hra", ours), ("hra_a", worse))],
    )
    page = asked(tmp_path, **question)
    assert "**Beside ours: A worse (+20.0 [+20.0, +20.0]).**" in page


def test_choices_on_dev_are_told_seed_by_seed(tmp_path):
    lines = [
        DevRow("choices", "hra", setting, seed, 2, 300, cer)
        for setting, rates in {
            "as it is": [30, 31],
            "u": [29, 30],
            "g": [31, 29],
        }.items()
        for seed, cer in enumerate(rates, 1)
    ]
    lines.append(DevRow("choices", "hra", "once", 1, 2, 300, 28.0))
    (tmp_path / "tables").mkdir()
    write_table(tmp_path / "tables" / "dev.tsv", lines, DevRow)
    rows = {"as it is": "IndRNN", "u": "none", "g": "gru", "once": "rnn", "no": "gate"}
    page = asked(tmp_path, kind="choices", config="hra", rows=rows)
    assert "none better with each of 2 seeds (-1.0 on average)" in page
    assert "gru undecided, -0.5 on average of 2 seeds" in page
    assert "rnn -2.0 with the one seed that there is, which decides nothing" in page
    assert "|none|2|29.5|-1.0, -1.0|" in page and "Not run yet: gate." in page


def test_labels_stand_beside_the_texts_of_the_same_training(tmp_path):
    ours = [3, 4, 3, 4]
    table(tmp_path / "tables", ("plain", 1, ours), ("hra", 1, ours))
    label = Row("hra", "lang", "test", 1, 100, 9, 8, 8, float("nan"), 12.5)
    path = tmp_path / "tables" / "results.tsv"
    rows = findings.read_table(path, Row)
    write_table(path, [*rows, label], Row)
    names = {"hra": "both"}
    page = asked(tmp_path, kind="labels", reference="plain", rows=names)
    assert "**Lang is told right in 87.5 % of utterances; texts of the same" in page
    assert "training: cannot be told apart (+0.0" in page
    assert "|both|lang|8|9|1|12.5|" in page


def test_numbers_of_tasks_stand_beside_the_same_tasks_in_the_largest_training(tmp_path):
    errors = {1: 4, 2: 3, 4: 2, 16: 2}
    systems = [(f"hra_n{n}", 1, [wrong] * 4) for n, wrong in errors.items()]
    table(tmp_path / "tables", *systems)
    rows = {f"hra_n{n}": n for n in (1, 2, 4, 8, 16)} | {"hra_r16": "all"}
    page = asked(tmp_path, kind="counts", rows=rows)
    assert "in the training of 16, those of a training of 1: worse (+20.0 [" in page
    assert "; of 2: worse (+10.0 [" in page
    assert "the difference changes by -10.00 points (least squares)" in page
    assert "A thousand tasks would have 100 shared parameters and 7,000 of" in page
    assert "Not run yet: 8; all." in page
    assert "|2|1|100|7|114|30.0 [" in page  # 100 + 2 * 7 parameters together
    assert "|4|1|100|7|128|20.0 [" in page
    assert page.index("|4|1|100|7|128|") < page.index("|8|not run yet|")


def test_what_a_controller_remembers_comes_of_what_diagnose_saw(tmp_path):
    def layer(part, number, kept, memory):
        return {"part": part, "layer": number, "kept": kept, "memory": memory}

    def task(more):
        return {
            "layers": [
                layer("encoder", 1, None, None),
                layer("encoder", 2, 0.5 + more, 0.6),
                layer("encoder", 3, 0.9, 0.2 + more),
                layer("decoder", 1, None, 0.1),
                layer("decoder", 2, 0.8, 0.05),
            ]
        }

    folder = tmp_path / "tables"
    folder.mkdir()
    saw = {"tasks": {"a": task(0.0), "b": task(0.2)}}
    (folder / "seen.json").write_text(json.dumps(saw))
    rows = {"seen": "IndRNN", "unseen": "light GRU"}
    page = asked(tmp_path, kind="layers", rows=rows)
    assert "|IndRNN|encoder|3|75.0 %|60.0 %|30.0 %|" in page  # means of both tasks
    assert "|IndRNN|decoder|2|80.0 %|80.0 %|5.0 %|" in page
    assert "|light GRU||not run yet|" in page and "Not run yet: light GRU." in page
    assert (
        "IndRNN, encoder: 30.0 % (a layer keeps 75.0 %); IndRNN, decoder: 5.0 %" in page
    )


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: 1", "expected findings: and a list"),
        ("findings: [{name: x}]", "a question has the keys command, kind, name"),
        (
            "findings: [{name: x, title: y, question: z, command: c, tables: [], "
            "kind: w, rows: {}, would_change: v}]",
            "x: kind: 'w': there are: compare, choices, labels, counts, layers",
        ),
    ],
)
def test_questions_that_cannot_be_are_refused(tmp_path, text, message):
    (tmp_path / "q.yaml").write_text(text)
    with pytest.raises(BenchError, match=message):
        findings.main(["--questions", str(tmp_path / "q.yaml"), "--out", str(tmp_path)])


def test_the_committed_page_is_what_its_tables_say(tmp_path):
    argv = ["--recipe", str(RECIPE), "--root", str(ROOT), "--out", str(tmp_path)]
    assert findings.main(argv) == 0
    committed = (ROOT / "docs" / "findings.md").read_text()
    assert (tmp_path / "findings.md").read_text() == committed
