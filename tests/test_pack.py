"""Packs: made, opened by both classes, shared through a hub, and refused if unsafe."""

import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from adaptations import TASKS, make_adaptation, texts, waves
from hub import hub

import espnet_hra
from espnet_hra import TaskError
from espnet_hra.commands import pack
from espnet_hra.errors import BaseModelError
from espnet_hra.files import archive
from espnet_hra.names import ENCODER_HINT, plain_encoder
from espnet_hra.tasks import file as taskfile

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """Caches of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def model(an4, base, tmp_path_factory) -> Path:
    """An adaptation with two tasks in its checkpoint, and results beside it."""
    work = tmp_path_factory.mktemp("adapted")
    folder = make_adaptation(work / "exp", base)
    head, shared = 16 * 32 + 32, 32 * 16 + 2 * 16 + 2 * 32
    lines = [
        "method task split seed shared_params task_params utterances words cer wer"
    ]
    lines += [f"none {t} test 0 0 0 5 20 50.0 90.0" for t in TASKS]
    lines += [f"hra_x {t} test 1 {shared} {head} 5 20 12.5 30.0" for t in TASKS]
    lines += [f"hra {t} test 2 {shared} {head} 5 20 99.0 99.0" for t in TASKS]
    text = "".join(line.replace(" ", "\t") + "\n" for line in lines)
    (work / "results.tsv").write_text(text)
    return folder


@pytest.fixture(scope="module")
def packed(model, tmp_path_factory) -> Path:
    """A base pack with both tasks inside, as a zip."""
    path = tmp_path_factory.mktemp("pack") / "base.zip"
    pack.main(
        ["--model", str(model), "--out", str(path), "--tasks", "all"]
        + ["--license", "cc-by-4.0", "--language", "en fr", "--data", "AN4, 5 voices"]
        + ["--name", "Small"]
    )
    return path


@pytest.fixture
def recordings(an4):
    return waves(an4["test"])


def opened(model, **kwargs):
    return espnet_hra.Speech2Text.from_pretrained(
        str(model), ctc_greedy=True, ctc_weight=1.0, **kwargs
    )


def card_of(text: str):
    """Metadata and body of a model card."""
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


# --------------------------------------------------------------------------- base packs


def test_a_base_pack_opens_and_says_the_same(packed, model, recordings):
    speech2text, before = opened(packed), opened(model)
    assert speech2text.tasks == TASKS
    for task in (*TASKS, None):
        assert texts(speech2text, recordings, task) == texts(before, recordings, task)


@pytest.mark.shows(encoder="conformer", objective="CTC", entrance="pack")
def test_a_base_pack_is_whole_without_anything_else(packed, tmp_path, recordings):
    """In another folder, unpacked; nothing of this machine is in it."""
    folder = tmp_path / "unpacked"
    with zipfile.ZipFile(packed) as opened_zip:
        opened_zip.extractall(folder)
    config = (folder / "config.yaml").read_text()
    assert str(HERE.parent) not in config and "/tmp" not in config
    assert yaml.safe_load(config)["pretrained_model"] is None
    assert texts(opened(folder), recordings, None) == texts(
        opened(packed), recordings, None
    )
    state = torch.load(folder / "model.pth", weights_only=True)
    assert not [key for key in state if ".heads." in key]
    assert "ctc.ctc_lo.weight" in state and "encoder.adapter.controller.W" in state


def test_espnets_own_class_opens_it(packed, model, recordings):
    from espnet2.bin.asr_inference import Speech2Text

    stock = Speech2Text.from_pretrained(str(packed), ctc_weight=1.0, beam_size=2)
    ours = espnet_hra.Speech2Text.from_pretrained(
        str(model), ctc_weight=1.0, beam_size=2
    )
    assert type(stock) is Speech2Text

    def said(speech2text):
        return [speech2text(wave)[0][0] for wave in recordings.values()]

    ours.set_task(None)
    assert said(stock) == said(ours)
    encoder = stock.asr_model.encoder
    for file in Path(opened(packed).store.folder).glob("*.safetensors"):
        encoder.load_task(file)
    for task in TASKS:
        encoder.set_task(task)
        ours.set_task(task)
        assert said(stock) == said(ours)


FRESH = """
import sys
code, pack, wave = sys.argv[1:]
if "import" in code:
    import espnet_hra
