#!/usr/bin/env python3
"""Prepare the corpus ``debian_voices``: recorded voices from Debian packages.

The corpus is a benchmark that anyone can rebuild, because it consists of
recordings with transcripts that are part of the Debian distribution:

* ``--part tasks``: telephone prompts of Asterisk, five languages with one
  professional voice each. Every voice is a task.
* ``--part backbone``: eleven other voices or casts for the model that the
  tasks start from, spoken descriptions of pictures of Tux Paint in nine
  languages and the acted dialogues of the game Fish Fillets in two. English
  and Italian are in the tasks only.

The packages are fetched with ``apt-get download``, compared with the checksums
below, and opened with ``dpkg-deb -x``: neither needs root. No audio of them is
part of this repository. Their licences: Asterisk sounds CC-BY-SA-3.0 and
CC-BY-3.0, Tux Paint stamps and Fish Fillets GPL-2+; each package has the full
text under ``usr/share/doc/<package>/copyright``.

What was done before is not done again: packages in the downloads folder,
unpacked packages and converted recordings are taken as they are.
"""

import argparse
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_hra.data.audio import Conversion, convert_all

from corpus import (
    SPLITS,
    CorpusError,
    Dropped,
    Split,
    Utterance,
    clean_text,
    fits_ctc,
    has_lost_letters,
    has_numerals,
    implausible_rates,
    one_line,
    safe_name,
    sentence_key,
    strip_brackets,
    summary,
    write_kaldi_dir,
)

CORPUS = "debian_voices"

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

#: The tasks: the language of the package, and the folder of the voice in it.
TASKS = {
    "en_allison": ("en", "en_US_f_Allison"),
    "es_allison": ("es", "es_MX_f_Allison"),
    "fr_june": ("fr", "fr_CA_f_June"),
    "it_carlo": ("it", "it_IT_m_Carlo"),
    "ru_ivrvoice": ("ru", "ru_RU_f_IvrvoiceRU"),
}

TUXPAINT_LANGUAGES = ("be", "bg", "ca", "da", "el", "es", "fr", "ro", "ru")
FILLETS_LANGUAGES = ("cs", "nl")

#: About 60 test and 40 dev utterances of a task voice.
TASK_SPLIT = Split(test=0.14, dev=0.09, dev_start=0.14)

#: About 20 utterances of a Tux Paint voice and 40 of a Fillets language. The
#: sentences held out here are a subset of those held out in the tasks.
BACKBONE_SPLIT = Split(test=0.025, dev=0.025, dev_start=0.14)

#: Silence that is left at either end of a recording, in seconds.
SILENCE = 0.25


@dataclass(frozen=True)
class Recording:
    """A recording as it lies in a package.

    Attributes:
        task: The task or, in the backbone's data, the language.
        speaker: The speaker; the task itself where it has one voice.
        name: Its name among the recordings of the speaker.
        audio: The audio file.
        text: The transcript as it came.
    """

    task: str
    speaker: str
    name: str
    audio: Path
    text: str


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
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


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
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".unpack-", dir=folder.parent))
        try:
            problem = unpack(archive, partial)
            if problem:
                free = shutil.disk_usage(folder.parent).free >> 20
                raise CorpusError(
                    f"cannot unpack {archive}: {problem} ({free} MB free); "
                    "make room, or delete the file to have it fetched again"
                )
            partial.chmod(0o755)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
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


def asterisk_transcripts(store: PackageStore, language: str) -> dict[str, str]:
    """The transcripts of Asterisk's prompts, by name of the prompt.

    Args:
        store: The packages.
        language: The language of the package.
    """
    package = f"asterisk-core-sounds-{language}"
    path = store.unpacked(package) / "usr/share/doc" / package
    texts: dict[str, str] = {}
    with gzip.open(
        path / f"core-sounds-{language}.txt.gz", "rt", encoding="utf-8-sig"
    ) as stream:
        for line in stream:
            name, colon, text = line.partition(":")
            if colon and not name.startswith(";"):
                texts.setdefault(name.strip(), text.strip())
    return texts


def asterisk_recordings(store: PackageStore) -> Iterator[Recording]:
    """The prompts of the five voices of Asterisk.

    Args:
        store: The packages.
    """
    for task, (language, voice) in TASKS.items():
        texts = asterisk_transcripts(store, language)
        package = store.unpacked(f"asterisk-core-sounds-{language}-g722")
        folder = package / "usr/share/asterisk/sounds" / voice
        for audio in sorted(folder.rglob("*.g722")):
            name = audio.relative_to(folder).with_suffix("").as_posix()
            yield Recording(task, task, name, audio, texts.get(name, ""))


