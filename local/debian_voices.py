#!/usr/bin/env python3
"""Prepare the corpus ``debian_voices``: recorded voices from Debian packages.

The corpus is a benchmark that anyone can rebuild, because it consists of
recordings with transcripts that are part of the Debian distribution:

* ``--part tasks``: telephone prompts of Asterisk, five languages with one
  professional voice each. Every voice is a task.
* ``--part backbone``: eleven other voices or casts for the model that the
  tasks start from, spoken descriptions of pictures of Tux Paint in nine
  languages and the acted dialogues of the game Fish Fillets in two. English
  and Italian are in the tasks only; with ``--english``, speechocean762's readers
  are the English.

``debian_packages.py`` fetches the packages, and compares them with the checksums
of the versions that results refer to. No audio of them is part of this
repository. Their licences: Asterisk sounds CC-BY-SA-3.0 and
CC-BY-3.0, Tux Paint stamps and Fish Fillets GPL-2+; each package has the full
text under ``usr/share/doc/<package>/copyright``.

What was done before is not done again: packages in the downloads folder,
unpacked packages and converted recordings are taken as they are.
"""

import argparse
import gzip
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_hra.data.audio import Conversion, convert_all
from espnet_hra.data.lists import write_lists
from espnet_hra.data.progress import Progress
from espnet_hra.data.sentences import sentence_key

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
    strip_brackets,
    summary,
    write_kaldi_dir,
)
from debian_packages import PackageStore
from speechocean762 import recordings as speechocean762_recordings

CORPUS = "debian_voices"

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


def english_recordings(source: Path) -> Iterator[Recording]:
    """The sentences that the 125 speakers of speechocean762's training part read.

    Args:
        source: The corpus as it is distributed.

    Raises:
        CorpusError: It is not there.
    """
    found = list(speechocean762_recordings(source, {"parts": ["train"]}))
    if not found:
        raise CorpusError(f"{source}: no train/wav.scp of speechocean762 in it")
    for one in found:
        if not one.why:
            speaker = f"en_{safe_name(one.speaker)}"
            yield Recording("en", speaker, one.name, one.audio, one.text)


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
        Progress("converted"),
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
    part: str,
    store: PackageStore,
    datadir: Path,
    nj: int,
    english: Path | None = None,
) -> dict[str, list[Utterance]]:
    """Prepare one part of the corpus and write its Kaldi-style folders.

    Args:
        part: ``tasks`` or ``backbone``.
        store: The packages.
        datadir: The recipe's data folder.
        nj: The number of processes.
        english: Where speechocean762 is, which the backbone is to hear as well.

    Returns:
        The utterances by name of the split.
    """
    if part == "tasks":
        recordings = list(asterisk_recordings(store))
        split, prefix, held_out = TASK_SPLIT, "", set()
    else:
        recordings = [*tuxpaint_recordings(store), *fillets_recordings(store)]
        recordings += [] if english is None else english_recordings(english)
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
        if part == "tasks":  # what Whisper is told
            spoken = {u.utt_id: TASKS[u.task][0] for u in members}
            lines = [f"{utt} {code}" for utt, code in sorted(spoken.items())]
            write_lists(folder / name, {"utt2lang": lines})
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
        "--english",
        type=Path,
        help="the folder of speechocean762, English for the backbone (default: none)",
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
            prepare_part(part, store, args.datadir, args.nj, args.english)
    return 0


if __name__ == "__main__":
    sys.exit(main())
