"""The page docs/compatibility.md is what the tests say."""

import subprocess
import sys
from pathlib import Path

import pytest
from compatibility import AXES, ENCODERS, PAGE, REASONS, RULES, page, shown_by

TESTS = Path(__file__).parent


def test_the_page_is_what_the_tests_say(request, tmp_path):
    shown = shown_by(request.config)
    if {path.name for path in TESTS.glob("test_*.py")} <= shown.modules:
        found = page(shown)
    else:  # some files alone
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cov"]
            + ["--compatibility", tmp_path / "page.md", TESTS],
            cwd=TESTS.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:]
        found = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert found == PAGE.read_text(encoding="utf-8"), "run `make compatibility`"


@pytest.mark.parametrize("name", ["asr", "s2t", "s2t_ctc", "st", "slu"])
def test_every_encoder_of_espnet_has_a_row(name):
    from importlib import import_module

    module = import_module(f"espnet2.tasks.{name}")
    names = {n for n in module.encoder_choices.classes if not n.startswith("hra_")}
    assert names <= set(ENCODERS)


def test_rules_name_what_there_is():
    for *values, key in RULES:
        assert key in REASONS
        for axis, some in zip(AXES, values):
            assert set(some or ()) <= set(AXES[axis])


def test_readme_and_messages_name_the_encoders_that_work():
    from espnet_hra.names import ENCODERS as NAMED

    readme = (TESTS.parent / "README.md").read_text(encoding="utf-8")
    for name in NAMED:
        assert f"{name}," in readme or f"{name};" in readme, name
    refused = {"rnn", "vgg_rnn", "linear", "longformer", "wav2vec2", "hubert"}
    refused |= {"hubert_pretrain", "avhubert"}
    rows = {name for name in ENCODERS if " " not in name}
    assert set(NAMED) == rows - refused