import soundfile
if "ours" in code:
    from espnet_hra import Speech2Text
else:
    from espnet2.bin.asr_inference import Speech2Text
speech2text = Speech2Text.from_pretrained(pack, ctc_weight=1.0, beam_size=2)
if "ours" in code:
    speech2text.set_task(None)
print("said:", repr(speech2text(soundfile.read(wave)[0])[0][0]))
"""


def fresh(code, path, an4):
    wave = (an4["test"] / "wav.scp").read_text().split()[1]
    return subprocess.run(
        [sys.executable, "-c", FRESH, code, str(path), wave],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


@pytest.mark.slow
def test_in_a_fresh_process_both_classes_say_the_same(packed, an4):
    said = [fresh(code, packed, an4).stdout for code in ("ours import", "import")]
    assert "said:" in said[0] and said[0] == said[1]


@pytest.mark.slow
def test_without_this_package_espnets_error_leads_here(packed, an4):
    found = fresh("", packed, an4)
    assert found.returncode != 0
    last = found.stderr.strip().splitlines()[-1]
    assert "--encoder must be one of" in last
    assert "pip install espnet-hra" in last and "import espnet_hra" in last


def test_the_hint_is_understood_by_every_registry():
    from espnet2.tasks.asr import encoder_choices

    name = "hra_conformer" + ENCODER_HINT
    assert name == name.lower()  # ESPnet looks up lower-case names only
    assert encoder_choices.get_class(name) is encoder_choices.get_class("hra_conformer")
    assert plain_encoder(name) == "hra_conformer"
    assert ENCODER_HINT not in str(encoder_choices.choices())
    with pytest.raises(ValueError):
        encoder_choices.get_class("hra_nonsense" + ENCODER_HINT)


def test_a_new_adaptation_can_stand_on_a_base_pack(packed, tmp_path):
    folder = make_adaptation(tmp_path / "exp", packed, ["x"])
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["encoder"] == "hra_conformer"
    assert opened(folder).tasks == ("x",)


def test_a_task_is_added_to_an_unpacked_base_pack(packed, an4, tmp_path, recordings):
    from espnet_hra.commands import tasks as tasks_cli

    archive.extract(packed, tmp_path / "base")
    data = tmp_path / "voice"
    data.mkdir()
    for name in ("wav.scp", "text"):
        shutil.copyfile(an4["train"] / name, data / name)
    command = ["add", "new", str(data), "--model", str(tmp_path / "base")]
    assert not tasks_cli.main([*command, "--max_epoch", "2"])
    assert opened(tmp_path / "base").tasks == tuple(sorted((*TASKS, "new")))
    assert texts(opened(tmp_path / "base"), recordings, "female") == texts(
        opened(packed), recordings, "female"
    )


def test_a_base_pack_with_16_bits_is_another_base(model, packed, tmp_path, recordings):
    path = tmp_path / "half.zip"
    pack.main(
        ["--model", str(model), "--out", str(path), "--half", "true"]
        + ["--tasks", "female"]
    )
    assert path.stat().st_size < 0.7 * packed.stat().st_size
    half = opened(path)
    assert half.tasks == ("female",)
    texts(half, recordings, "female")  # its own task is bound to it
    outside = opened(packed).store.path("it.carlo")
    with pytest.raises(TaskError, match="expected"):
        half.set_task(str(outside))
    from espnet2.bin.asr_inference import Speech2Text

    stock = Speech2Text.from_pretrained(str(path), ctc_weight=1.0, beam_size=1)
    stock(next(iter(recordings.values())))  # verifies the rounded backbone


def test_the_files_of_tasks_go_along_byte_by_byte(model, tmp_path):
    folder = Path(shutil.copytree(model, tmp_path / "exp"))
    encoder = opened(folder).asr_model.encoder
    (folder / "tasks").mkdir()
    encoder.add_task("new")
    encoder.save_task("new", folder / "tasks" / "new.safetensors")
    out = tmp_path / "pack"
    pack.main(["--model", str(folder), "--out", str(out), "--tasks", "new"])
    assert (out / "tasks" / "new.safetensors").read_bytes() == (
        folder / "tasks" / "new.safetensors"
    ).read_bytes()


def test_the_card_of_a_base(packed):
    with zipfile.ZipFile(packed) as opened_zip:
        head, body = card_of(opened_zip.read("README.md").decode())
    assert (
        "hierarchical-recurrent-adapter" in head["tags"] and "hra" not in head["tags"]
    )
    assert head["license"] == "cc-by-4.0" and head["language"] == ["en", "fr"]
    results = head["model-index"][0]["results"]
    assert {m["value"] for r in results for m in r["metrics"]} == {50.0, 90.0}
    title = next(line for line in body.splitlines() if line.startswith("# "))
    assert title == "# Hierarchical recurrent adapters: the base Small"
    assert "espnet_hra.Speech2Text.from_pretrained" in body and "AN4, 5 voices" in body
    assert "import espnet_hra" in body and "--encoder must be one of" in body
    assert "|female|test|5|12.5|30.0|" in body and "99.0" not in body
    assert opened(packed).asr_model.encoder.backbone_fingerprint in body


@pytest.mark.parametrize("adapter", ["residual", "lora", "bitfit", "full"])
def test_rivals_are_packed_as_well(base, tmp_path, recordings, adapter):
    folder = make_adaptation(tmp_path / "exp", base, adapter=adapter)
    command = ["--model", str(folder), "--license", "cc0-1.0"]
    pack.main([*command, "--out", str(tmp_path / "base.zip")])
    pack.main(
        [*command, "--out", str(tmp_path / "tasks"), "--task", "all"]
        + ["--base_tag", str(tmp_path / "base.zip")]
    )
    before, after = opened(folder), opened(tmp_path / "tasks")
    assert after.tasks == TASKS
    for task in (*TASKS, None):
        assert texts(before, recordings, task) == texts(after, recordings, task)
    head, _ = card_of((tmp_path / "tasks" / "README.md").read_text())
    assert adapter in head["tags"] and len(head["tags"]) == 4


def test_tasks_with_a_ctc_projection_of_their_own(base, tmp_path, recordings):
    folder = make_adaptation(tmp_path / "exp", base, ctc="task", new_tokens=["Я"])
    command = ["--model", str(folder), "--tasks", "all"]
    pack.main([*command, "--out", str(tmp_path / "base.zip")])
    before, after = opened(folder), opened(tmp_path / "base.zip")
    for task in (*TASKS, None):
        assert texts(before, recordings, task) == texts(after, recordings, task)
    from espnet2.bin.asr_inference import Speech2Text

    path = str(tmp_path / "base.zip")
    stock = Speech2Text.from_pretrained(path, ctc_weight=1.0, beam_size=1)
    wave = next(iter(recordings.values()))
    assert stock(wave)[0][0] is not None  # the plain backbone
    stock.asr_model.encoder.load_task(after.store.path("female"))
    with pytest.raises(RuntimeError, match="espnet_hra.Speech2Text"):
        stock(wave)


def test_options_that_make_no_sense_are_refused(model, tmp_path):
    for options in (
        ["--model", str(model), "--task", "female"],  # no --base_tag
        ["--model", str(model), "--task", "female", "--tasks", "all"],
        [],
    ):
        with pytest.raises(SystemExit):
            pack.main([*options, "--out", str(tmp_path / "x.zip")])
    with pytest.raises(TaskError, match="unknown task 'x'.*female"):
        pack.main(
            ["--model", str(model), "--tasks", "x", "--out", str(tmp_path / "x.zip")]
        )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(BaseModelError, match="there already"):
        pack.main(["--model", str(model), "--out", str(tmp_path / "full")])
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


def test_a_model_without_an_adapter_is_refused(base, tmp_path):
    with pytest.raises(BaseModelError, match="no adapter"):
        pack.main(["--model", str(base), "--out", str(tmp_path / "x.zip")])


# --------------------------------------------------------------------------- task packs


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_a_task_pack(packed, model, tmp_path, recordings, kind):
    out = tmp_path / ("female.zip" if kind == "zip" else "female")
    pack.main(
        ["--model", str(model), "--task", "female", "--base_tag", str(packed)]
        + ["--out", str(out), "--license", "cc-by-4.0", "--language", "en"]
    )
    before = texts(opened(packed), recordings, "female")
    assert texts(opened(packed, task=str(out)), recordings, "female") == before
    by_itself = opened(out)  # it names its base
    assert by_itself.asr_model.encoder.chosen_task == "female"
    assert texts(by_itself, recordings, "female") == before
    folder = out
    if kind == "zip":
        folder = tmp_path / "unpacked"
        archive.extract(out, folder)
    head, body = card_of((folder / "README.md").read_text())
    assert head["base_model"] == str(packed)
    assert head["base_model_relation"] == "adapter"
    assert "hierarchical-recurrent-adapter" in head["tags"]
    assert "# Hierarchical recurrent adapters: the task female" in body
    assert head["model-index"][0]["results"][0]["metrics"][0]["value"] == 12.5
    manifest = json.loads((folder / "hra_pack.json").read_text())
    assert manifest["base"]["tag"] == str(packed)
    file = taskfile.read(folder / "tasks" / "female.safetensors")
    assert file.record["backbone"] == manifest["base"]["backbone"]
    assert file.info["base_tag"] == str(packed)
    assert file.info["scores"][0]["cer"] == 12.5


def test_a_task_pack_of_another_base_is_refused(packed, base, tmp_path):
    other = make_adaptation(tmp_path / "other", base, controller="none")
    out = tmp_path / "pack"
    pack.main(
        ["--model", str(other), "--task", "female", "--base_tag", "a/b"]
        + ["--out", str(out)]
    )
    with pytest.raises(TaskError, match="expected.*found"):
        opened(packed, task=str(out))


# ------------------------------------------------------------------------------ the hub


@pytest.fixture(scope="module")
def shared(packed, model, home, tmp_path_factory):
    """A hub with a base and a task, uploaded by the command; and its environment."""
    work = tmp_path_factory.mktemp("hub")
    with hub() as server:
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)]),
            "HF_ENDPOINT": server.url,
            "HF_TOKEN": "hf_not_a_real_one",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(work / "hf"),
            "HOME": str(home),
        }

        def command(*argv):
            done = subprocess.run(
                [sys.executable, "-m", "espnet_hra.cli", "pack", *map(str, argv)],
                capture_output=True,
                text=True,
                env=env,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        said = command("--out", packed, "--upload", "me/base")
        assert f"{server.url}/me/base/commit/" in said
        command(
            *("--model", model, "--task", "female", "--base_tag", "me/base"),
            *("--out", work / "female", "--upload", "me/female"),
        )
        yield server, env


@pytest.mark.slow
def test_what_is_uploaded_is_the_pack(shared, packed):
    server, _ = shared
    with zipfile.ZipFile(packed) as opened_zip:
        content = {name: opened_zip.read(name) for name in opened_zip.namelist()}
    files = server.files("me/base")
    assert {k: v for k, v in files.items() if k != ".gitattributes"} == content


FROM_HUB = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import espnet_hra
from adaptations import texts, waves
recordings = waves(Path(sys.argv[2]))
def opened(name, **kwargs):
    return espnet_hra.Speech2Text.from_pretrained(
        name, ctc_greedy=True, ctc_weight=1.0, **kwargs
    )
base = opened("me/base")
assert base.tasks == ("female", "it.carlo"), base.tasks
assert not list(base.store.folder.glob("*")), "no task is fetched before it is chosen"
print("carlo", texts(base, recordings, "it.carlo"))
assert [p.stem for p in base.store.folder.glob("*")] == ["it.carlo"]
print("female", texts(opened("me/base", task="me/female"), recordings, "female"))
alone = opened("me/female")
assert alone.asr_model.encoder.chosen_task == "female"
try:
    opened("me/base", task="me/nothing")
except espnet_hra.TaskError as e:
    assert "me/nothing" in str(e)
else:
    raise AssertionError
from espnet2.bin.asr_inference import Speech2Text
stock = Speech2Text.from_pretrained("me/base", ctc_weight=1.0, beam_size=2)
print("stock", [stock(wave)[0][0] for wave in recordings.values()])
"""


