"""The comparison: its plan, what is done again, and what its files promise."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from espnet_hra import cli
from espnet_hra.bench import quality
from espnet_hra.bench.quality_page import dev_tables, hours
from espnet_hra.bench.quality_plan import BenchError, DevRow, label_of, with_rate
from espnet_hra.bench.quality_runs import Comparison
from espnet_hra.encoder.layers import find_layers
from espnet_hra.errors import ConfigError
from espnet_hra.espnet.base import open_base
from espnet_hra.files.tables import read_table, write_table
from espnet_hra.files.variants import changed, read_config
from espnet_hra.methods import build_adapter
from espnet_hra.report.results import Row

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
RECIPE = ROOT / "egs2" / "hra_asr"
PLAN = yaml.safe_load((CONF / "quality.yaml").read_text())
VARIANTS = (CONF / "variants.yaml").read_text()
FILES = ("hra", "residual_r10", "lora_r6", "bitfit", "full")
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
