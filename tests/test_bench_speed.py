"""The bench of time and memory: what it compares, keeps, and says about it."""

import math
import re
from dataclasses import replace

import pytest
import torch
import yaml
from conftest import ROOT

from espnet_hra import cli
from espnet_hra.bench import many_tasks, memory, speed, speed_page, timing
from espnet_hra.bench.backbones import random_backbone
from espnet_hra.bench.speed_cases import CASES, Sizes, plan
from espnet_hra.bench.speed_table import TSV, Row, measurements
from espnet_hra.bench.timing import Ratio
from espnet_hra.bench.variants import Subject, Variant, hra, hra_ffn, lora, residual
from espnet_hra.errors import UserError
from espnet_hra.files.tables import read_table, write_table

SMALL = random_backbone("2x16")
CPU = torch.device("cpu")


def read_rows(path):
    return read_table(path, Row)


def run(out, *options, backbone="2x16"):
    """The command, with small sizes."""
    options = ["--quick", "--backbones", backbone, "--out", str(out), *options]
    return cli.main(["bench", "speed", "--threads", "1", *options])


def quick(out, *options, **more):
    with pytest.raises(SystemExit) as exit_:
        run(out, *options, **more)
    assert exit_.value.code in (0, None)
    return read_rows(out / TSV)