def tuxpaint_recordings(store: PackageStore) -> Iterator[Recording]:
    """The spoken descriptions of Tux Paint's stamps.

    Args:
        store: The packages.
    """
    folder = store.unpacked("tuxpaint-stamps-default") / "usr/share/tuxpaint/stamps"
    texts: dict[Path, dict[str, str]] = {}
    for language in TUXPAINT_LANGUAGES:
        ending = f"_desc_{language}.ogg"
        for audio in sorted(folder.rglob(f"*{ending}")):
            stamp = audio.with_name(audio.name[: -len(ending)])
            if stamp not in texts:
                texts[stamp] = tuxpaint_texts(stamp.with_name(f"{stamp.name}.txt"))
            name = stamp.relative_to(folder).as_posix()
            text = texts[stamp].get(language, "")
            yield Recording(language, f"{language}_tuxpaint", name, audio, text)


def tuxpaint_texts(path: Path) -> dict[str, str]:
    """The descriptions of a stamp by language; none where there is no file."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = (re.match(r"([A-Za-z_@]+)\.utf8=(.*)", line) for line in lines)
    return {pair.group(1): pair.group(2).strip() for pair in pairs if pair}


_LUA_STRING = r'"((?:[^"\\]|\\.)*)"'
_LUA_DIALOG = re.compile(
    rf"dialogId\(\s*{_LUA_STRING}\s*,\s*{_LUA_STRING}\s*,\s*{_LUA_STRING}\s*\)"
    rf"\s*dialogStr\(\s*{_LUA_STRING}\s*\)"
)


def fillets_recordings(store: PackageStore) -> Iterator[Recording]:
    """The dialogues of Fish Fillets; every character is a speaker.

    Args:
        store: The packages.
    """
    base = Path("usr/share/games/fillets-ng")
    scripts = store.unpacked("fillets-ng-data") / base / "script"
    for language in FILLETS_LANGUAGES:
        package = store.unpacked(f"fillets-ng-data-{language}")
        for script in sorted(scripts.glob(f"*/dialogs_{language}.lua")):
            level = script.parent.name
            folder = package / base / "sound" / level / language
            source = script.read_text(encoding="utf-8", errors="replace")
            for match in _LUA_DIALOG.finditer(source):
                name, font, _, text = match.groups()
                audio = folder / f"{name}.ogg"
                if not audio.is_file():
                    continue  # a line that is only shown
                character = safe_name(font.replace("font_", "", 1)) or "other"
                text = re.sub(r"\\(.)", r"\1", text.replace("\\n", " "))
                speaker = f"{language}_{character}"
                yield Recording(language, speaker, f"{level}/{name}", audio, text)


def tidy(recording: Recording) -> tuple[str, str]:
    """Clean a transcript up, or say why the recording is left out.

    Args:
        recording: The recording.

    Returns:
        The text and an empty reason, or an empty text and the reason.
    """
    if not recording.text:
        return "", "no transcript"
    try:
        text = strip_brackets(recording.text)
    except ValueError:
        return "", "words in brackets"
    if has_numerals(text):
        return "", "digits or signs"
    if has_lost_letters(text):
        return "", "lost letters"
    text = clean_text(text)
    if recording.task == "ro":  # one letter, two code points
        text = text.translate(str.maketrans("\u015f\u0163", "\u0219\u021b"))
    return text, "" if text else "no words"


class ProgressPrinter:
    """Prints how far a conversion is, every few seconds.

    Args:
        every: The seconds between two lines.
    """

    def __init__(self, every: float = 5.0) -> None:
        self.every = every
        self.printed = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Print a line if it is time, and at the end."""
        now = time.monotonic()
        if done == total or now - self.printed >= self.every:
            self.printed = now
            print(f"converted {done} of {total} recordings", flush=True)


