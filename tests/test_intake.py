"""Kaldi's ways to name recordings: read, cut, converted, or refused with a remedy."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from omniio import kaldi

from espnet_hra import cli
from espnet_hra.adapt import plan
from espnet_hra.adapt.new_task import prepare
from espnet_hra.commands.format import main as format_data
from espnet_hra.data.audio import AudioError, read_audio
from espnet_hra.data.checks import check
from espnet_hra.data.intake import make_plain, read_pieces, read_recording, settle
from espnet_hra.data.lists import read_entries
from espnet_hra.data.rates import check_rates
from espnet_hra.data.requirements import Requirements
from espnet_hra.data.sentences import hold_out
from espnet_hra.errors import DataError

SECOND = 16000


def tone(seconds: float, rate: int = SECOND, pitch: float = 440.0) -> np.ndarray:
    """A sine."""
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)


def pitch_of(path: str | Path) -> float:
    """The loudest frequency of a recording."""
    samples, rate = soundfile.read(path)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * rate / len(samples))


def write_lists(folder: Path, **lists: str) -> Path:
    """Write lists; dots of their names are underscores here."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in lists.items():
        (folder / name.replace("_scp", ".scp")).write_text(content, encoding="utf-8")
    return folder


def write_ark(path: Path, samples: np.ndarray, rate: int) -> str:
    """Write a recording into an archive, and return its entry's offset."""
    path.parent.mkdir(parents=True, exist_ok=True)
    value = (samples * 32767).astype(np.int16)
    kaldi.save_ark(str(path), {"utt": (rate, value)}, scp=f"{path}.scp")
    return Path(f"{path}.scp").read_text().rpartition(":")[2].strip()


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_an_archive_of_any_rate_named_from_where_its_recipe_ran(tmp_path, rate, capsys):
    """The list says exp/wav.ark:N, as seen from the folder above data/."""
    offset = write_ark(tmp_path / "s5" / "exp" / "it's.ark", tone(1, rate), rate)
    folder = write_lists(
        tmp_path / "s5" / "data" / "train",
        wav_scp=f"a exp/it's.ark:{offset}\n",
        text="a hello\n",
        utt2spk="a anna\n",
    )
    assert format_data([str(folder), str(tmp_path / "out")]) == 0
    (path,) = read_entries(tmp_path / "out" / "wav.scp").values()
    assert soundfile.info(path).samplerate == 16000
    assert soundfile.info(path).frames == 16000
    assert pitch_of(path) == pytest.approx(440, abs=2)
    assert "1 utterance, 1 of them converted" in capsys.readouterr().out
    assert read_entries(tmp_path / "out" / "spk2utt") == {"anna": "a"}
    # What was written is fit for a training.
    assert check(
        tmp_path / "out" / "wav.scp",
        tmp_path / "out" / "text",
        requirements=Requirements(),
    ).ok


@pytest.mark.parametrize("suffix", ["flac", "mp3", "ogg", "wav", "nist"])
def test_files_of_any_format_and_quoted_names(tmp_path, suffix):
    name = f'it\'s "a" $HOME recording (1).{suffix}'
    (tmp_path / "audio").mkdir()
    stereo = np.stack([tone(1, 32000)] * 2, axis=1)
    soundfile.write(tmp_path / "audio" / name, stereo, 32000)
    folder = write_lists(
        tmp_path / "data", wav_scp=f"a ../audio/{name}\nb audio/{name}\n"
    )
    assert format_data([str(folder), str(tmp_path / "out")]) == 0
    for path in read_entries(tmp_path / "out" / "wav.scp").values():
        assert pitch_of(path) == pytest.approx(440, abs=2)


def test_what_is_plain_stays_where_it_lies(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(0.1), SECOND)
    folder = write_lists(tmp_path / "data", wav_scp="a a.wav\n", spk2utt="anna a b\n")
    assert format_data([str(folder), str(tmp_path / "out")]) == 0
    entries = read_entries(tmp_path / "out" / "wav.scp")
    assert entries == {"a": str(tmp_path / "a.wav")}
    assert read_entries(tmp_path / "out" / "utt2spk") == {"a": "anna"}