def page_line(out, *words):
    """The cells of the line of the page in which all these words are."""
    lines = (out / "SPEED.md").read_text().splitlines()
    (line,) = [line for line in lines if all(f"|{w}" in line for w in words)]
    return line[1:-1].split("|")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder with a measurement of the encoder."""
    out = tmp_path_factory.mktemp("speed")
    quick(out, "--cases", "encoder")
    return out


# -------------------------------------------------------------- what is compared


@pytest.fixture(scope="module")
def stock():
    encoder = SMALL.build()
    for name, buffer in encoder.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return encoder


def outputs(variant, stock, batch=3):
    subject = Subject(variant, SMALL, stock, batch, 1.0)
    with torch.inference_mode():
        return subject, subject.forward()[0]


def test_variants_stand_on_the_same_backbone_and_do_what_they_are_called(stock):
    pytest.importorskip("peft")
    bare_subject, bare = outputs(Variant("none", "none"), stock)
    lengths = bare_subject.lengths
    assert torch.equal(bare, stock(bare_subject.features, lengths)[0])
    weights = {p.data_ptr() for p in stock.parameters()}
    for variant in (
        hra(SMALL, tasks=3, mixed=True),
        hra_ffn(SMALL, tasks=3, mixed=True),
        residual(SMALL, tasks=3, mixed=True),
        lora(SMALL, "lora", tasks=3, mixed=True),
    ):
        subject, mixed = outputs(variant, stock)
        assert weights <= {p.data_ptr() for p in subject.encoder.parameters()}
        assert not torch.allclose(mixed, bare)
        for i, task in enumerate(subject.names):  # each utterance by itself
            if variant.method == "lora":
                subject.encoder.set_adapter(task)
            subject.choice = task
            with torch.inference_mode():
                alone = subject.forward()[0]
            assert torch.allclose(alone[i], mixed[i], atol=1e-4), variant.name
            assert not torch.allclose(alone[i - 1], mixed[i - 1], atol=1e-4)
    merged = outputs(lora(SMALL, "merged", 8, merged=True), stock)[1]
    unmerged = outputs(lora(SMALL, "unmerged", 8), stock)[1]
    assert torch.allclose(merged, unmerged, atol=1e-4)
    assert not torch.allclose(merged, bare)
    assert torch.equal(outputs(Variant("none", "none"), stock)[1], bare)


def test_a_training_step_moves_what_it_should_and_no_shared_weight(stock):
    pytest.importorskip("peft")
    before = {k: v.clone() for k, v in stock.state_dict().items()}
    learns = {}
    for variant in (
        Variant("full", "full"),
        hra(SMALL),
        hra(SMALL, "head", regime="new_task"),
        residual(SMALL),
        lora(SMALL, "lora"),
    ):
        subject = Subject(variant, SMALL, stock, 2, 1.0)
        start = {k: v.clone() for k, v in subject.encoder.named_parameters()}
        subject.step()
        now = dict(subject.encoder.named_parameters())
        moved = [k for k, v in start.items() if not torch.equal(v, now[k])]
        learns[variant.name] = sum(start[k].numel() for k in moved)
        dropping = [
            m.training
            for m in subject.encoder.modules()
            if isinstance(m, torch.nn.Dropout)
        ]
        assert any(dropping) == (variant.method == "full")
        for key, value in stock.state_dict().items():
            assert torch.equal(value, before[key]), (variant.name, key)
    total = sum(p.numel() for p in stock.parameters())
    assert learns["full"] > 0.9 * total  # but for biases before a softmax
    assert learns["head"] == 16 * 16 + 16
    # The controller, its norm, and a scale for each of two layers.
    assert learns["hra"] == learns["head"] + (16 * 16 + 2 * 16) + 2 * 16 + 2
    assert 0 < learns["lora"] < learns["hra"] and 0 < learns["residual"] < 1000


def test_hra_is_that_of_the_recipe():
    recipe = yaml.safe_load((ROOT / "conf" / "train_hra.yaml").read_text())
    conf = {"head": "linear", **hra(SMALL, c=256).conf}
    assert conf == recipe["encoder_conf"]["adapter_conf"]


@pytest.mark.parametrize("name", ["12x144", "12x256", "18x512"])
def test_rivals_have_the_rank_that_costs_what_a_head_costs(name):
    backbone = random_backbone(name)
    d, layers = backbone.width, backbone.layers
    head = d * d + d
    costs = {
        "lora": lambda r: layers * 2 * 2 * d * r,
        "residual": lambda r: layers * (2 * d * r + r + d + 2 * d),
    }
    for variant in (lora(backbone, "lora"), residual(backbone)):
        cost, rank = costs[variant.method], variant.conf["rank"]
        others = [abs(cost(r) - head) for r in range(1, 100)]
        assert abs(cost(rank) - head) == min(others)


def test_parameters_and_arithmetic_are_those_of_the_formulas(stock):
    subject = Subject(hra(SMALL, c=8), SMALL, stock, 1, 1.0)
    assert subject.task_params == 8 * 16 + 16
    assert Subject(hra_ffn(SMALL), SMALL, stock, 1, 1.0).task_params == (
        16 * 64 + 64 + 64 * 16 + 16
    )
    # The kernel of the convolution is not in the 24 d^2 of a layer, but in the sum.
    wide = random_backbone("2x64")
    found = Subject(hra(wide, c=32), wide, wide.build(), 1, 1.0).arithmetic
    assert found == pytest.approx(1 + 32 / (12 * 64), abs=0.003)


# --------------------------------------------------------------------- the table


def test_every_variant_has_a_row_with_its_runs(measured):
    rows = read_rows(measured / TSV)
    assert {row.part for row in rows} == {"batch 1", "batch 8"}
    names = [row.variant for row in rows if row.part == "batch 1"]
    assert names[:3] == ["none", "none_again", "hra"]
    assert len(names) == len(set(names)) >= 6
    for row in rows:
        assert len(row.numbers) == row.rounds == 3 and min(row.numbers) > 0
        assert (row.threads, row.seconds, row.unit) == (1, 1.0, "ms")
        assert f"torch {torch.__version__.split('+')[0]}" in row.versions


def test_what_is_there_is_not_measured_again_unless_asked(measured, tmp_path):
    table = tmp_path / TSV
    table.write_bytes((measured / TSV).read_bytes())
    quick(tmp_path, "--cases", "encoder")
    assert table.read_bytes() == (measured / TSV).read_bytes()
    rows = quick(tmp_path, "--cases", "encoder", "--again")
    assert len(rows) == len(read_rows(measured / TSV))  # in their places
    assert table.read_bytes() != (measured / TSV).read_bytes()
    # Half a block is no block; other settings are another measurement.
    write_table(table, rows[:-1], Row)
    assert len(quick(tmp_path, "--cases", "encoder")) == len(rows)
    assert len(quick(tmp_path, "--cases", "encoder", "--repeats", "2")) == 2 * len(rows)


def test_the_page_is_made_of_the_table_alone(measured, tmp_path):
    rows = read_rows(measured / TSV)
    times = {"none": "10 20 30", "hra": "11 21.6 33", "hra_half": "12 22 32"}
    times["none_again"] = "10 20 30"
    rows = [
        replace(row, values=times.get(row.variant, row.values))
        for row in rows
        if row.part == "batch 8"
    ]
    write_table(tmp_path / TSV, rows, Row)
    quick(tmp_path, "--page")
    cells = page_line(tmp_path, "HRA, c = d / bare (c = 16)", "2x16")
    target, arithmetic, ratio, interval, noise, runs, verdict = cells[5:]
    assert (target, ratio, noise, runs) == ("1.09", "**1.080**", "1.000", "3")
    low, high = map(float, interval.split(" to "))
    assert 1.0 < low <= 1.08 <= high < 1.2
    assert verdict == "met, within noise"
    assert page_line(tmp_path, "HRA, c = d/2 / bare")[-5] == "**1.100**"
    assert page_line(tmp_path, "HRA, c = d/2 / bare")[-1].startswith("**missed**")
    first = (tmp_path / "SPEED.md").read_bytes()
    quick(tmp_path, "--page")
    assert (tmp_path / "SPEED.md").read_bytes() == first


def test_a_quick_look_does_not_displace_a_measurement(measured, tmp_path):
    rows = read_rows(measured / TSV)
    longer = [replace(row, rounds=9, values="1 " * 9) for row in rows]
    for order in (rows + longer, longer + rows):
        shown = measurements(order)
        assert len(shown) == 2 and all(m.first.rounds == 9 for m in shown)
    another = [replace(row, machine="another") for row in rows]
    assert len(measurements(rows + another)) == 4


def test_curves_are_drawn_and_all_targets_of_time_have_a_line(tmp_path):
    quick(tmp_path, "--cases", "growth", "many", "mixed", "training")
    for kind in ("png", "svg"):
        assert (tmp_path / f"speed_cpu.{kind}").stat().st_size > 10_000
    text = (tmp_path / "SPEED.md").read_text()
    assert "![How time grows](speed_cpu.png)" in text
    pytest.importorskip("peft")
    assert page_line(tmp_path, "HRA / PEFT LoRA at HRA's budget")[5] == "1.1"
    # A quick look has 4 tasks, and says nothing about a target for 32.
    cells = page_line(
        tmp_path, "what HRA's mixed batch adds to bare / what PEFT's adds, at"
    )
    assert "4 tasks" in cells[0] and cells[5] == cells[-1] == ""


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own(tmp_path):
    rows = quick(
        tmp_path, "--cases", "memory", "heads", "--repeats", "1", backbone="4x64"
    )
    peaks = {r.variant: r.numbers for r in rows if r.part == "training step"}
    weights = 4 * sum(p.numel() for p in random_backbone("4x64").build().parameters())
    full, small = min(peaks["full"]), max(peaks["hra"])
    assert full - small > 2 * weights / memory.MIB  # gradients and two moments
    assert max(peaks["hra_again"]) < 1.1 * min(peaks["hra"])
    # Enough heads that pages do not count.
    many = hra(SMALL, "heads", c=256, tasks=1500)
    used, own, size = memory.fresh(memory.heads, SMALL, many, "cpu", 1)
    assert own == pytest.approx(1500 * size * 4 / memory.MIB)
    assert 0.98 < used / own < 1.2


# ----------------------------------------------------------------------- numbers


def test_a_ratio_is_of_medians_and_what_slows_a_whole_round_cancels():
    slow = [1, 1, 1, 5, 1, 1, 9, 1]
    values = {"a": [10 * s for s in slow], "b": [12 * s for s in slow]}
    found = timing.ratio(values, ["b"], ["a"])
    assert tuple(found) == pytest.approx((1.2, 1.2, 1.2))
    values["c"] = [16 * s for s in slow]
    found = timing.ratio(values, ["b", "a"], ["c", "a"])
    assert found.value == pytest.approx(1 / 3)
    assert timing.ratio(values, ["b", "a"], ["a", "b"]).value == math.inf
    assert math.isnan(timing.ratio({"a": [1], "b": [2]}, ["b"], ["a"]).low)


def test_every_round_runs_every_variant_once():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = timing.interleave(runs, 4, CPU, warm_up=1)
    assert {len(t) for t in times.values()} == {4} and len(calls) == 15
    assert all(set(calls[i : i + 3]) == set("abc") for i in range(0, 15, 3))


@pytest.mark.parametrize(
    "ratio, noise, expected",
    [
        ((1.0, 0.9, 1.05), None, "met"),
        ((1.0, 0.9, 1.2), None, "met, within noise"),
        ((1.2, 1.15, 1.3), None, "**missed**"),
        ((1.2, 1.05, 1.3), None, "**missed**, within noise"),
        ((1.2, 1.15, 1.3), (0.9, 0.8, 1.0), "**missed**, within noise"),
        ((math.inf, 1.0, math.inf), None, "not measurable"),
        ((1.0, math.nan, math.nan), None, "met"),
    ],
)
def test_verdicts(ratio, noise, expected):
    noise = noise and Ratio(*noise)
    assert speed_page.verdict(Ratio(*ratio), 1.1, noise) == expected
    assert speed_page.verdict(Ratio(*ratio), None, noise) == ""


# -------------------------------------------------------------------- the command


def test_all_of_it_takes_less_than_half_an_hour_on_two_cores():
    backbones = [random_backbone(n) for n in ("12x144", "12x256", "18x512")]
    blocks = plan(backbones, list(CASES), Sizes(), None, None, CPU)
    assert sum(block.estimate(50.0) for block in blocks) < 25 * 60
    assert {block.case for block in blocks} == set(CASES)
    known = {
        name for claim in speed_page.CLAIMS for name in (*claim.top, *claim.bottom)
    }
    assert known <= {v.name for b in blocks for v in b.variants} | {"bytes"}


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["--cases", "encoder", "fast"],
            "'fast' is no case; there are: encoder, mixed",
        ),
        (["--backbones", "large"], "'large' is no backbone: give shipped, or LxD"),
        (["--backbones", "2x18"], "multiple of 4, .* such as 2x20"),
        (["--pretrained_model", "/nowhere", "--backbones", "shipped"], "no such file"),
        (["--page"], "there are no results to show"),
    ],
)
def test_refusals_are_one_line(options, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        speed.main([*options, "--out", str(tmp_path)])
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_gpu_that_is_not_there_is_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match="torch sees no GPU"):
        speed.main(["--ngpu", "1", "--out", str(tmp_path)])


# ---------------------------------------------------------------- of many tasks


def test_the_bench_of_many_tasks_runs(capsys, tmp_path):
    sizes = ["--tasks", "3", "--width", "16", "--layers", "1", "--linear_units", "16"]
    sizes += ["--repeats", "2", "--requests", "4", "--seconds", "1"]
    with pytest.raises(SystemExit) as exit_:
        cli.main(["bench", "many_tasks", *sizes, "--measure", "time", "changes"])
    assert exit_.value.code in (0, None)
    said = capsys.readouterr().out
    for words in ("training step: ", "3 in a folder, ratio", "tasks changed, "):
        assert words in said
    many_tasks.main([*sizes, "--measure", "memory", "--folder", str(tmp_path)])
    said = capsys.readouterr().out
    for words in ("3 tasks added: ", "3 tasks loaded: ", "3 heads of 1,088 bytes"):
        assert words in said


def test_the_more_heads_are_in_memory_the_more_requests_hit(capsys):
    sizes = ["--tasks", "200", "--loaded", "10", "100", "200", "--s", "1.0"]
    with pytest.raises(SystemExit):
        cli.main(["bench", "cache_hits", *sizes, "--requests", "3000"])
    shares = re.findall(r"([\d.]+) % of 3,000 requests hit", capsys.readouterr().out)
    few, many, all_of_them = map(float, shares)
    assert few < many < all_of_them == 100.0