@pytest.mark.slow
def test_models_and_tasks_come_from_the_hub(shared, packed, an4, recordings):
    server, env = shared
    found = subprocess.run(
        [sys.executable, "-c", FROM_HUB, str(HERE), str(an4["test"])],
        capture_output=True,
        text=True,
        env=env,
    )
    assert found.returncode == 0, found.stderr
    said = dict(
        line.split(" ", 1) for line in found.stdout.splitlines() if " [" in line
    )
    local = opened(packed)
    assert said["carlo"] == str(texts(local, recordings, "it.carlo"))
    assert said["female"] == str(texts(local, recordings, "female"))
    assert said["stock"].startswith("['")


def test_a_hub_that_refuses_is_one_line(packed, tmp_path):
    with hub() as server:
        env = {**os.environ, "HF_ENDPOINT": f"{server.url}/nowhere", "HF_TOKEN": "x"}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        found = subprocess.run(
            [sys.executable, "-m", "espnet_hra.cli", "pack", "--out", str(packed)]
            + ["--upload", "me/base"],
            capture_output=True,
            text=True,
            env=env,
        )
    assert found.returncode == 1
    assert "me/base: the hub did not take the pack" in found.stderr
    assert "Traceback" not in found.stderr


# ------------------------------------------------------------------ zips of strangers


