"""Debian packages with recordings: fetched, compared with checksums, and unpacked.

Neither fetching nor unpacking needs root. What was done before is not done again.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from corpus import CorpusError, new_folder

#: The packages and the SHA256 checksums of the versions that results refer to:
#: asterisk-core-sounds-* 1.6.1-1, fillets-ng-data* 1.0.1-1.1 and
#: tuxpaint-stamps-default 2022.06.04-1 (Debian 12).
PACKAGES = {
    "asterisk-core-sounds-en": (
        "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50"
    ),
    "asterisk-core-sounds-en-g722": (
        "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806"
    ),
    "asterisk-core-sounds-es": (
        "9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74"
    ),
    "asterisk-core-sounds-es-g722": (
        "e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8"
    ),
    "asterisk-core-sounds-fr": (
        "04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056"
    ),
    "asterisk-core-sounds-fr-g722": (
        "7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0"
    ),
    "asterisk-core-sounds-it": (
        "3884d9457e12f21caa018c18f0d587df5d53ebea14b673d8453a134c5941ab3b"
    ),
    "asterisk-core-sounds-it-g722": (
        "46b4cf7afc508a5fcfc051b7ea233251c0d195dd4ef83cc4b7facb4c6429b016"
    ),
    "asterisk-core-sounds-ru": (
        "28a61616bb0cd3345a7ea532dec4df9f071e5d0fa9f8c1a563ea9669002f39ab"
    ),
    "asterisk-core-sounds-ru-g722": (
        "673b4238a6b8269960f055d868c6a11083f7a0d00979167cb01554046b48ed9b"
    ),
    "fillets-ng-data": (
        "25de89afd8b1adf7bcace8290248a6a22c89cd42300317e69000e162c032cf84"
    ),
    "fillets-ng-data-cs": (
        "3ecef99b9456f1c80c9625c6f2418642b52d58e7167a46bad7a412db17991b14"
    ),
    "fillets-ng-data-nl": (
        "afb4443fda9ab507dee578b75be857d121718a1cd6017a474f30e0eb13dc9d10"
    ),
    "tuxpaint-stamps-default": (
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"
    ),
}


def run_quietly(command: Sequence[str], cwd: Path | None = None) -> tuple[int, str]:
    """Run a program and collect what it says.

    Args:
        command: The program and its arguments; no shell is involved.
        cwd: The folder to run it in.

    Returns:
        The exit code and the output, errors included.
    """
    environment = dict(os.environ, LC_ALL="C.UTF-8", DEBIAN_FRONTEND="noninteractive")
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.returncode, done.stdout.decode("utf-8", "replace")


def last_error(output: str) -> str:
    """The line of a program's output that says best what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "Err:", "dpkg-deb:"))]
    return (errors or lines or ["no output"])[-1]