def test_segments_are_cut_and_their_recording_is_read_once(tmp_path):
    """A second of 440 Hz, then one of 880 Hz, at 8 kHz."""
    both = np.concatenate([tone(1, 8000), tone(1, 8000, 880)])
    soundfile.write(tmp_path / "long.wav", both, 8000)
    count = tmp_path / "count"
    # Not a word of its own: what a command names counts as its source.
    command = f"eval {shlex.quote(f'echo x >> {count}')}; cat long.wav |"
    folder = write_lists(
        tmp_path / "data",
        wav_scp=f"rec {command}\n",
        segments="u1 rec 0 1\nu2 rec 1.0 -1\nu3 rec 1.5 2.3\n",
        text="u1 low\nu2 high\nu3 high\nu4 gone\n",
        utt2spk="u1 a\nu2 a\nu3 b\n",
        utt2lang="u1 en\nu2 en\nu3 en\n",
    )
    arguments = [str(folder), str(tmp_path / "out"), "--run_pipes", "true"]
    assert format_data(arguments) == 0
    paths = read_entries(tmp_path / "out" / "wav.scp")
    lengths = {u: soundfile.info(path).frames for u, path in paths.items()}
    # 0.3 s beyond the end are less than what Kaldi allows: cut there.
    assert lengths == {"u1": 16000, "u2": 16000, "u3": 8000}
    assert pitch_of(paths["u1"]) == pytest.approx(440, abs=2)
    assert pitch_of(paths["u2"]) == pytest.approx(880, abs=2)
    assert count.read_text() == "x\n"
    assert list(read_entries(tmp_path / "out" / "text")) == ["u1", "u2", "u3"]
    assert not (tmp_path / "out" / "segments").exists()
    # Done once: the same again runs no command.
    assert format_data(arguments) == 0 and count.read_text() == "x\n"