def make_zip(path: Path, members, meta=None, config=None) -> Path:
    """A zip with these members: (name or ZipInfo, content)."""
    meta = meta or {
        "files": {"asr_model_file": "model.pth"},
        "yaml_files": {"asr_train_config": "config.yaml"},
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("meta.yaml", meta if isinstance(meta, str) else yaml.dump(meta))
        target.writestr("config.yaml", config or "encoder: hra_conformer\n")
        target.writestr("model.pth", b"no model")
        for name, content in members:
            target.writestr(name, content)
    return path


def special(name: str, kind: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.create_system = 3
    member.external_attr = (kind | 0o777) << 16
    return member


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)
UNSAFE = {
    "absolute": {"members": [("/tmp/espnet_hra_outside", b"x")]},
    "dots": {"members": [("../espnet_hra_outside", b"x")]},
    "dots within": {"members": [("a/../../espnet_hra_outside", b"x")]},
    "backslash": {"members": [("..\\espnet_hra_outside", b"x")]},
    "link": {"members": [(special("tasks", stat.S_IFLNK), b"/etc")]},
    "link and file": {
        "members": [(special("tasks", stat.S_IFLNK), b"/tmp"), ("tasks/x", b"x")]
    },
    "device": {"members": [(special("null", stat.S_IFCHR), b"")]},
    "pipe": {"members": [(special("pipe", stat.S_IFIFO), b"")]},
    "bomb": {"members": [("zeros", bytes(2**28))]},
    "many bombs": {"members": [(f"zeros{i}", bytes(2**23)) for i in range(20)]},
    "many members": {"members": [(f"{i}", b"") for i in range(20_001)]},
    "yaml bomb": {"config": BOMB},
    "large yaml": {"config": "#" * (2**23 + 1)},
    "deep yaml": {"config": "a: " + "[" * 10_000},
    "yaml object": {"config": "a: !!python/object/apply:os.system ['true']"},
    "model outside": {
        "meta": {
            "files": {"asr_model_file": "../../model.pth"},
            "yaml_files": {"asr_train_config": "config.yaml"},
        }
    },
    "absolute model": {
        "meta": {
            "files": {"asr_model_file": "/etc/hostname"},
            "yaml_files": {"asr_train_config": "config.yaml"},
        }
    },
    "missing model": {
        "meta": {
            "files": {"asr_model_file": "none.pth"},
            "yaml_files": {"asr_train_config": "config.yaml"},
        }
    },
    "no meta": {"meta": "[]"},
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("what", UNSAFE.values(), ids=UNSAFE)
def test_an_unsafe_zip_is_refused_and_leaves_nothing(what, tmp_path):
    (tmp_path / "in").mkdir()
    path = make_zip(tmp_path / "in" / "base.zip", what.pop("members", []), **what)
    cache = tmp_path / "deep" / "cache"
    with pytest.raises(BaseModelError):
        archive.unpack(path, cache)
    assert not list(cache.glob("*")) and not list(cache.glob(".*"))
    assert not list(tmp_path.rglob("*outside*"))
    assert not Path("/tmp/espnet_hra_outside").exists()


def test_a_name_that_stands_twice_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        path = make_zip(
            tmp_path / "base.zip", [("./model.pth", b""), ("model.pth", b"")]
        )
    with pytest.raises(BaseModelError, match="twice"):
        archive.unpack(path, tmp_path / "cache")


def test_damaged_zips_are_refused(packed, tmp_path):
    content = packed.read_bytes()
    path = tmp_path / "base.zip"
    for length in (0, 3, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(BaseModelError):
            archive.unpack(path, tmp_path / "cache")
    middle = bytearray(content)
    middle[len(content) // 2] ^= 255  # in the weights: the zip's own checksum
    path.write_bytes(middle)
    with pytest.raises(BaseModelError, match="unpacked"):
        archive.unpack(path, tmp_path / "cache")


def test_a_zip_that_lies_about_its_sizes_is_refused(tmp_path):
    """A member that holds more than the list of members says."""
    path = make_zip(tmp_path / "base.zip", [("zeros", bytes(2**20))])
    content = path.read_bytes()
    size = (2**20).to_bytes(4, "little")
    path.write_bytes(content.replace(size, (100).to_bytes(4, "little")))
    with pytest.raises(BaseModelError):
        archive.unpack(path, tmp_path / "cache")


def test_a_checkpoint_that_would_grow_is_refused(tmp_path):
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("archive/data/0", bytes(2**22))
    with pytest.raises(BaseModelError, match="claims to hold"):
        archive.check_checkpoint(path)
    from espnet_hra.files.checkpoint import read_state

    torch.save({"x": torch.zeros(1).expand(10**9)}, tmp_path / "expanded.pth")
    with pytest.raises(BaseModelError, match="expected tensors of the file's size"):
        read_state(tmp_path / "expanded.pth")


def test_espnets_own_packs_are_opened_wherever_they_were_made(
    base, tmp_path, monkeypatch
):
    """Files from outside the working directory have absolute names in meta.yaml."""
    from espnet2.main_funcs.pack_funcs import pack as espnet_pack

    from espnet_hra.espnet.base import open_base

    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir(), outside.mkdir()
    shutil.copyfile(base / "valid.loss.best.pth", outside / "m.pth")
    config = yaml.safe_load((base / "config.yaml").read_text())
    config["bpemodel"], config["cleaner"] = "data/bpe.model", "exp"
    (inside / "data").mkdir()
    (inside / "data" / "bpe.model").write_text("x")
    (inside / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(inside)
    espnet_pack(
        files={"asr_model_file": outside / "m.pth"},
        yaml_files={"asr_train_config": "config.yaml"},
        outpath=tmp_path / "p.zip",
        option=["data/bpe.model"],
    )
    monkeypatch.chdir(tmp_path)
    found = open_base(str(tmp_path / "p.zip"), str(tmp_path / "cache"))
    assert tmp_path / "cache" in found.model_file.parents
    assert found.state_dict()
    resolved = yaml.safe_load(found.config_file.read_text())
    assert Path(resolved["bpemodel"]).read_text() == "x"
    assert resolved["cleaner"] == "exp"


def test_a_tag_of_the_zoo_is_unpacked_as_carefully(packed, tmp_path, monkeypatch):
    """Its zips come from strangers too."""
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    from espnet_model_zoo.downloader import ModelDownloader

    served = tmp_path / "served"
    served.mkdir()
    shutil.copyfile(packed, served / "good.zip")
    make_zip(served / "bad.zip", [("../espnet_hra_outside", b"x")])
    handler = partial(SimpleHTTPRequestHandler, directory=str(served))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(
        ModelDownloader, "get_url", lambda self, name, **_: f"{address}/{name[3:]}.zip"
    )
    try:
        assert opened("me/good", task="female").tasks == ("female", "it.carlo")
        with pytest.raises(BaseModelError, match="outside"):
            opened("me/bad")
    finally:
        server.shutdown()
        server.server_close()


def test_equal_packs_are_unpacked_once(packed, tmp_path):
    one = archive.unpack(packed, tmp_path / "cache")
    shutil.copyfile(packed, tmp_path / "copy.zip")
    assert archive.unpack(tmp_path / "copy.zip", tmp_path / "cache") == one
    assert len(list((tmp_path / "cache").iterdir())) == 1