def sha256(path: Path) -> str:
    """The SHA256 checksum of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def unpack(archive: Path, folder: Path) -> str:
    """Unpack a Debian package, also where Debian's tools are missing.

    Args:
        archive: The package.
        folder: An empty folder.

    Returns:
        What went wrong; empty if nothing did.
    """
    if shutil.which("dpkg-deb") is not None:
        command = ["dpkg-deb", "-x", str(archive.resolve()), str(folder)]
        code, output = run_quietly(command)
        return last_error(output) if code else ""
    try:
        with open(archive, "rb") as stream:
            if stream.read(8) != b"!<arch>\n":
                return "not a Debian package"
            # Members: a name, numbers and a size in 60 bytes, then the content.
            while len(head := stream.read(60)) == 60:
                start, size = stream.tell(), int(head[48:58])
                if start + size > archive.stat().st_size:
                    return "it is cut short"
                if head.startswith(b"data.tar"):
                    with tarfile.open(fileobj=stream, mode="r:*") as tar:
                        tar.extractall(folder, filter="data")
                    return ""
                stream.seek(start + size + size % 2)
    except (OSError, ValueError, tarfile.TarError) as error:
        return str(error)
    return "no files in it"


class PackageStore:
    """Packages in a downloads folder, fetched and unpacked when first asked for.

    Args:
        downloads: The folder.
        allow_changed: Take packages whose checksum is not the pinned one.
    """

    def __init__(self, downloads: Path, allow_changed: bool = False) -> None:
        self.downloads = downloads
        self.allow_changed = allow_changed
        self._private_lists = False

    def unpacked(self, package: str) -> Path:
        """The folder with a package's files.

        Args:
            package: The package's name.

        Raises:
            CorpusError: If the package cannot be had or opened, or is not the
                one that is expected.
        """
        archive = self._archive(package)
        folder = self.downloads / "unpacked" / archive.stem
        if folder.is_dir():
            return folder
        with new_folder(folder) as partial:
            problem = unpack(archive, partial)
            if problem:
                free = shutil.disk_usage(folder.parent).free >> 20
                raise CorpusError(
                    f"cannot unpack {archive}: {problem} ({free} MB free); "
                    "make room, or delete the file to have it fetched again"
                )
        return folder

    def _archive(self, package: str) -> Path:
        """The package's file, fetched if it is not there, and checked."""
        self.downloads.mkdir(parents=True, exist_ok=True)
        present = sorted(self.downloads.glob(f"{package}_*.deb"))
        if present:
            self._check(package, present[-1])
            return present[-1]
        partial = Path(tempfile.mkdtemp(prefix=".fetch-", dir=self.downloads))
        try:
            print(f"fetching {package}", flush=True)
            self._fetch(package, partial)
            fetched = sorted(partial.glob("*.deb"))
            if not fetched:
                raise CorpusError(f"apt-get download {package} left no file")
            self._check(package, fetched[0])
            archive = self.downloads / fetched[0].name
            os.replace(fetched[0], archive)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return archive

    def _check(self, package: str, archive: Path) -> None:
        """Compare a package with its pinned checksum."""
        expected, found = PACKAGES[package], sha256(archive)
        if found == expected:
            return
        line = (
            f"{package}: {archive.name} is another version than the one that results "
            f"refer to (sha256 expected {expected}, found {found})"
        )
        if not self.allow_changed:
            raise CorpusError(
                f"{line}; put the expected version into {self.downloads}, or take "
                "this one with --allow_changed (of run.sh: --allow_changed true)"
            )
        print(f"warning: {line}", file=sys.stderr, flush=True)

    def _fetch(self, package: str, folder: Path) -> None:
        """Download a package, with package lists of our own if need be."""
        if shutil.which("apt-get") is None:
            raise CorpusError(
                f"no apt-get to fetch {package}: run this on Debian or Ubuntu (a "
                f"container does), or copy the .deb files of the packages into "
                f"{self.downloads}"
            )
        if not self._private_lists:
            code, output = run_quietly(self._apt("download", package), folder)
            if code == 0:
                return
            self._private_lists = True
            print("updating package lists of our own", flush=True)
            code, output = run_quietly(
                self._apt("update", "-o", "APT::Update::Error-Mode=any")
            )
            if code:
                raise self._failure(package, "apt-get update", output)
        code, output = run_quietly(self._apt("download", package), folder)
        if code:
            raise self._failure(package, "apt-get download", output)

    def _failure(self, package: str, program: str, output: str) -> CorpusError:
        """The error for a package that could not be fetched."""
        free = shutil.disk_usage(self.downloads).free >> 20
        remedy = (
            f"make room ({free} MB are free there)"
            if free < 400
            else "check the network and that apt's sources have Debian's main section, "
            f"or copy the .deb file into {self.downloads}"
        )
        return CorpusError(
            f"cannot fetch {package} into {self.downloads}: {program} says: "
            f"{last_error(output)}; {remedy}"
        )

    def _apt(self, *arguments: str) -> list[str]:
        """The command line of apt-get."""
        command = ["apt-get", "-q", "-o", "Acquire::Retries=3"]
        if os.geteuid() == 0:  # the user _apt cannot write into our folders
            command += ["-o", "APT::Sandbox::User=root"]
        if self._private_lists:
            root = (self.downloads / ".apt").resolve()
            for name in ("state/lists/partial", "cache/archives/partial"):
                (root / name).mkdir(parents=True, exist_ok=True)
            status = root / "state" / "status"
            status.touch()
            for option, value in (
                ("Dir::State", root / "state"),
                ("Dir::State::Status", status),
                ("Dir::Cache", root / "cache"),
            ):
                command += ["-o", f"{option}={value}"]
        return [*command, *arguments]