def test_a_segment_beyond_the_end_is_told_and_can_be_left_out(tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", tone(1), SECOND)
    folder = write_lists(
        tmp_path / "data",
        wav_scp="rec a.wav\n",
        segments="good rec 0 0.5\nlate rec 1.5 1.6\nlong rec 0 1.6\n",
    )
    arguments = [str(folder), str(tmp_path / "out")]
    assert format_data(arguments) == 1
    said = capsys.readouterr().err
    assert "late: the segment from 1.5 to 1.6 seconds goes beyond the end" in said
    assert "long: the segment from 0 to 1.6 seconds" in said and "1.00 s" in said
    assert "--skip_bad true" in said and not (tmp_path / "out" / "wav.scp").exists()
    assert format_data([*arguments, "--skip_bad", "true"]) == 0
    assert list(read_entries(tmp_path / "out" / "wav.scp")) == ["good"]


@pytest.mark.parametrize(
    "line, message",
    [
        ("u rec 0", "has 'rec 0'; a line is"),
        ("u rec zero 1", "has 'rec zero 1'; a line is"),
        ("u rec 2 1", "goes from 2 to 1 seconds"),
        ("u rec -1 1", "goes from -1 to 1 seconds"),
        ("u rec nan 1", "goes from nan to 1 seconds"),
        ("u rec 0 1 2", "names a channel, 2"),
        ("u other 0 1", "cut out of 'other', which wav.scp does not have"),
    ],
)
def test_segments_that_cannot_be_are_refused(tmp_path, line, message):
    folder = write_lists(tmp_path, wav_scp="rec a.wav\n", segments=f"{line}\n")
    with pytest.raises(DataError, match=re.escape(message)):
        read_pieces(folder)


# ---------------------------------------------------------------------------- commands


def test_commands_run_only_if_one_asks_for_it(tmp_path):
    mark = tmp_path / "ran"
    folder = write_lists(tmp_path / "data", wav_scp=f"a touch {mark}; cat a.wav |\n")
    with pytest.raises(DataError, match="--run_pipes true") as refusal:
        format_data([str(folder), str(tmp_path / "out")])
    assert "commands stand in place of files" in str(refusal.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    "command, message",
    [
        ("no_such_program_here a.sph |", "status 127.*install it, or add its folder"),
        ("echo cannot open >&2; exit 3 |", r"status 3 \(cannot open\): echo"),
        # Kaldi's own shell would not see that the first of two failed.
        ("false | cat a.wav |", "ended with status 1"),
        ("true |", "a command wrote nothing: true"),
        ("echo hello |", "is no recording"),
        ("head -c 9000 a.wav |", "cut short"),
        ("| cat", "takes a recording, and gives none"),
    ],
)
def test_commands_that_fail(tmp_path, monkeypatch, command, message):
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", tone(1), SECOND)
    with pytest.raises(AudioError, match=message):
        read_recording(command)


def test_a_command_writes_a_header_without_a_length(tmp_path, monkeypatch):
    """As sox and sph2pipe do, which cannot go back in a pipe."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", tone(1), SECOND)
    content = bytearray(Path("a.wav").read_bytes())
    content[4:8] = content[40:44] = b"\x00\xf0\xff\x7f"
    Path("a.wav").write_bytes(content)
    samples, rate = read_recording("cat a.wav |")
    assert (len(samples), rate) == (SECOND, SECOND)


def test_names_never_reach_a_shell(tmp_path):
    """Ids and paths with what a shell would run; only the command itself is run."""
    trap = "$(touch${IFS}oops)`touch${IFS}oops`;touch${IFS}oops'\""
    place = tmp_path / f"here {trap.replace('/', '')}"
    place.mkdir()
    soundfile.write(place / "a.wav", tone(1, 8000), 8000)
    folder = write_lists(
        place / "data",
        wav_scp=f"{trap} a.wav\nrec cat a.wav |\n",
        text=f"{trap} {trap}\nrec hello\n",
    )
    out = tmp_path / "out"
    assert format_data([str(folder), str(out), "--run_pipes", "true"]) == 0
    assert read_entries(out / "text")[trap] == trap
    assert len(read_entries(out / "wav.scp")) == 2
    assert not list(tmp_path.rglob("oops")) and not Path("oops").exists()


def test_the_folder_of_the_recipe_can_be_told(tmp_path, monkeypatch):
    (tmp_path / "kaldi" / "wav").mkdir(parents=True)
    soundfile.write(tmp_path / "kaldi" / "wav" / "a.wav", tone(1), SECOND)
    folder = write_lists(
        tmp_path / "elsewhere", wav_scp="a wav/a.wav\nb cat wav/a.wav |\n"
    )
    arguments = [str(folder), str(tmp_path / "out"), "--run_pipes", "true"]
    with pytest.raises(DataError, match="no utterance is left that can be read"):
        format_data(arguments)
    assert format_data([*arguments, "--root", str(tmp_path / "kaldi")]) == 0
    monkeypatch.chdir(tmp_path / "kaldi")
    assert settle("wav/a.wav", folder) == str(tmp_path / "kaldi" / "wav" / "a.wav")


# --------------------------------------------------------------- files that are damaged


def test_files_cut_short_and_missing_are_told(tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", tone(1, 8000), 8000)
    content = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "short.wav").write_bytes(content[: len(content) // 2])
    offset = write_ark(tmp_path / "b.ark", tone(1), SECOND)
    ark = (tmp_path / "b.ark").read_bytes()
    (tmp_path / "b.ark").write_bytes(ark[: len(ark) // 2])
    folder = write_lists(
        tmp_path / "data",
        wav_scp=f"a a.wav\nark b.ark:{offset}\ngone gone.wav\nshort short.wav\n",
    )
    assert format_data([str(folder), str(tmp_path / "out"), "--skip_bad", "true"]) == 0
    said = capsys.readouterr().err
    assert "short: " in said and "cut short" in said
    assert "gone: " in said and "No such file" in said
    assert "ark: " in said and "b.ark:" in said
    assert list(read_entries(tmp_path / "out" / "wav.scp")) == ["a"]


def test_an_archive_of_features_or_without_a_rate_is_no_recording(tmp_path):
    values = {
        "m": np.ones((5, 80), dtype=np.float32),
        "v": np.ones(5, dtype=np.float32),
    }
    kaldi.save_ark(str(tmp_path / "f.ark"), values, scp=str(tmp_path / "f.scp"))
    entries = read_entries(tmp_path / "f.scp")
    with pytest.raises(AudioError, match="5 x 80 features"):
        read_audio(entries["m"])
    with pytest.raises(AudioError, match="does not say its sampling rate"):
        read_audio(entries["v"])


def test_what_failed_keeps_a_place_that_the_check_reports(tmp_path):
    pieces = read_pieces(
        write_lists(tmp_path, wav_scp="a gone.wav\nb false |\n"), run_pipes=True
    )
    made = make_plain(pieces, tmp_path / "audio", nj=1)
    assert set(made.failures) == {"a", "b"} and made.converted == 0
    assert made.paths["a"] == str(Path.cwd() / "gone.wav")
    assert made.paths["b"].startswith(str(tmp_path / "audio"))
    assert not any(map(os.path.exists, made.paths.values()))


# ---------------------------------------------------------------------- every entrance


def not_plain(folder: Path, kind: str) -> Path:
    """A data folder with segments, or with a command."""
    lists = {"text": "u hello\n", "utt2task": "u a\n", "utt2spk": "u a\n"}
    if kind == "segments":
        return write_lists(folder, wav_scp="r a.wav\n", segments="u r 0 1\n", **lists)
    return write_lists(folder, wav_scp="u cat a.wav |\n", **lists)


@pytest.mark.parametrize("kind", ["segments", "commands"])
def test_every_entrance_names_the_command_that_helps(tmp_path, capsys, kind):
    folder = not_plain(tmp_path / "data", kind)
    messages = [check(folder / "wav.scp", requirements=Requirements()).format()]
    with pytest.raises(SystemExit) as ended:
        cli.main(["validate", str(folder)])
    assert ended.value.code == 1
    messages.append(capsys.readouterr().err)
    for entrance in (
        lambda: check_rates(folder / "wav.scp", "sound", SECOND),  # decode
        lambda: prepare(folder, Requirements(), tmp_path / "work"),  # tasks add
        lambda: plan.read_data(folder),  # adapt
    ):
        with pytest.raises(DataError) as refused:
            entrance()
        messages.append(str(refused.value))
    assert len(messages) == 5
    for message in messages:
        assert "espnet-hra format DIR OUT" in message, message


def test_tasks_add_and_adapt_take_a_folder_as_the_recipe_does(tmp_path):
    """Files named from the data's own folder, speakers as tasks, nothing split."""
    lines: dict[str, list[str]] = {"wav_scp": [], "text": [], "spk2utt": []}
    for speaker in ("anna", "ben"):
        ids = [f"{speaker}-{number}" for number in range(5)]
        for utterance in ids:
            soundfile.write(tmp_path / f"{utterance}.wav", tone(1), SECOND)
            lines["wav_scp"].append(f"{utterance} {utterance}.wav")
            # The first two say the same.
            said = (
                "same" if utterance[-1] in "01" else f"word {'x' * int(utterance[-1])}"
            )
            lines["text"].append(f"{utterance} {said}")
        lines["spk2utt"].append(f"{speaker} {' '.join(ids)}")
    folder = write_lists(
        tmp_path, **{name: "\n".join(rows) + "\n" for name, rows in lines.items()}
    )
    parts, warnings = plan.read_data(folder)
    assert not warnings and plan.choose(parts, None) == ["anna", "ben"]
    for task in ("anna", "ben"):
        texts = {
            part: {line.partition(" ")[2] for line in parts[part][task]["text"]}
            for part in ("train", "dev")
        }
        assert texts["train"] and texts["dev"] and not texts["train"] & texts["dev"]
        for part in ("train", "dev"):
            for line in parts[part][task]["wav.scp"]:
                assert Path(line.partition(" ")[2]).is_absolute()
    prepared, _ = prepare(folder, Requirements(), tmp_path / "work")
    found = {part: read_entries(path / "text") for part, path in prepared.items()}
    assert not set(found["train"].values()) & set(found["valid"].values())
    assert len(found["train"]) + len(found["valid"]) == 10
    for path in prepared.values():
        assert all(map(os.path.isfile, read_entries(path / "wav.scp").values()))


def test_held_out_sentences_do_not_depend_on_the_others():
    texts = {f"u{number}": f"{'x' * number} said" for number in range(1, 60)}
    held = hold_out(texts)
    assert len(held) == 6
    assert hold_out(dict(reversed(texts.items()))) == held
    more = hold_out({**texts, "again": texts[min(held)].upper()})
    assert more == held | {"again"}
    assert hold_out({"only": "one"}) == set()


def test_the_folder_of_a_recipe_may_have_segments_and_commands(tmp_path):
    """Stage 1 and stage 3, as programs."""
    root = Path(__file__).resolve().parent.parent
    soundfile.write(tmp_path / "long.wav", tone(3, 44100), 44100)
    for name in ("train", "dev", "test"):
        write_lists(
            tmp_path / "corpus" / name,
            wav_scp="rec cat long.wav |\n",
            segments=f"{name}-a rec 0 1\n{name}-b rec 1 -1\n",
            text=f"{name}-a yes\n{name}-b no\n",
            spk2utt=f"anna {name}-a {name}-b\n",
        )
    environment = {**os.environ, "PYTHONPATH": str(root)}

    def run(program: str, *options: object) -> subprocess.CompletedProcess:
        command = [sys.executable, root / "local" / program, *map(str, options)]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True
        )

    options = ("--source", tmp_path / "corpus", "--name", "x")
    done = run("folder.py", *options)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "--run_pipes true" in done.stderr
    done = run("folder.py", *options, "--run_pipes", "true")
    assert done.returncode == 0, done.stderr
    formatting = ("--data", "data/x", "--dump", "dump", "--sets", "train", "test")
    done = run("format_wav_scp.py", *formatting, "--run_pipes", "true")
    assert done.returncode == 0, done.stderr
    found = read_entries(tmp_path / "dump" / "train" / "wav.scp")
    lengths = {name: soundfile.info(path).frames for name, path in found.items()}
    assert lengths == {"train-a": 16000, "train-b": 32000}


@pytest.mark.parametrize(
    "options, message",
    [
        (["--fs", "0"], "--fs and --nj must be 1 or more"),
        (["--root", "/no/such"], "--root /no/such: there is no such folder"),
    ],
)
def test_mistakes_of_the_command(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        format_data([str(tmp_path), str(tmp_path / "out"), *options])
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        format_data([str(tmp_path), str(tmp_path)])
    assert "choose another folder for OUT" in capsys.readouterr().err
    with pytest.raises(DataError, match="there is no wav.scp in it"):
        format_data([str(tmp_path), str(tmp_path / "out")])
