"""Error rates and tables: what is counted, what is refused, what is kept."""

import dataclasses
import json
import math

import pytest

from espnet_hra import cli
from espnet_hra.files.tables import read_table
from espnet_hra.report import health
from espnet_hra.report.examples import typical
from espnet_hra.report.results import Row, Utterance, merge
from espnet_hra.report.scoring import (
    Errors,
    ScoringError,
    count_errors,
    errors_by_task,
)


def test_rates_of_a_worked_example():
    # "a bc" against "a bd x": 1 substitution and 2 insertions in 4 characters (the
    # space counts); 1 substitution and 1 insertion in 2 words.
    errors = count_errors([("a bc", "a bd x")])
    assert (errors.characters, errors.character_errors) == (4, 3)
    assert (errors.words, errors.word_errors) == (2, 2)
    assert errors.cer == 75.0 and errors.wer == 100.0


def test_errors_are_summed_before_they_are_divided():
    errors = count_errors([("a", "b"), ("abcdefghi", "abcdefghi")])
    assert errors.cer == pytest.approx(10.0)  # not the mean of 100 % and 0 %


def test_empty_hypotheses_and_references():
    assert count_errors([("ab cd", "")]).cer == 100.0
    errors = count_errors([("", "x yz"), ("ab", "ab")])
    assert errors.character_errors == 4 and errors.word_errors == 2
    assert count_errors([("", "")]).character_errors == 0
    assert math.isnan(count_errors([("", "x")]).cer)


def test_white_space_and_unicode_composition_do_not_count():
    assert count_errors([(" e\u0301  a ", "\u00e9 a")]).character_errors == 0
    assert count_errors([("a", "A")]).character_errors == 1  # case does


@pytest.mark.parametrize(
    "references, hypotheses, utt2task, message",
    [
        ({"u1": "a", "u2": "b"}, {"u1": "a"}, {"u1": "t", "u2": "t"}, "u2.*hypothesis"),
        ({"u1": "a"}, {"u1": "a", "u3": "b"}, {"u1": "t"}, "u3.*no reference"),
        ({"u1": "a"}, {"u1": "a"}, {}, "u1.*no task"),
        ({}, {}, {}, "no references"),
    ],
)
def test_gaps_are_refused_by_name(references, hypotheses, utt2task, message):
    with pytest.raises(ScoringError, match=message):
        errors_by_task(references, hypotheses, utt2task)


def test_a_message_names_a_few_of_many():
    references = {f"u{i:02d}": "a" for i in range(30)}
    with pytest.raises(ScoringError, match=r"30 utterances \(u00, .*u04, \.\.\.\)"):
        errors_by_task(references, {}, dict.fromkeys(references, "t"))


