"""The benches of the server: what they count, and a short run of each."""

import concurrent.futures
import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from adaptations import make_adaptation
from serving import ask

from espnet_hra import cli
from espnet_hra.bench import auto, serve
from espnet_hra.bench.auto import Utterance
from espnet_hra.bench.serve_load import Block, serving
from espnet_hra.errors import ConfigError, DataError
from espnet_hra.serve.engine import Heard
from espnet_hra.tasks.voice import Likeness

pytest.importorskip("fastapi")


def utterance(task, said, like=None, **heard):
    """What candidates heard: a text and a confidence each; `base` is the base.

    `like`: by candidate, likelihood and distance of its voice.
    """
    found = {
        None if name == "base" else name: Heard(text, score=sure, steps=1)
        for name, (text, sure) in heard.items()
    }
    like = like and {name: Likeness(*values) for name, values in like.items()}
    return Utterance("u", task, said, found, like, 1.0, 3.0)


DATA = [
    # The right task is surest and right.
    utterance("a", "one two", base=("x", -0.9), a=("one two", -0.1), b=("y", -0.8)),
    # Another is a little surer than the base, and wrong.
    utterance("a", "three", base=("Three!", -0.5), a=("tree", -0.6), b=("z", -0.4)),
    utterance("b", "four", base=("for", -0.9), a=("w", -0.7), b=("four", -0.3)),
]


def test_the_choice_is_compared_with_the_base_and_with_the_true_names():
    # Of task a's three words the base has one right, its own head two; b has one.
    assert auto.wer(DATA, None) == pytest.approx((200 / 3 + 100) / 2)
    assert auto.wer(DATA, None, named=True) == pytest.approx((100 / 3 + 0) / 2)
    assert auto.wer(DATA, 0.0) == pytest.approx((100 / 3 + 0) / 2)
    # Above 0.1 the base is kept where it is right.
    assert auto.wer(DATA, 0.2) == 0
    assert 0.1 < auto.best_threshold(DATA) <= 0.6
    told = auto.summary(DATA, 0.2)
    assert "at threshold +0.20" in told and "0.00 % with auto (-100.0 %" in told
    assert "the true task was taken 2 times, the base 1, another 0" in told


def test_voices_are_told_at_the_distance_that_the_dev_set_keeps():
    data = [
        utterance("a", "one", {"a": (-5, 1 + i / 1000), "b": (-9, 0.5)}, a=("one", 0))
        for i in range(200)
    ]
    # One in a hundred may be lost: of 200 the two that are farthest.
    assert auto.least_distance(data) == pytest.approx(1.20)
    assert auto.least_distance([*data, utterance("a", "x", {"a": (-5, 9)})]) < 1.21
    told = auto.summary(data, 1.1)
    assert "the true task was taken 101 times, the base 99, another 0" in told
    assert "WER" not in told  # with the base nothing was decoded
    told = auto.summary(data, 1.2)
    assert "WER 0.00 % with the name, 0.00 % with auto (from 0)" in told


def test_the_interval_is_of_the_paired_difference():
    good = {"a": (-5, 1), "b": (-9, 1)}
    wrong = {"a": (-9, 1), "b": (-5, 1)}
    read = {"a": ("one two tree", 0), "b": ("x", 0)}
    same = [utterance("a", "one two three", good, **read)] * 20
    assert auto.relative(same, 1.5) == (0, 0)
    # Half of them with the other task: three errors for one, +100 % in all.
    half = same[:10] + [utterance("a", "one two three", wrong, **read)] * 10
    low, high = auto.relative(half, 1.5)
    assert 40 < low < 100 < high < 160


def test_the_table_of_a_load_is_that_of_its_blocks():
    counts = {"batch_pieces_count": 10.0, "batch_pieces_sum": 25.0}
    counts |= {"batch_tasks_sum": 20.0, "decoded_alone_total": 1.0}
    blocks = [
        Block("mixed", 10.0, [0.1] * 60, 200.0, [], 2, counts),
        Block("one", 10.0, [0.1] * 50, 160.0, [], 0, {}),
        Block("mixed", 10.0, [0.2] * 40, 100.0, [("f", "t")], 1, counts),
        Block("one", 10.0, [0.1] * 50, 100.0, [], 0, {}),
    ]
    line = serve.line_of("mixed", 32, blocks)
    assert (line.requests, line.wrong, line.refused) == (100, 1, 3)
    assert (line.per_second, line.speed) == (5.0, 15.0)
    assert (line.pieces, line.batch_tasks, line.again) == (2.5, 2.0, 4.0)
    assert line.p50 == pytest.approx(100) and line.p99 == pytest.approx(200)
    assert serve.ratio_of(blocks).value == pytest.approx(15 / 13)