def prepare(
    recordings: Sequence[Recording], audio_folder: Path, nj: int
) -> tuple[list[Utterance], Dropped]:
    """Clean transcripts up, convert the audio and drop what does not fit.

    Args:
        recordings: The recordings as they lie in the packages.
        audio_folder: The folder for the FLAC files.
        nj: The number of processes.

    Returns:
        The utterances, and what was left out.
    """
    dropped = Dropped()
    kept: dict[str, tuple[Recording, str, str]] = {}
    for recording in recordings:
        text, reason = tidy(recording)
        utt_id = f"{recording.speaker}-{safe_name(recording.name)}"
        if not reason and utt_id in kept:
            reason = "name used twice"
        if reason:
            dropped.add(recording.task, reason)
            continue
        target = audio_folder / recording.speaker / f"{safe_name(recording.name)}.flac"
        kept[utt_id] = recording, text, os.path.abspath(target)
    lengths, failures = convert_all(
        [
            Conversion(str(recording.audio), target, SILENCE)
            for recording, _, target in kept.values()
        ],
        nj,
        ProgressPrinter(),
    )
    for message in failures.values():
        print(f"warning: {message}", file=sys.stderr, flush=True)
    utterances = []
    for utt_id, (recording, text, target) in kept.items():
        task, speaker = recording.task, recording.speaker
        if target not in lengths:
            dropped.add(task, "unreadable audio")
        elif not fits_ctc(text, lengths[target]):
            dropped.add(task, "text does not fit the audio")
        else:
            utterances.append(
                Utterance(utt_id, speaker, task, text, target, lengths[target])
            )
    reasons = implausible_rates(utterances)
    for utterance in utterances:
        if utterance.utt_id in reasons:
            dropped.add(utterance.task, reasons[utterance.utt_id])
    return [u for u in utterances if u.utt_id not in reasons], dropped


def held_out_sentences(store: PackageStore) -> set[str]:
    """The sentences of the tasks' dev and test sets, as sentence keys.

    Args:
        store: The packages, of which only the small ones with the transcripts
            are needed.
    """
    keys = set()
    for task, (language, _) in TASKS.items():
        for name, text in asterisk_transcripts(store, language).items():
            text, reason = tidy(Recording(task, task, name, Path(), text))
            if not reason and TASK_SPLIT(text) != "train":
                keys.add(sentence_key(text))
    return keys


def prepare_part(
    part: str, store: PackageStore, datadir: Path, nj: int
) -> dict[str, list[Utterance]]:
    """Prepare one part of the corpus and write its Kaldi-style folders.

    Args:
        part: ``tasks`` or ``backbone``.
        store: The packages.
        datadir: The recipe's data folder.
        nj: The number of processes.

    Returns:
        The utterances by name of the split.
    """
    if part == "tasks":
        recordings = list(asterisk_recordings(store))
        split, prefix, held_out = TASK_SPLIT, "", set()
    else:
        recordings = [*tuxpaint_recordings(store), *fillets_recordings(store)]
        split, prefix = BACKBONE_SPLIT, "backbone_"
        held_out = held_out_sentences(store)
    folder = datadir / CORPUS
    utterances, dropped = prepare(recordings, folder / "audio", nj)
    sets: dict[str, list[Utterance]] = {name: [] for name in SPLITS}
    for utterance in utterances:
        name = split(utterance.text)
        if name == "train" and sentence_key(utterance.text) in held_out:
            dropped.add(utterance.task, "held out in a task")
        else:
            sets[name].append(utterance)
    for name, members in sets.items():
        write_kaldi_dir(folder / f"{prefix}{name}", members)
    print(f"\n{CORPUS}, part {part}: {len(recordings)} recordings")
    print(dropped.table(sorted({recording.task for recording in recordings})))
    print(f"\n{summary(sets)}\n", flush=True)
    return sets


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        description=(
            "Prepare the corpus debian_voices: fetch Debian packages with recorded "
            "voices, convert them to 16 kHz FLAC and write Kaldi-style data folders, "
            f"DATADIR/{CORPUS}/{{train,dev,test}} for the five task voices and "
            f"DATADIR/{CORPUS}/backbone_{{train,dev,test}} for the backbone."
        ),
        epilog=(
            "What was done before is not done again. Download: 55 MB for the tasks, "
            "303 MB for the backbone. Licences: CC-BY-SA-3.0, CC-BY-3.0, GPL-2+."
        ),
    )
    parser.add_argument(
        "--part",
        choices=["tasks", "backbone"],
        nargs="+",
        default=["tasks"],
        help="the part or parts to prepare (default: tasks)",
    )
    parser.add_argument(
        "--datadir",
        type=Path,
        default=Path("data"),
        help="the folder to write into (default: data)",
    )
    parser.add_argument(
        "--downloads",
        type=Path,
        default=Path("downloads"),
        help="the folder for packages, fetched and unpacked (default: downloads)",
    )
    parser.add_argument(
        "--nj",
        type=int,
        default=2,
        help="the number of conversion processes (default: 2)",
    )
    parser.add_argument(
        "--allow_changed",
        action="store_true",
        help="take packages whose checksums are not those that results refer to",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare what the command line asks for.

    Args:
        arguments: The command line, ``sys.argv`` if None.

    Returns:
        The exit code.
    """
    args = get_parser().parse_args(arguments)
    store = PackageStore(args.downloads, args.allow_changed)
    with one_line():
        for part in args.part:
            prepare_part(part, store, args.datadir, args.nj)
    return 0


if __name__ == "__main__":
    sys.exit(main())
