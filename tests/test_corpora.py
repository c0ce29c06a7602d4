"""Named corpora: small trees of their layouts, whole and damaged."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_hra.commands.recipe import copy_recipe
from espnet_hra.data.lists import read_entries

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "egs2" / "hra_asr"
SPLITS = ("train", "dev", "test")
NOISE = np.random.default_rng(0).normal(0, 0.05, 1600)


def sentence(number: int) -> str:
    """A sentence of its own: the number in letters."""
    return "say " + " ".join("abcdefghij"[int(digit)] * 2 for digit in str(number))


def record(path: Path, rate: int = 16000) -> None:
    """Write a recording."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, NOISE, rate)


def write(path: Path, text: str) -> None:
    """Write a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def prepare(name: str, source: Path, out: Path) -> subprocess.CompletedProcess:
    """Run a corpus's program, as stage 1 does."""
    return subprocess.run(
        [
            sys.executable,
            ROOT / "local" / f"{name}.py",
            "--source",
            source,
            "--datadir",
            out,
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def prepared(name: str, source: Path, out: Path) -> tuple[dict, str]:
    """The lists by set and name, and what was said."""
    done = prepare(name, source, out)
    assert done.returncode == 0, done.stderr
    lists = ("wav.scp", "text", "utt2spk", "utt2task", "utt2lang")
    sets = {
        split: {file: read_entries(out / name / split / file) for file in lists}
        for split in SPLITS
    }
    texts = {split: set(sets[split]["text"].values()) for split in SPLITS}
    for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert not texts[one] & texts[other], (one, other)
    for columns in sets.values():
        ids = list(columns["wav.scp"])
        assert ids == sorted(ids)
        assert all(list(column) == ids for column in columns.values())
        assert all(map(os.path.isfile, columns["wav.scp"].values()))
    return sets, done.stdout


def speechocean762(source: Path, speakers: int = 2) -> Path:
    """Twenty sentences of each speaker; the first is the same for all."""
    lists: dict[str, list[str]] = {"wav.scp": [], "text": [], "utt2spk": []}
    for speaker in range(1, speakers + 1):
        for number in range(20):
            name = f"{speaker:05}{number:04}"
            audio = f"WAVE/SPEAKER{speaker:04}/{name}.WAV"
            record(source / audio)
            text = "THE SAME" if number == 0 else sentence(100 * speaker + number)
            lists["wav.scp"].append(f"{name}\t{audio}")
            lists["text"].append(f"{name}\t{text.upper()}")
            lists["utt2spk"].append(f"{name} {speaker:04}")
    for name, lines in lists.items():
        write(source / "train" / name, "\n".join(lines) + "\n")
    return source


def l2_arctic(source: Path) -> Path:
    """Two speakers who read the same forty sentences, one in a folder too many."""
    for folder in ("ABA", "YBAA/YBAA"):
        for number in range(40):
            name = f"arctic_a{number:04}"
            record(source / folder / "wav" / f"{name}.wav", 44100)
            write(source / folder / "transcript" / f"{name}.txt", sentence(number))
    (source / "ABA" / "annotation").mkdir()
    record(source / "suitcase_corpus" / "wav" / "aba.wav")
    return source


def torgo(source: Path) -> Path:
    """A speaker with and one without dysarthria, and every kind of prompt."""
    for speaker in ("F/F01", "MC/MC01"):
        session = source / speaker / "Session1"
        for number in range(40):
            record(session / "wav_headMic" / f"{number:04}.wav")
            write(session / "prompts" / f"{number:04}.txt", f"{sentence(number)}.\n")
    return source


def librispeech(source: Path) -> Path:
    """Two speakers of dev-clean."""
    for speaker in ("1272", "84"):
        chapter = source / "LibriSpeech" / "dev-clean" / speaker / "128104"
        lines = []
        for number in range(60):
            name = f"{speaker}-128104-{number:04}"
            record(chapter / f"{name}.flac")
            lines.append(f"{name} {sentence(int(speaker) * 100 + number).upper()}")
        write(chapter / f"{speaker}-128104.trans.txt", "\n".join(lines) + "\n")
    return source


def common_voice(source: Path) -> Path:
    """A speaker with enough sentences and one with few, quotes in a sentence."""
    rows = ["client_id\tpath\tsentence\tup_votes\taccents\tlocale"]
    for client, count in (("a" * 128, 100), ("b" * 128, 5)):
        for number in range(count):
            name = f"common_voice_cy_{client[0]}{number}.mp3"
            record(source / "clips" / name, 32000)
            text = f'"{sentence(number).capitalize()}!' if number == 3 else "x"
            text = text if number == 3 else sentence(number)
            rows.append(f"{client}\t{name}\t{text}\t2\tGogledd Cymru\tcy")
    write(source / "validated.tsv", "\n".join(rows) + "\n")
    return source


def afrispeech_200(source: Path) -> Path:
    """Two accents; a sentence of training is in test too; one accent has no test."""
    for accent in ("igbo", "isi zulu"):
        for part, first, count in (("train", 0, 60), ("dev", 60, 8), ("test", 68, 8)):
            if accent == "isi zulu" and part == "test":
                continue
            lines = ["audio_paths,transcript,user_ids,accent"]
            for number in range(first, first + count):
                folder = f"{part}_{accent}_0/deep"
                record(source / "audio" / accent / part / folder / f"{number}.wav")
                text = f"{sentence(number)}, yes"
                speaker = f"{accent[:2]}{number % 3}"
                if number in (0, 70):
                    text = "The same one"
                lines.append(f'/data/x/{number}.wav,"{text}",{speaker},{accent}')
            write(
                source / "transcripts" / accent / f"{part}.csv", "\n".join(lines) + "\n"
            )
    return source


MAKERS = {
    maker.__name__: maker
    for maker in (
        speechocean762,
        l2_arctic,
        torgo,
        librispeech,
        common_voice,
        afrispeech_200,
    )
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_corpus_as_distributed(name, tmp_path):
    source = MAKERS[name](tmp_path / "it's a $HOME")
    sets, said = prepared(name, source, tmp_path / "data")
    tasks = {
        split: set(columns["utt2task"].values()) for split, columns in sets.items()
    }
    wanted = {
        "speechocean762": {"speaker0001", "speaker0002"},
        "l2_arctic": {"ABA", "YBAA"},
        "torgo": {"F01", "MC01"},
        "librispeech": {"speaker1272", "speaker84"},
        "common_voice": {f"speaker_{'a' * 16}"},
        "afrispeech_200": {"igbo"},
    }[name]
    assert tasks == dict.fromkeys(SPLITS, wanted)
    language = "cy" if name == "common_voice" else "en"
    assert set(sets["test"]["utt2lang"].values()) == {language}
    for columns in sets.values():
        for utterance, speaker in columns["utt2spk"].items():
            assert utterance.startswith(f"{speaker}-")
    # The same again, to the letter.
    again, repeated = prepared(name, source, tmp_path / "again")
    assert (again, repeated) == (sets, said)


def test_speechocean762_has_its_counts_and_shared_sentences_are_held_out(tmp_path):
    sets, said = prepared(
        "speechocean762", speechocean762(tmp_path / "so", 6), tmp_path / "data"
    )
    for task in {f"speaker000{number}" for number in range(1, 7)}:
        counts = [list(sets[s]["utt2task"].values()).count(task) for s in SPLITS]
        assert sum(counts) in (19, 20) and counts[1] in (2, 3) and counts[2] in (4, 5)
    assert sum(len(columns["text"]) for columns in sets.values()) >= 6 * 19
    homes = [s for s in SPLITS if "the same" in sets[s]["text"].values()]
    assert len(homes) == 1


def test_speechocean762_counts_are_exact_where_no_sentence_is_shared(tmp_path):
    source = speechocean762(tmp_path / "so", 1)
    sets, _ = prepared("speechocean762", source, tmp_path / "data")
    assert {s: len(sets[s]["text"]) for s in SPLITS} == {
        "train": 12,
        "dev": 3,
        "test": 5,
    }


def test_afrispeech_keeps_its_sets_but_for_held_out_sentences(tmp_path):
    source = afrispeech_200(tmp_path / "a")
    sets, said = prepared("afrispeech_200", source, tmp_path / "data")
    assert {s: len(sets[s]["text"]) for s in SPLITS} == {
        "train": 59,
        "dev": 8,
        "test": 8,
    }
    assert "the same one" in sets["test"]["text"].values()
    # isi zulu has no test set: its 68 recordings are left out, with the reason.
    assert "a task with too little in test: 6" in said


def test_prompts_of_torgo_that_are_not_speech(tmp_path):
    source = torgo(tmp_path / "torgo")
    session = source / "F" / "F01" / "Session2_3"
    prompts = {
        "0001": "[say Ah-P-Eee repeatedly]",
        "0002": "xxx",
        "0003": "input/images/car.jpg",
        "0004": "tear [as in tear up that paper]",
        "0005": "The 3 bears",
        "0006": "",
    }
    for name, prompt in prompts.items():
        record(session / "wav_arrayMic" / f"{name}.wav")
        write(session / "prompts" / f"{name}.txt", prompt)
    record(session / "wav_headMic" / "0007.wav")  # no prompt
    write(session / "prompts" / "0008.txt", "never recorded")
    record(session / "wav_headMic" / "0009.wav")
    (session / "wav_headMic" / "0009.wav").write_bytes(b"")
    write(session / "prompts" / "0009.txt", "an empty file")
    (source / "F" / "F03" / "Session1").mkdir(parents=True)
    sets, said = prepared("torgo", source, tmp_path / "data")
    found = {
        u: text
        for columns in sets.values()
        for u, text in columns["text"].items()
        if "Session2_3" in u
    }
    assert found == {"F01-Session2_3-0004": "tear"}
    for why, utterance in {
        "the prompt is an instruction": "0001",
        "the prompt is xxx": "0002",
        "the prompt is a picture": "0003",
        "digits or signs": "0005",
        "no transcript": "0007",
        "there is no such recording": "0008",
        "the recording is an empty file": "0009",
    }.items():
        (line,) = [line for line in said.splitlines() if f"left out, {why}" in line]
        assert f"F01-Session2_3-{utterance}" in line
    assert "a speaker without prompts: 1: F03" in said
    # Half of what stays is a prompt of both speakers: it is in one set for both.
    both = [set(columns["text"].values()) for columns in sets.values()]
    assert len(set().union(*both)) == sum(map(len, both))


def test_missing_and_surplus_files(tmp_path):
    source = l2_arctic(tmp_path / "l2")
    (source / "ABA" / "transcript" / "arctic_a0001.txt").unlink()
    (source / "ABA" / "wav" / "arctic_a0002.wav").unlink()
    (source / "BWC").mkdir()
    _, said = prepared("l2_arctic", source, tmp_path / "data")
    assert "left out, no transcript: 1: ABA-arctic_a0001" in said
    assert "left out, there is no such recording: 1: ABA-arctic_a0002" in said
    assert "left out, a speaker without recordings: 1: BWC" in said


def test_librispeech_without_a_list_or_a_line(tmp_path):
    source = librispeech(tmp_path / "ls")
    chapter = source / "LibriSpeech" / "dev-clean" / "84" / "128105"
    record(chapter / "84-128105-0000.flac")
    _, said = prepared("librispeech", source, tmp_path / "data")
    assert "left out, no transcript: 1: speaker84-128105-0000" in said


def test_accents_of_common_voice_can_be_tasks(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "local")
    import common_voice as program

    source = common_voice(tmp_path / "cy")
    config = {"tasks": "accent"}
    found = list(program.recordings(source, config))
    assert {one.task for one in found} == {"Gogledd Cymru"} and len(found) == 105
    with pytest.raises(program.CorpusError, match="'county'; it can be speaker or acc"):
        list(program.recordings(source, {"tasks": "county"}))
    # The corpus's own lists do where the one of all is missing.
    (source / "validated.tsv").rename(source / "train.tsv")
    assert list(program.recordings(source, config)) == found


def test_a_recording_that_is_listed_twice_counts_once(tmp_path):
    source = common_voice(tmp_path / "cy")
    path = source / "validated.tsv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1]]) + "\n")
    _, said = prepared("common_voice", source, tmp_path / "data")
    assert "another recording has the same name: 1: speaker_aaaa" in said


@pytest.mark.parametrize("name", MAKERS)
def test_a_folder_that_is_not_the_corpus_is_refused_in_one_line(name, tmp_path):
    (tmp_path / "empty").mkdir()
    done = prepare(name, tmp_path / "empty", tmp_path / "data")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert f"is not {name} as it is distributed: there should be" in done.stderr
    done = prepare(name, tmp_path / "gone", tmp_path / "data")
    assert done.returncode == 1 and "write the path" in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "name, file", [("common_voice", "validated.tsv"), ("speechocean762", "train/text")]
)
def test_lists_that_are_damaged_are_refused(name, file, tmp_path):
    source = MAKERS[name](tmp_path / "source")
    (source / file).write_bytes(b"\n")
    done = prepare(name, source, tmp_path / "data")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert str(source / file) in done.stderr and "again" in done.stderr


def test_too_little_for_any_task_says_what_was_left_out(tmp_path):
    source = tmp_path / "torgo"
    session = source / "F01" / "Session1"
    write(session / "prompts" / "0001.txt", "xxx")
    done = prepare("torgo", source, tmp_path / "data")
    assert done.returncode == 1
    assert "nothing is left for train, dev, test of 1 recordings" in done.stderr
    assert "the prompt is xxx: 1: F01-Session1-0001" in done.stderr


@pytest.mark.parametrize("name", MAKERS)
def test_the_recipe_asks_for_the_path_of_a_corpus(name, tmp_path):
    variable = name.upper().replace("_", "")
    environment = {k: v for k, v in os.environ.items() if k != variable}
    command = ["bash", RECIPE / "run.sh", "--corpus", name, "--stop_stage", "1"]

    def run(**extra: str) -> str:
        done = subprocess.run(
            command, env={**environment, **extra}, capture_output=True, text=True
        )
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
        return done.stderr

    assert f"db.sh, {variable}=/path/to/it" in run()
    assert "there is no folder '/no/such'" in run(**{variable: "/no/such"})


def test_the_recipe_prepares_a_corpus_up_to_its_check(tmp_path):
    """44.1 kHz recordings are converted, and nothing is left to complain of."""
    source = l2_arctic(tmp_path / "l2")
    recipe = copy_recipe(tmp_path / "recipe")
    done = subprocess.run(
        [
            *("bash", recipe / "run.sh", "--corpus", "l2_arctic", "--stop_stage", "3"),
            *("--pretrained_model", "debian_voices"),
            *("--expdir", tmp_path / "exp", "--python", sys.executable),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "L2ARCTIC": str(source)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    listed = read_entries(tmp_path / "exp" / "l2_arctic" / "dump/raw/train/wav.scp")
    assert {soundfile.info(path).samplerate for path in listed.values()} == {16000}
