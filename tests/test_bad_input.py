"""What goes wrong outside of the program: one clear line, and nothing done is lost."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from espnet_hra.commands.recipe import copy_recipe
from espnet_hra.errors import BaseModelError
from espnet_hra.espnet.base import check_adaptable, open_base

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "egs2" / "hra_asr"
PACKAGE = "asterisk-core-sounds-en"


def prepare(folder: Path, *options: object, path: str = "") -> list[str]:
    """Prepare debian_voices, which must fail; what it says on standard error."""
    done = subprocess.run(
        [shutil.which("bash"), "local/data.sh", "--downloads", folder / "downloads"]
        + ["--datadir", folder / "data", *map(str, options)],
        cwd=RECIPE,
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            **({"PATH": path} if path else {}),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()


def programs(folder: Path, **scripts: str) -> str:
    """A PATH with bash and these programs, and no others."""
    folder.mkdir()
    for name in ("bash", "sh", "env", "cat"):
        (folder / name).symlink_to(shutil.which(name))
    for name, script in scripts.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    return str(folder)


def debian_package(files: dict[str, str]) -> bytes:
    """A package as dpkg-deb builds it: an archive of archives."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:xz") as members:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            members.addfile(member, io.BytesIO(content.encode()))
    parts = [b"!<arch>\n"]
    for name, content in {
        "debian-binary": b"2.0\n",
        "control.tar.xz": b"odd",
        "data.tar.xz": tar.getvalue(),
    }.items():
        parts.append(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}".encode())
        parts.append(f"{len(content):<10}`\n".encode())
        parts.append(content + b"\n" * (len(content) % 2))
    return b"".join(parts)


def test_no_network(tmp_path):
    apt = (
        'echo "Err: 1 http://deb.invalid Could not connect"\necho "E: Failed"\nexit 100'
    )
    said = prepare(tmp_path, path=programs(tmp_path / "bin", apt_get=apt))
    assert len(said) == 1 and f"cannot fetch {PACKAGE}" in said[0]
    assert "E: Failed" in said[0] and "check the network" in said[0]
    assert f"copy the .deb file into {tmp_path}" in said[0]


def test_no_apt(tmp_path):
    said = prepare(tmp_path, path=programs(tmp_path / "bin"))
    assert len(said) == 1 and "no apt-get" in said[0]
    assert "run this on Debian or Ubuntu" in said[0] and "copy the .deb" in said[0]


def test_another_version_of_a_package(tmp_path):
    (tmp_path / "downloads").mkdir()
    package = tmp_path / "downloads" / f"{PACKAGE}_9_all.deb"
    package.write_bytes(debian_package({"usr/share/x": "y"}))
    said = prepare(tmp_path)
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    assert len(said) == 1 and f"found {digest}" in said[0]
    assert "another version" in said[0] and "--allow_changed true" in said[0]
    assert package.exists()


@pytest.mark.parametrize("tools", ["here", "missing"])
def test_packages_are_unpacked_without_the_tools_of_debian_too(
    tmp_path, monkeypatch, tools
):
    monkeypatch.syspath_prepend(str(ROOT / "local"))
    import debian_packages

    if tools == "missing":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif shutil.which("dpkg-deb") is None:
        pytest.skip("no dpkg-deb")
    package, out = tmp_path / "x.deb", tmp_path / "out"
    package.write_bytes(debian_package({"usr/share/a b": "c"}))
    out.mkdir()
    assert debian_packages.unpack(package, out) == ""
    assert (out / "usr" / "share" / "a b").read_text() == "c"
    package.write_bytes(package.read_bytes()[:-80])
    assert debian_packages.unpack(package, out) != ""
    package.write_bytes(b"<html>")
    assert debian_packages.unpack(package, out) != ""


# ------------------------------------------------------------------- the backbone