def test_auto_decodes_a_folder_with_all_tasks(an4, base, tmp_path, capsys):
    exp = make_adaptation(tmp_path / "exp", base, tasks=("female", "male"))
    out = tmp_path / "auto.tsv"
    options = ["--model", str(exp), "--data", str(an4["train"])]
    options += ["--dev", str(an4["train"]), "--limit", "2", "--out", str(out)]
    assert auto.main(options) == 0
    printed = capsys.readouterr().out
    assert "by confidence" in printed and "with auto among 2 tasks" in printed
    with pytest.raises(DataError, match="a task has no voice"):
        auto.main([*options, "--by", "voice"])
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == 2 and {row["chosen"] for row in rows} <= {
        "base",
        "female",
        "male",
    }
    # With voices it listens once, and strangers are told.
    words = ["tasks", "voice", str(an4["train"]), "--model", str(exp)]
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 0
    assert auto.main([*options, "--other", str(an4["test"])]) == 0
    printed = capsys.readouterr().out
    assert "by voice, an utterance takes" in printed
    assert "utterances of none of the tasks; the base was taken" in printed
    assert auto.main([*options, "--by", "confidence"]) == 0
    assert "by confidence, an utterance takes" in capsys.readouterr().out
    (an4_copy := tmp_path / "data").mkdir()
    for name in ("wav.scp", "text"):
        (an4_copy / name).write_text((an4["train"] / name).read_text())
    lines = (an4["train"] / "utt2task").read_text().splitlines()
    names = "".join(f"{line.split()[0]} nobody\n" for line in lines)
    (an4_copy / "utt2task").write_text(names)
    with pytest.raises(DataError, match="found the task 'nobody'"):
        auto.main(["--model", str(exp), "--data", str(an4_copy)])


def test_a_load_without_recordings_is_refused(tmp_path):
    (tmp_path / "wav.scp").touch()
    with pytest.raises((DataError, SystemExit), match="recordings|wav.scp"):
        cli.main(["bench", "serve", "--model", "m", "--data", str(tmp_path)])


@pytest.mark.slow
def test_a_minute_of_load(an4, base, tmp_path, capfd):
    """Every text is the one of a request alone, and the server ends in order."""
    out = tmp_path / "serve.tsv"
    options = ["--model", str(base), "--random_heads", "--data", str(an4["train"])]
    options += ["--tasks", "8", "--minutes", "0.3", "--block", "3", "--out", str(out)]
    assert serve.main([*options, "--", "--wait_ms", "20"]) == 0
    printed = capfd.readouterr().out
    assert "throughput mixed / one" in printed
    assert "the server ended with status 0" in printed
    with open(out, newline="") as file:
        mixed, one = csv.DictReader(file, delimiter="\t")
    assert (mixed["wrong"], one["wrong"]) == ("0", "0")
    assert mixed["tasks"] == "8" and float(mixed["batch_tasks"]) > 1


@pytest.mark.slow
def test_sigterm_lets_the_last_requests_finish(an4, base, tmp_path):
    exp = make_adaptation(tmp_path / "exp", base)
    path = (an4["train"] / "wav.scp").read_text().split()[1]
    # They wait for company that does not come: the signal is there before.
    with serving(str(exp), 1, ["--name", "b", "--wait_ms", "5000"]) as server:
        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            found = [threads.submit(ask, server.url, path, "female") for _ in range(4)]
            while server.counts()["requests_inside"] < 4:
                time.sleep(0.05)
            server.process.send_signal(signal.SIGTERM)
            answers = [future.result() for future in found]
        assert [answer.status_code for answer in answers] == [200] * 4
        server.process.wait(60)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{server.url}/healthz")
    assert server.status == 0


@pytest.mark.slow
def test_a_server_that_cannot_start_says_why_in_one_line(base, tmp_path):
    command = [sys.executable, "-m", "espnet_hra.cli", "serve", str(tmp_path / "no")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("espnet-hra serve: ")
    with pytest.raises(ConfigError, match="did not start"):
        with serving(str(Path(tmp_path) / "no"), 1, []):
            pass
