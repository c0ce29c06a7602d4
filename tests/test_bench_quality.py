"""The comparison: its plan, what is done again, and what its files promise."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from espnet_hra import cli
from espnet_hra.bench import quality
from espnet_hra.bench.quality_page import dev_tables, hours, open_ends
from espnet_hra.bench.quality_plan import (
    BenchError,
    DevRow,
    best_on_dev,
    label_of,
    with_length,
    with_rate,
)
from espnet_hra.bench.quality_runs import Comparison
from espnet_hra.encoder.layers import find_layers
from espnet_hra.errors import ConfigError
from espnet_hra.espnet.base import open_base
from espnet_hra.files.tables import read_table, write_table
from espnet_hra.files.variants import changed, longer, read_config
from espnet_hra.methods import build_adapter
from espnet_hra.report.results import Row

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
RECIPE = ROOT / "egs2" / "hra_asr"
PLAN = yaml.safe_load((CONF / "quality.yaml").read_text())
VARIANTS = (CONF / "variants.yaml").read_text()
FILES = ("hra", "residual_r10", "lora_r6", "lily", "road", "prompt", "bitfit", "full")
NAMES = (*FILES, *yaml.safe_load(VARIANTS))


def config_of(name):
    return read_config(CONF, name)


def what_is_said_of(name):
    """The comments on a configuration, above it or between its keys."""
    path = CONF / f"train_{name}.yaml"
    if path.exists():
        return path.read_text().split("\n\n")[0]
    return VARIANTS[VARIANTS.index(f"\n{name}:") :].split("\n    of:")[0]


# -------------------------------------------------------------------- the files


@pytest.fixture(scope="module")
def backbone():
    """An encoder of the shipped backbone's sizes."""
    from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

    config = open_base(RECIPE / "pretrained" / "debian_voices.zip").model_config()
    conf = {
        k: v for k, v in config["encoder_conf"].items() if k != "interctc_layer_idx"
    }
    return ConformerEncoder(80, **conf).requires_grad_(False)


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_of_the_comparison_keeps_its_promises(name, backbone):
    config, own = config_of(name), config_of("hra")
    method = config["encoder_conf"]["adapter"]
    assert name in FILES or name.startswith(f"{method}_")
    if name in FILES:
        assert f"#   ./run.sh --method {method}\n" in f"{what_is_said_of(name)}\n"
    rates = config["scheduler_conf"]["warmup_lr_list"]
    assert config["optim_conf"]["lr"] == max(rates) == rates[1]
    # Everything else is the same for all methods.
    differing = {"encoder_conf", "optim_conf", "scheduler_conf"}
    if name == "hra_long":
        differing |= {"num_iters_per_epoch", "max_epoch"}
    elif name == "hra_alone":
        differing |= {"batch_bins"}
        tasks = 5
        assert config["batch_bins"] * tasks == own["batch_bins"]
    assert config.keys() == own.keys()
    assert all(config[key] == own[key] for key in set(own) - differing)
    if name != "hra_long":
        steps = [c["scheduler_conf"]["warmup_steps_list"] for c in (config, own)]
        assert steps[0] == steps[1]
    # The size that the comment names is the adapter's.
    conf = config["encoder_conf"]
    if conf["adapter"] == "lora":
        pytest.importorskip("peft")
    adapter = build_adapter(
        conf["adapter"],
        find_layers(backbone, "x").backbone(backbone),
        conf.get("adapter_conf"),
    )
    said = re.findall(r"([0-9,]+) parameters", what_is_said_of(name))
    for number in said:
        assert int(number.replace(",", "")) == adapter.formula()["per_task"]
    assert said or name in ("full", "bitfit", "hra_long", "hra_plain", "hra_alone")


def test_files_without_a_size_of_their_own_have_the_method_s_usual_one():
    for method in ("hra", "residual", "lora", "bitfit", "full"):
        path = (CONF / f"train_{method}.yaml").resolve()
        config = yaml.safe_load(path.read_text())
        assert label_of(str(path)) in FILES
        assert config["encoder_conf"]["adapter"] == method
        # Its rate was looked for, with one size of the method.
        grids = [config_of(name) for name in PLAN["rates"]]
        grid = next(c for c in grids if c["encoder_conf"]["adapter"] == method)
        assert grid["optim_conf"] == config["optim_conf"]