@pytest.fixture
def corpus(tmp_path):
    """References of two tasks in two splits, a good and a bad system, and counts."""
    files = {
        "dev.text": "a1 one two\nb1 drei\n",
        "test.text": "a2 two\nb2 vier f\u00fcnf\n",
        "utt2task": "a1 en\na2 en\nb1 de\nb2 de\n",
        "bad.dev": "a1 one\nb1\n",
        "bad.test": "a2\nb2 vier\n",
        "good.dev": "a1 one two\nb1 drei\n",
        "good.test": "a2 two\nb2 vier f\u00fcnx\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    counts = {"shared": 100, "per_task": {"en": 7, "de": 9}}
    (tmp_path / "params.json").write_text(json.dumps(counts), encoding="utf-8")
    return tmp_path


COUNTS = ("--shared_params", "5", "--task_params", "6")


def run(corpus, method, system, *options):
    arguments = ["--method", method, "--utt2task", str(corpus / "utt2task")]
    for split in ("dev", "test"):
        arguments += ["--ref", f"{split}={corpus / split}.text"]
        arguments += ["--hyp", f"{split}={corpus / system}.{split}"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["score", *arguments, "--out_dir", str(corpus / "exp"), *options])
    return ended.value.code


def test_results_tsv_has_the_agreed_form(corpus):
    assert run(corpus, "none", "bad") == 0
    params = ("--params", str(corpus / "params.json"), "--seed", "1")
    assert run(corpus, "hra", "good", *params) == 0
    lines = (corpus / "exp" / "results.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == (
        "method\ttask\tsplit\tseed\tshared_params\ttask_params\tutterances\twords"
        "\tcer\twer"
    )
    assert lines[1] == "none\tde\tdev\t0\t0\t0\t1\t1\t100.00\t100.00"
    assert lines[7] == "hra\tde\ttest\t1\t100\t9\t1\t2\t11.11\t50.00"
    assert len(lines) == 9


def test_same_rows_are_replaced_and_others_kept(corpus):
    assert run(corpus, "hra", "bad", *COUNTS, "--seed", "1") == 0
    assert run(corpus, "hra", "bad", *COUNTS, "--seed", "2") == 0
    assert run(corpus, "hra", "good", *COUNTS, "--seed", "1") == 0
    rows = read_table(corpus / "exp" / "results.tsv", Row)
    assert [(row.seed, row.split, row.task) for row in rows] == [
        (seed, split, task)
        for seed in (1, 2)
        for split in ("dev", "test")
        for task in ("de", "en")
    ]
    assert rows[0].cer == 0.0 and rows[4].cer == 100.0
    assert not list((corpus / "exp").glob(".*"))  # no temporary files


def test_errors_of_utterances_add_up_and_are_merged_as_rates_are(corpus):
    counts = (*COUNTS, "--report", "false")
    for seed in ("1", "2"):
        assert run(corpus, "hra", "bad", *counts, "--seed", seed) == 0
    assert run(corpus, "none", "bad", *counts) == 0
    (corpus / "good.dev").write_text("a1 one two\nb1 dre\n", encoding="utf-8")
    assert run(corpus, "hra", "good", *counts, "--seed", "1") == 0
    folder = corpus / "exp"
    lines = (folder / "utterances.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == (
        "method\ttask\tsplit\tseed\tutterance\tcharacters\terrors\twords\tword_errors"
    )
    assert lines[1] == "hra\tde\tdev\t1\tb1\t4\t1\t1\t1"
    found = read_table(folder / "utterances.tsv", Utterance)
    assert [line.method for line in found] == ["hra"] * 8 + ["none"] * 4
    for row in read_table(folder / "results.tsv", Row):
        own = [line for line in found if line.key == row.key]
        total = sum(
            (Errors(1, u.words, u.characters, 0, u.errors) for u in own), Errors()
        )
        assert f"{total.cer:.2f}" == f"{row.cer:.2f}"
        assert (total.utterances, total.words) == (row.utterances, row.words)
    assert not (folder / "RESULTS.md").exists()


def test_lines_of_one_key_are_replaced_together():
    def lines(names, errors, seed=1):
        return [Utterance("hra", "a", "test", seed, n, 9, errors, 2, 1) for n in names]

    old = [*lines("xy", 5), *lines("xy", 5, seed=2)]
    merged = merge(old, lines("xz", 1))
    assert merged == [*lines("xz", 1), *lines("xy", 5, seed=2)]


def test_results_md_shows_means_and_changes(corpus):
    (corpus / "times.tsv").write_text("11 hra_a\tadaptation\t42\n", encoding="utf-8")
    run(corpus, "none", "bad")
    params = ("--params", str(corpus / "params.json"), "--seed", "1")
    times = ("--times", str(corpus / "times.tsv"))
    said = ("--note", "a toy", "--command", "x y")
    run(corpus, "hra", "good", *params, *times, *said)
    page = (corpus / "exp" / "RESULTS.md").read_text(encoding="utf-8")
    # dev: (100 + 57.14) / 2 = 78.57 without, 0 with the adapter
    assert "|none|1|0|0|100.0|57.1|78.6||" in page
    assert "|hra|1|100|7-9|0.0|0.0|0.0|-100.0 %|" in page
    assert "**Note:** a toy" in page and "|11|adaptation (hra_a)|42|" in page
    assert "```bash\nx y\n```" in page


@pytest.mark.parametrize(
    "options, message",
    [
        ((), "give --params, or --shared_params and --task_params"),
        (("--params", "/no/such.json"), "/no/such.json cannot be read"),
        (("--params", "{corpus}/utt2task"), "has no counts of parameters"),
        (("--params", "{corpus}/some.json"), "some.json has no parameters of task en"),
        ((*COUNTS, "--ref", "test={corpus}/text"), "test was given before"),
        ((*COUNTS, "--ref", "eval={corpus}/text"), "eval: there must be both --ref"),
        ((*COUNTS, "--ref", "text"), "--ref text: write SPLIT=FILE"),
        ((*COUNTS, "--utt2task", "{corpus}/tab"), "'e\\tn': a table's cells"),
        ((*COUNTS, "--method", "a\tb"), "'a\\tb': a table's cells"),
        ((*COUNTS, "--out_dir", "{corpus}/utt2task"), "cannot write the results"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(corpus, options, message):
    (corpus / "tab").write_text("a1 e\tn\n", encoding="utf-8")
    (corpus / "some.json").write_text('{"shared": 1, "per_task": {"de": 2}}')
    said = run(corpus, "hra", "good", *(o.format(corpus=corpus) for o in options))
    assert said.startswith("espnet-hra score: ") and message in said
    assert "\n" not in said and not (corpus / "exp").exists()


@pytest.mark.parametrize(
    "texts, message",
    [
        ("a2\n", "none, test: 1 utterance (b2) with no hypothesis"),
        ("a2\nb2 x\na2 y\n", "a2: stands in lines 1, 3"),
    ],
)
def test_bad_hypotheses_are_refused(corpus, texts, message):
    (corpus / "bad.test").write_text(texts, encoding="utf-8")
    assert message in run(corpus, "none", "bad")
    assert not (corpus / "exp").exists()


def test_what_others_wrote_is_not_overwritten(corpus):
    table = corpus / "exp" / "results.tsv"
    table.parent.mkdir()
    table.write_text("something\telse\n", encoding="utf-8")
    assert "other columns" in run(corpus, "none", "bad")
    assert table.read_text(encoding="utf-8") == "something\telse\n"


def test_times_that_cannot_be_read_are_named(corpus):
    (corpus / "times.tsv").write_bytes(b"11\tcaf\xe9\t42\n")
    said = run(corpus, "none", "bad", "--times", str(corpus / "times.tsv"))
    assert said.startswith(f"espnet-hra score: {corpus / 'times.tsv'} cannot be read")


def test_an_example_is_the_utterance_nearest_to_its_tasks_rates():
    said = {"u1": "a b c d", "u2": "a b c d", "u3": "a b c d", "u4": "a", "v1": "x y"}
    before = {**said, "u1": "x x x x", "u2": "a b x x", "u4": "x"}  # 100, 50, 0, 100 %
    after = {**said, "u1": "a b c x", "u2": "a b c x"}
    tasks = {u: u[0] for u in said}
    u, v = typical(said, before, after, tasks)
    assert (u.task, u.utterance) == ("u", "u2")  # 54 % before, 15 % after
    assert (u.said, u.before, u.after) == ("a b c d", "a b x x", "a b c x")
    assert v.utterance == "v1"  # the only one, though short


def test_examples_are_printed_and_stand_on_the_page(tmp_path, capsys):
    for name, text in (("ref", "say it"), ("before", "sate"), ("after", "say | it")):
        (tmp_path / name).write_text(f"u1 {text}\n")
    options = ["score", "--method", "hra", "--shared_params", "1", "--task_params", "1"]
    options += ["--ref", f"test={tmp_path}/ref", "--hyp", f"test={tmp_path}/after"]
    options += ["--task", "me", "--out_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        cli.main([*options, "--before", f"test={tmp_path}/before"])
    assert not ended.value.code
    said = "me (u1)\n  said    say it\n  before  sate\n  after   say | it\n"
    assert said in capsys.readouterr().out
    page = (tmp_path / "out" / "RESULTS.md").read_text()
    assert "## Examples" in page and "say \\| it" in page
    with pytest.raises(SystemExit, match="--before dev=.*: there is no --ref of dev"):
        cli.main([*options, "--before", f"dev={tmp_path}/before"])


def test_an_adapter_at_fault_is_a_task_that_needs_a_look(tmp_path, capsys):
    """Whatever its error rates are; until the same system is scored without it."""
    for name in ("ref", "after"):
        (tmp_path / name).write_text("u1 say it\nu2 yes\n")
    (tmp_path / "tasks").write_text("u1 me\nu2 you\n")
    (tmp_path / "faults.tsv").write_text("task\twhy\nme\tits controller is dead\n")
    out = tmp_path / "out"
    options = ["score", "--method", "hra", "--shared_params", "1", "--task_params", "1"]
    options += ["--ref", f"dev={tmp_path}/ref", "--hyp", f"dev={tmp_path}/after"]
    options += ["--utt2task", f"{tmp_path}/tasks", "--out_dir", str(out)]

    def status(*more: str) -> int:
        with pytest.raises(SystemExit) as ended:
            cli.main([*options, *more])
        return ended.value.code or 0

    line = "me (hra, seed 1, dev): its controller is dead"
    faulty = ["--faults", f"dev={tmp_path}/faults.tsv"]
    assert status("--seed", "1", *faulty) == 3
    assert line in capsys.readouterr().err
    assert f"{health.HEADING}\n\n- {line}\n" in (out / "RESULTS.md").read_text()
    # Another system has its own; the page goes on to tell of this one.
    assert status("--seed", "2") == 0
    assert f"- {line}\n" in (out / "RESULTS.md").read_text()
    assert status("--seed", "1") == 0
    assert health.HEADING not in (out / "RESULTS.md").read_text()
    with pytest.raises(SystemExit, match="--faults dev=nowhere: there is no such file"):
        cli.main([*options, "--faults", "dev=nowhere"])


def rated(method, task, split, errors, seed=1):
    """Ten utterances of ten characters with so many errors in all."""
    each = [errors // 10 + (i < errors % 10) for i in range(10)]
    lines = [
        Utterance(method, task, split, seed, f"u{i}", 10, n, 2, min(n, 2))
        for i, n in enumerate(each)
    ]
    row = Row(method, task, split, seed, 0, 0, 10, 20, float(errors), float(errors))
    return row, lines


@pytest.mark.parametrize(
    "frozen, adapted, why",
    [
        (30, 10, None),
        (30, 39, None),  # nine errors more may be chance
        (30, 40, "worse than the frozen backbone, CER 30.0 -> 40.0"),
        (30, 100, "worse than the frozen backbone"),
        (100, 100, "the same errors"),
        (5, 5, None),  # too few to say
    ],
)
def test_a_task_that_became_worse_is_named(frozen, adapted, why):
    parts = [rated("none", "a", "dev", frozen, 0), rated("hra", "a", "dev", adapted)]
    parts += [rated("none", "b", "dev", 30, 0), rated("hra", "b", "dev", 1)]
    # Dev decides where both have it.
    parts += [rated("none", "b", "test", 30, 0), rated("hra", "b", "test", 90)]
    found = health.sick([row for row, _ in parts], sum([n for _, n in parts], []))
    assert [one.task for one in found] == ([] if why is None else ["a"])
    if why is not None:
        assert why in found[0].line() and found[0].line().startswith("a (hra, seed 1, ")
        assert health.section(found).startswith("## Tasks that need a look\n\n- a (hra")


def test_as_many_errors_in_other_utterances_are_chance():
    base, lines = rated("none", "a", "test", 30, 0)
    row, own = rated("hra", "a", "test", 30)
    assert [one.task for one in health.sick([base, row], lines + own)] == ["a"]
    fewer, more = own[0].errors - 1, own[1].errors + 1
    own[0] = dataclasses.replace(own[0], errors=fewer)
    own[1] = dataclasses.replace(own[1], errors=more)
    assert health.sick([base, row], lines + own) == []