@pytest.mark.parametrize("damage", ["no zip", "half of it", "a flipped bit", "empty"])
def test_an_unreadable_pack(tmp_path, base, damage):
    pack = tmp_path / "pack.zip"
    meta = {
        "files": {"asr_model_file": "exp/valid.loss.best.pth"},
        "yaml_files": {"asr_train_config": "exp/config.yaml"},
    }
    with zipfile.ZipFile(pack, "w") as archive:
        for name in ("config.yaml", "valid.loss.best.pth"):
            archive.write(base / name, f"exp/{name}")
        archive.writestr("meta.yaml", yaml.safe_dump(meta))
    content = bytearray(pack.read_bytes())
    assert open_base(str(pack), cache=str(tmp_path / "whole")).config_file.is_file()
    content[len(content) // 2] ^= 0xFF
    pack.write_bytes(
        {
            "no zip": b"<html>404</html>",
            "half of it": content[: len(content) // 2],
            "a flipped bit": content,
            "empty": b"",
        }[damage]
    )
    with pytest.raises(BaseModelError, match="pack.zip") as refused:
        open_base(str(pack), cache=str(tmp_path / "cache"))
    assert "\n" not in str(refused.value)
    assert not list((tmp_path / "cache").rglob("*.pth"))


def with_config(folder: Path, config: object) -> str:
    """A folder that looks like a trained model of a configuration."""
    folder.mkdir()
    torch.save({}, folder / "latest.pth")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return str(folder)


@pytest.mark.parametrize(
    "encoder, message",
    [
        ("vgg_rnn", "is recurrent over time"),
        ("a_plugin", "cannot be built as an adapted one"),
    ],
)
def test_encoders_that_cannot_be_wrapped(tmp_path, encoder, message):
    config = {"encoder": encoder, "encoder_conf": {}, "token_list": ["<blank>", "a"]}
    found = open_base(with_config(tmp_path / "base", config))
    with pytest.raises(BaseModelError, match=message) as refused:
        check_adaptable(found)
    text = str(refused.value)
    assert encoder in text and "e_branchformer" in text and "\n" not in text


@pytest.mark.parametrize(
    "config, message",
    [
        ({"tts": "vits", "token_list": ["a"]}, "not a model for speech recognition"),
        ({"lm": "seq_rnn", "token_list": ["a"]}, "of the ESPnet task lm"),
        (["a", "list"], "expected keys and values"),
    ],
)
def test_models_that_do_not_recognise_speech(tmp_path, config, message):
    found = open_base(with_config(tmp_path / "base", config))
    with pytest.raises(BaseModelError, match=message):
        check_adaptable(found)


@pytest.mark.shows(encoder="vgg_rnn", entrance="recipe", because="recurrent")
def test_the_recipe_stops_before_it_computes_anything(tmp_path):
    config = {"encoder": "vgg_rnn", "token_list": ["<blank>", "a"]}
    source = with_config(tmp_path / "recurrent", config)
    recipe = copy_recipe(tmp_path / "recipe")
    done = subprocess.run(
        ["bash", str(recipe / "run.sh"), "--corpus", "mini_an4"]
        + ["--python", sys.executable, "--pretrained_model", source],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    stage, reason, log = done.stderr.splitlines()
    assert stage.startswith("Stage 8, Choice of the backbone, failed")
    assert "recurrent over time" in reason and "conformer, transformer" in reason
    assert log.endswith("logs/stage8.log")
    assert "Stage 4" not in done.stdout


@pytest.mark.parametrize("umask, mode", [(0o022, 0o755), (0o077, 0o700)])
def test_unpacked_folders_follow_the_umask(tmp_path, monkeypatch, umask, mode):
    monkeypatch.syspath_prepend(str(ROOT / "local"))
    from corpus import new_folder

    before = os.umask(umask)
    try:
        with new_folder(tmp_path / "deep" / "new") as folder:
            (folder / "file").touch()
            assert not (tmp_path / "deep" / "new").exists()
        with pytest.raises(ValueError), new_folder(tmp_path / "deep" / "half"):
            raise ValueError
    finally:
        os.umask(before)
    assert (tmp_path / "deep" / "new").stat().st_mode & 0o777 == mode
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["new"]