def test_a_variant_changes_the_keys_that_it_names():
    config = {"a": 1, "b": {"c": 2, "d": [3]}, "e": {"f": 4}}
    found = changed(config, {"b": {"c": 5}, "e": None, "g": {"h": 6}})
    assert found == {"a": 1, "b": {"c": 5, "d": [3]}, "g": {"h": 6}}
    assert config["b"]["c"] == 2  # and leaves the other as it is
    plain = config_of("hra_plain")["encoder_conf"]["adapter_conf"]
    assert plain == {"controller": "indrnn", "controller_size": 256, "head": "linear"}
    wide = config_of("hra_ffn_c1024")["encoder_conf"]["adapter_conf"]  # of a variant
    assert (wide["head"], wide["head_size"], wide["controller_size"]) == (
        "ffn",
        31,
        1024,
    )


@pytest.mark.parametrize(
    "text, message",
    [
        ("b: {of: x}", "x: there is neither .*train_x.yaml nor a variant .*are: a, b"),
        ("c: {of: a}", "b: there is neither .*there are: a, c"),
        ("b: {max_epoch: 1}", "b: of: None must name the configuration"),
        ("b: {of: b}", "b: of: 'b' must name the configuration"),
        ("{b: {of: c}, c: {of: b}}", "c: of: 'b' must .* not lead back to itself"),
        ("b: [hra]", "b: of: None must name the configuration"),
        ("[", "variants.yaml: not readable as YAML"),
    ],
)
def test_variants_that_cannot_be_are_refused(text, message, tmp_path):
    (tmp_path / "train_a.yaml").write_text("max_epoch: 3\n")
    (tmp_path / "variants.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path, "b")


def test_a_longer_training_has_the_same_schedule_drawn_out(tmp_path):
    config, drawn = config_of("hra"), config_of("hra_x3")
    assert drawn.pop("max_epoch") == 3 * config.pop("max_epoch")
    steps = [c["scheduler_conf"].pop("warmup_steps_list") for c in (config, drawn)]
    assert steps[0] == [0, 40, 150, 300, 1000000]
    assert steps[1] == [0, 120, 450, 900, 1000000]
    assert drawn == config
    words = with_length(config_of("hra"), 3)
    assert words[:2] == ["--max_epoch", "9"]
    assert words[3] == "warmup_steps_list=[0,120,450,900,1000000]"
    assert config_of("hra_c64_x2")["max_epoch"] == 6  # of a variant
    (tmp_path / "train_a.yaml").write_text("optim: adam\n")
    with pytest.raises(ConfigError, match="max_epoch: None: .* 2 times as long"):
        read_config(tmp_path, "a_x2")
    with pytest.raises(ConfigError, match="b: there is neither"):
        read_config(tmp_path, "b_x2")
    with pytest.raises(ConfigError, match="a_x0: there is neither"):
        read_config(tmp_path, "a_x0")
    assert longer({"max_epoch": 2}, 4) == {"max_epoch": 8}


@pytest.mark.parametrize("name", ["quality_whisper", "quality_speakers"])
def test_the_plans_for_whisper_are_fair(name):
    plan = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    comparison = Comparison(RECIPE, plan, [], ROOT / "exp")
    assert comparison.conf == "conf/whisper" and comparison.measure != "CER"
    assert (RECIPE / comparison.conf / f"{comparison.decoding}.yaml").is_file()
    compared = {config.removesuffix("_x3") for config in plan["runs"]}
    for config, rates in plan["rates"].items():
        assert len(rates) >= 4 and rates == sorted(rates)
        # What the file has is within the grid, so that it can be the best of it.
        assert rates[0] < comparison.configs[config]["optim_conf"]["lr"] < rates[-1]
        assert config in compared
    methods = {comparison.configs[c]["encoder_conf"]["adapter"] for c in plan["runs"]}
    rated = {comparison.configs[c]["encoder_conf"]["adapter"] for c in plan["rates"]}
    assert methods == rated
    assert all(lengths == [1, 3, 9] for lengths in plan["lengths"].values())
    # Both lengths of the headline rows, three seeds where rows are compared.
    for config in ("hra_short", "residual", "lora", "full_one"):
        for row in (config, f"{config}_x3"):
            assert plan["runs"][row] == [1, 2, 3]
    # As much effort for each.
    for row in plan["runs"]:
        config = comparison.configs[row]
        updates = config["num_iters_per_epoch"] * config["max_epoch"]
        assert updates == (840 if row.endswith("_x3") else 280)
    parts = ["rates", "lengths", "choices", "runs"]
    steps = comparison.steps(parts)
    names = [(step.part, step.text) for step in steps]
    assert len(set(names)) == len(names)
    assert len(comparison.steps(["lengths"])) == 3 * len(plan["lengths"])


def test_rivals_have_no_fewer_parameters_than_hra_beside_them(backbone):
    pytest.importorskip("peft")

    def size(name):
        conf = config_of(name)["encoder_conf"]
        adapter = build_adapter(
            conf["adapter"],
            find_layers(backbone, "x").backbone(backbone),
            conf.get("adapter_conf"),
        )
        return adapter.formula()["per_task"]

    for ours, rivals in {
        ("hra", "hra_ffn"): ("residual_r10", "lora_r6"),
        ("hra_c432", "hra_ffn_f155"): ("residual_r17", "lora_r9"),
        ("hra_c864", "hra_ffn_f310"): ("residual_r35", "lora_r18"),
    }.items():
        most = max(size(name) for name in ours)
        assert min(size(name) for name in rivals) >= 0.995 * most


def test_the_plan_names_files_and_seeds_of_headline_rows():
    comparison = Comparison(RECIPE, PLAN, [], ROOT / "exp")
    assert set(PLAN["rates"]) <= set(comparison.configs)
    for method in ("hra", "residual_r10", "lora_r6", "bitfit", "full"):
        assert len(PLAN["runs"][method]) == 3
    steps = comparison.steps(["rates", "choices", "runs"])
    names = [(step.part, step.text) for step in steps]
    assert len(set(names)) == len(names)
    seeds = [step.text for step in steps if step.part == "runs"]
    assert "seed 1" in seeds[0] and "seed 3" in seeds[-1]  # a part is a whole table


# ------------------------------------------------------------------- the program


def test_another_rate_scales_the_whole_schedule():
    config = {
        "optim_conf": {"lr": 6e-3},
        "scheduler_conf": {"warmup_lr_list": [0.0, 6e-3, 6e-3, 1.2e-4]},
    }
    words = with_rate(config, 3e-3)
    assert words[1] == "lr=0.003"
    assert words[3] == "warmup_lr_list=[0.0,0.003,0.003,0.00006]"
    # Without a schedule that lists rates, all hangs on the optimizer's.
    assert with_rate({"optim": "adam"}, 1e-3) == ["--optim_conf", "lr=0.001"]
    # As YAML reads them: 6e-05 would be a word.
    assert yaml.safe_load(words[3].partition("=")[2]) == [0.0, 0.003, 0.003, 6e-5]


def rows(*settings):
    return [
        DevRow(part, "hra", name, seed, 2, 300, cer)
        for part, name, seed, cer in settings
    ]


def test_what_was_judged_on_dev_is_shown_from_its_table(tmp_path):
    lines = rows(
        ("rates", "0.003", 1, 40.0),
        ("rates", "0.006", 1, 38.25),
        ("choices", "as it is", 1, 38.0),
        ("choices", "as it is", 2, 39.0),
        ("choices", "no norm", 1, 41.5),
    )
    write_table(tmp_path / "dev.tsv", lines, DevRow)
    lines = read_table(tmp_path / "dev.tsv", DevRow)
    text = dev_tables(lines, {})
    assert "|hra|0.003: 40.0, 0.006: 38.2|0.006|" in text
    assert "|as it is|2|38.5||" in text and "|no norm|1|41.5|+3.5|" in text
    assert "another" in dev_tables(lines, {"hra": 0.006})


def test_a_file_with_another_rate_than_the_best_is_named(tmp_path):
    plan = {"rates": {"hra": [0.1]}, "corpus": "c", "few_tasks": ["a"]}
    comparison = Comparison(RECIPE, plan, [], tmp_path)
    assert comparison.differing_rates() == {}
    own = config_of("hra")["optim_conf"]["lr"]
    (tmp_path / "c").mkdir()
    table = tmp_path / "c" / "dev.tsv"
    best = rows(("rates", f"{own:g}", 1, 30.0), ("rates", "0.1", 1, 31.0))
    write_table(table, best, DevRow)
    assert comparison.differing_rates() == {}
    best = rows(("rates", f"{own:g}", 1, 31.0), ("rates", "0.1", 1, 30.0))
    write_table(table, best, DevRow)
    assert comparison.differing_rates() == {"hra": 0.1}
    # Of equals the table shows the lowest, and so does this.
    best = rows(("rates", f"{own:g}", 1, 30.0), ("rates", "0.1", 1, 30.0))
    write_table(table, best, DevRow)
    assert comparison.differing_rates() == {}
    assert f"|{own:g}|" in dev_tables(best, {})


def test_what_may_be_better_than_it_looks_is_named(tmp_path):
    inside = rows(
        ("rates", "0.003", 1, 40.0),
        ("rates", "0.006", 1, 38.0),
        ("rates", "0.01", 1, 39),
    )
    flat = rows(("lengths", "1", 1, 30.0), ("lengths", "3", 1, 25.0))
    flat += rows(("lengths", "9", 1, 24.8))
    assert open_ends(inside + flat) == {}
    assert "What is open" not in dev_tables(inside + flat, {})
    highest = rows(("rates", "0.02", 1, 37.0))
    assert open_ends(inside + highest) == {
        "hra": "the best rate is the highest that was tried, 0.02"
    }
    lowest = rows(("rates", "0.001", 1, 37.0))
    assert "lowest that was tried, 0.001" in open_ends(inside + lowest)["hra"]
    falling = rows(("lengths", "1", 1, 30.0), ("lengths", "9", 1, 20.0))
    falling += rows(("lengths", "3", 1, 25.0))
    assert open_ends(falling) == {"hra": "dev still falls at 9 times the updates"}
    text = dev_tables(highest + falling, {}, "error of tokens")
    assert "## Lengths, judged on dev" in text and "error of tokens (%)" in text
    assert "* `hra`: the best rate is the highest" in text and "; dev still" in text


def test_a_model_without_a_ctc_is_judged_by_its_tokens(tmp_path):
    def saved(*looks):
        stats = {
            i: {"valid": look, "train": {"total_count": 80 * i}}
            for i, look in enumerate(looks, 1)
        }
        path = tmp_path / "checkpoint.pth"
        torch.save({"reporter": {"stats": stats, "epoch": len(looks)}}, path)
        return path

    found = best_on_dev(saved({"acc": 0.75, "loss": 2.0}, {"acc": 0.5, "loss": 1.0}))
    assert found == (25.0, 160)
    both = {"acc": 0.9, "cer_ctc": 0.25}
    assert best_on_dev(saved(both)) == (25.0, 80)
    with pytest.raises(BenchError, match="no CER of a dev set"):
        best_on_dev(saved({"loss": 1.0}))


def test_a_number_of_tasks_is_spread_over_all(tmp_path):
    plan = {"rates": {"hra": [0.1]}, "corpus": "c", "few_tasks": 3}
    comparison = Comparison(RECIPE, plan, [], tmp_path)
    (tmp_path / "c" / "dump").mkdir(parents=True)
    (tmp_path / "c" / "dump" / "tasks").write_text("a\nb\nc\nd\ne\nf\n")
    assert comparison._few_tasks() == ["a", "c", "e"]
    comparison.plan["few_tasks"] = 9
    assert comparison._few_tasks() == list("abcdef")


def test_hours_are_those_of_training_and_decoding(tmp_path):
    times = tmp_path / "times.tsv"
    assert hours(times) == ""
    lines = ["1 -\tData\t50", "11 hra\tTraining\t7200", "12 hra\tDecoding\t1800"]
    times.write_text("\n".join([*lines, "9 -\tDecoding\t1800", "11 cut off\n"]))
    assert "training 2.0 h, decoding 1.0 h" in hours(times)


def test_what_has_its_rows_is_done(tmp_path):
    config = "hra"
    plan = {"runs": {config: [1, 2]}, "rates": {config: [0.006]}, "few_tasks": ["a"]}
    comparison = Comparison(RECIPE, plan, [], tmp_path)
    work = tmp_path / "debian_voices"
    (work / "dump").mkdir(parents=True)
    (work / "dump" / "tasks").write_text("a\nb\n")
    assert [step.is_done() for step in comparison.steps()] == [False] * 3
    write_table(work / "dev.tsv", rows(("rates", "0.006", 1, 40.0)), DevRow)
    half = [Row("hra", "a", "test", 1, 1, 1, 1, 1, 1.0, 1.0)]
    write_table(work / "results.tsv", half, Row)
    assert [step.is_done() for step in comparison.steps()] == [True, False, False]
    whole = half + [Row("hra", "b", "test", 1, 1, 1, 1, 1, 1.0, 1.0)]
    write_table(work / "results.tsv", whole, Row)
    assert [step.is_done() for step in comparison.steps()] == [True, True, False]


@pytest.mark.parametrize(
    "plan, message",
    [
        ("runz: {}", "unknown keys: runz; possible are: alone, .*runs"),
        ("runs: {x: [1]}", "names x: there is neither .*train_x.yaml nor a variant"),
        ("runs: {no: [1]}", "names False: expected the name of a configuration"),
        ("runs: {conf/train_lora.yaml: [1]}", "no link.* train_lora_....yaml"),
        ("runs: {lora: [1]}", "no link.* train_lora_....yaml"),
        ("runs: {hra: 1}", "runs: {'hra': 1}: expected CONFIG: .SEED, ...."),
        ("{few_tasks: [a], rates: {hra: [1e-3]}}", "expected CONFIG: .RATE, ...., "),
        ("rates: {hra: [0.1]}", "name the tasks for them, few_tasks"),
        ("lengths: {hra: [3]}", "name the tasks for them, .*few_tasks: .A, B., or say"),
        ("{few_tasks: 0}", "few_tasks: 0: expected a list of tasks, or how many"),
        ("{few_tasks: 2, lengths: {hra: [0]}}", "expected CONFIG: .TIMES, ...., whole"),
        ("options: --seed 2", "options: '--seed 2': expected options of run.sh"),
        ("options: [--seed, '2']", "--seed: the plan decides on that for each run"),
        ("expdir: 3", "expdir: 3: expected a folder"),
        ("{few_tasks: [a], choices: {config: hra}}", "expected config: CONFIG, seeds"),
        ("forgetting: {adapted: hra}", "expected adapted: CONFIG, full: CONFIG"),
        ("[1]", "expected keys and values"),
        ("a: [", "plan.yaml: not readable as YAML"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(tmp_path, plan, message):
    (tmp_path / "plan.yaml").write_text(plan)
    with pytest.raises(BenchError, match=f"(?s){message}"):
        quality.main(
            ["--recipe", str(RECIPE), "--plan", str(tmp_path / "plan.yaml"), "--list"]
        )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--recipe", "/nowhere"], "/nowhere: there is no run.sh"),
        (["--recipe", str(RECIPE), "--only", "magic"], "no such method.*lora_r6"),
        (
            ["--recipe", str(RECIPE), "--", "--asr_args", "--max_epoch 1"],
            "--asr_args: the plan decides on that.*--plan.*quality.yaml",
        ),
    ],
)
def test_mistakes_are_refused_in_one_line(arguments, message):
    with pytest.raises(SystemExit) as error:
        cli.main(["bench", "quality", "--parts", "runs", "--list", *arguments])
    assert re.search(message, str(error.value))
    assert str(error.value).startswith("espnet-hra bench: ")


@pytest.mark.slow
def test_a_small_comparison_from_data_to_results(tmp_path, base, capsys):
    top = tmp_path / "top"
    (top / "egs2").mkdir(parents=True)
    for name in ("conf", "local"):
        shutil.copytree(ROOT / name, top / name)
    ignored = shutil.ignore_patterns("data", "downloads", "dump", "exp")
    shutil.copytree(RECIPE, top / "egs2" / "hra_asr", symlinks=True, ignore=ignored)
    (top / "espnet_hra").symlink_to(ROOT / "espnet_hra")
    recipe = top / "egs2" / "hra_asr"
    hra = "conf/mini_an4/train_hra.yaml"
    config = yaml.safe_load((recipe / hra).read_text())
    (recipe / hra).write_text(yaml.safe_dump({**config, "max_epoch": 2}))
    plan = {
        "corpus": "mini_an4",
        "few_tasks": ["female"],
        "rates": {hra: [0.01, 0.02]},
        "choices": {
            "config": hra,
            "changes": {
                "as it is": "",
                "no norm": "--encoder_conf adapter_conf.input_norm=none",
            },
        },
        "runs": {hra: [1, 2], "conf/train_magic_1.yaml": [1]},
        "alone": {hra: [1]},
    }
    (recipe / "conf" / "train_magic_1.yaml").write_text(
        yaml.safe_dump({"encoder_conf": {"adapter": "magic"}, "optim_conf": {"lr": 1}})
    )
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))
    arguments = ["--recipe", str(recipe), "--plan", str(path)]
    options = ["--", "--pretrained_model", str(base)]
    assert quality.main([*arguments, *options]) == 1  # one of them cannot be run
    said = capsys.readouterr()
    assert "magic_1, seed 1" in said.out and "'magic' is not avail" in said.err
    work = recipe / "exp" / "mini_an4"
    found = read_table(work / "results.tsv", Row)
    assert {r.method for r in found} >= {"none", "hra"}
    page = (work / "RESULTS.md").read_text()
    assert "Learning rates, chosen on dev" in page and "|no norm|" in page
    # Once more: nothing but what failed.
    assert quality.main([*arguments, "--list", *options]) == 0
    assert ", 7 of them done" in capsys.readouterr().out


def test_a_run_whose_tasks_need_a_look_is_a_run(tmp_path):
    """Status 3: rows are there, and say of a task that it is as without an adapter."""
    comparison = Comparison(RECIPE, PLAN, [], tmp_path)
    comparison._run(sys.executable, "-c", "raise SystemExit(3)")
    with pytest.raises(BenchError, match="ended with status 1: too bad"):
        comparison._run(sys.executable, "-c", "raise SystemExit('too bad')")
