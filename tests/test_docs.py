"""What the documents promise: numbers as they were measured, names that exist."""

import csv
import inspect
import re
from collections import defaultdict
from statistics import mean

import pytest
import yaml
from conftest import ROOT
from espnet2.tasks.asr import encoder_choices

import espnet_hra
from espnet_hra import cli
from espnet_hra.methods import METHODS
from espnet_hra.methods.base import Adapter

PACKAGE = ROOT / "espnet_hra"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *(page for page in (ROOT / "docs").glob("*.md") if not page.is_symlink()),
    ROOT / "egs2" / "hra_asr" / "README.md",
]

#: Of the results' rows: parameters of a task, and the label in results.tsv.
LABELS = {
    "0": "none",
    "9,360": "hra_c64",
    "18,576": "hra_c128",
    "37,008": "hra",
    "39,864": "residual_r10",
    "41,472": "lora_r6",
    "39,936": "bitfit",
    "124,560": "hra_c864",
    "126,564": "residual_r35",
    "124,416": "lora_r18",
    "6,211,769": "full",
}


def blocks(page, language):
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.M)
    return [text for name, text in fences if name == language]


def rows(page):
    """The cells of a page's tables."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def section(page, title):
    return page.read_text().partition(f"# {title}\n")[2].partition("\n#")[0]


@pytest.mark.parametrize(
    "page, found", [("egs2/hra_asr/README.md", 6), ("docs/results.md", 11)]
)
def test_error_rates_are_those_of_results_tsv(page, found):
    measured = defaultdict(lambda: defaultdict(list))
    with open(ROOT / "egs2" / "hra_asr" / "results.tsv", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if row["split"] == "test":
                measured[row["method"]][row["task"]].append(float(row["cer"]))
    for cells in rows(ROOT / page):
        label = LABELS.get(cells[1].partition(" ")[0])
        if label is None:
            continue
        found -= 1
        rates = [mean(measured[label][task]) for task in sorted(measured[label])]
        wanted = [*rates, mean(rates)][-len(cells[2:-1]) :]
        assert [float(cell) for cell in cells[2:-1]] == pytest.approx(wanted, abs=0.051)
        assert int(cells[-1] or 1) == len(measured[label]["fr_june"])
    assert found == 0


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    links = re.findall(r"\]\(([^)#]+)", text)
    for link in (link for link in links if not link.startswith("https:")):
        assert (ROOT / link).exists(), link


def test_the_tree_names_every_room_and_no_other():
    tree = blocks(ROOT / "CONTRIBUTING.md", "")[0]
    named = re.findall(r"^    (\S+)", tree, re.MULTILINE)
    there = [
        path.name + "/" * path.is_dir()
        for path in PACKAGE.iterdir()
        if not path.name.startswith("__")
    ]
    assert sorted(named) == sorted(there)
    for module in PACKAGE.rglob("*.py"):
        assert len(module.read_text().splitlines()) <= 500, module


@pytest.mark.parametrize(
    "way", ["From `wav.scp` to a score", "From `utt2task` to a head"]
)
def test_a_way_through_the_house_has_eight_files(way):
    files = re.findall(r"`(\w+/\w+\.py)`", section(ROOT / "CONTRIBUTING.md", way))
    assert 1 < len(files) <= 8
    for file in files:
        assert (PACKAGE / file).is_file(), file


def test_every_command_is_listed():
    listed = re.findall(r"^\| `([\w-]+)", (ROOT / "docs/commands.md").read_text(), re.M)
    assert set(cli.COMMANDS) <= set(listed)


def test_keys_of_methods_are_those_of_the_code():
    page = ROOT / "docs" / "methods.md"
    hra = inspect.signature(METHODS["hra"]).parameters
    known = set(hra) | set(inspect.signature(Adapter.configure).parameters)
    for cells in rows(page):
        key = cells[0].strip("`")
        if key in hra and key not in ("controller", "head"):
            default = yaml.safe_load(cells[1].partition(",")[0].strip("`"))
            assert default == hra[key].default, key
        elif key in METHODS:
            own = inspect.signature(METHODS[key]).parameters
            assert set(re.findall(r"`(\w+)`", cells[2])) == set(own) - {"backbone"}
    every = section(page, "Keys of all methods")
    assert set(re.findall(r"^\| `(\w+)`", every, re.M)) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_can_be_read(page):
    for number, code in enumerate(blocks(page, "python")):
        compile(code, f"{page.name}, example {number}", "exec")
    espnet_hra.register()
    for text in blocks(page, "yaml"):
        config = yaml.safe_load(text)
        if "encoder" in config:
            kind = encoder_choices.get_class(config["encoder"])
            encoder = kind(input_size=80, **config["encoder_conf"])
            assert encoder.tasks == ("fr_june", "it_carlo")
