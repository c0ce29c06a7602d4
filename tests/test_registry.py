"""`encoder: hra_...` in ESPnet2 and ESPnet3, whatever is imported first."""

import importlib
import subprocess
import sys

import pytest
from small_encoders import DIM, conf_of

import espnet_hra
from espnet_hra.encoder.adapted import AdaptedEncoder

MODULES = (
    "espnet2.tasks.asr",
    "espnet2.tasks.s2t",
    "espnet2.tasks.s2t_ctc",
    "espnet2.tasks.st",
    "espnet2.tasks.slu",
    "espnet3.systems.esp2_asr.task",
)
WRAPPABLE = ("conformer", "transformer", "branchformer", "e_branchformer")


def choices(module):
    try:
        return importlib.import_module(module).encoder_choices
    except ImportError as e:
        pytest.skip(f"{module} cannot be imported: {e}")


@pytest.mark.parametrize("module", MODULES)
def test_every_registry_has_the_adapted_encoders(module):
    found = choices(module)
    for name in WRAPPABLE:
        if name in found.classes:
            cls = found.get_class(f"hra_{name}")
            assert issubclass(cls, AdaptedEncoder)
            assert issubclass(cls, found.get_class(name))
    assert "hra_conformer" in found.classes


def test_registering_again_changes_nothing():
    found = choices("espnet2.tasks.asr")
    before, finders = dict(found.classes), list(sys.meta_path)
    for _ in range(2):
        espnet_hra.register()
    assert found.classes == before
    assert sys.meta_path == finders
    assert not any(name.startswith("hra_hra_") for name in before)
    assert [name for name in before if not name.startswith("hra_")]


def test_the_argument_parser_offers_and_accepts_it():
    pytest.importorskip("espnet2.tasks.asr")
    from espnet2.tasks.asr import ASRTask

    args = ASRTask.get_parser().parse_args(["--encoder", "hra_conformer"])
    assert args.encoder == "hra_conformer"


def test_the_default_configuration_lists_the_keys_of_both():
    from espnet2.utils.get_default_kwargs import get_default_kwargs

    cls = choices("espnet2.tasks.asr").get_class("hra_conformer")
    keys = get_default_kwargs(cls)
    assert {"output_size", "num_blocks", "input_layer"} <= set(keys)
    assert keys["adapter"] == "hra" and {"adapter_conf", "tasks"} <= set(keys)


def test_hra_rnn_is_refused_with_a_clear_message():
    found = choices("espnet2.tasks.asr")
    if "hra_rnn" not in found.classes:
        return
    with pytest.raises(ValueError, match="RNNEncoder.*conformer"):
        found.get_class("hra_rnn")(DIM)


def test_an_adapter_that_is_not_built_is_refused_with_the_list():
    cls = choices("espnet2.tasks.asr").get_class("hra_conformer")
    with pytest.raises(ValueError, match="'houlsby'.*built are: .*hra"):
        cls(DIM, adapter="houlsby", **conf_of("conformer"))


FRESH = """
import sys
import espnet2.tasks.asr as before
assert "hra_conformer" not in before.encoder_choices.classes
import espnet_hra
import espnet2.tasks.s2t as after
import espnet3.systems.esp2_asr.task as esp3
for module in (before, after, esp3):
    assert "hra_conformer" in module.encoder_choices.classes, module
print("registered")
"""


@pytest.mark.slow
def test_a_fresh_process_may_import_in_either_order(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", FRESH], capture_output=True, text=True, cwd=tmp_path
    )
    assert found.stdout.strip().endswith("registered"), found.stderr


def test_importing_the_package_is_quick():
    code = "import sys, espnet_hra; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
