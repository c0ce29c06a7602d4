"""The comparison with faster-whisper: what it counts and what it refuses."""

import numpy as np
import pytest
import soundfile

from espnet_hra import cli
from espnet_hra.bench import whisper, whisper_worker
from espnet_hra.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """Three utterances of two tasks; the recording of the second task is longer."""
    for number in (1, 2, 3):
        samples = np.zeros(1600 * number, dtype=np.float32)
        soundfile.write(tmp_path / f"{number}.flac", samples, 16_000)
    scp = "".join(f"u{n} {tmp_path / f'{n}.flac'}\n" for n in (1, 2, 3))
    (tmp_path / "wav.scp").write_text(scp)
    (tmp_path / "text").write_text("u1 don't go\nu2 été\nu3 one two three four\n")
    (tmp_path / "utt2task").write_text("u1 a\nu2 a\nu3 b\n")
    (tmp_path / "model.bin").touch()
    return tmp_path


def options(folder, *more):
    paths = ["--data", str(folder), "--faster_whisper", str(folder)]
    return ["bench", "whisper", "--model", "m", *paths, *more]


def test_both_sides_read_the_same_blocks_and_tasks_weigh_alike(
    folder, monkeypatch, capsys
):
    """One reads all as it is, with capitals; the other lacks a word of `b`'s four."""
    texts = {"u1": "Don’t go!", "u2": "Été.", "u3": "One, two, three, four"}
    asked = {name: [] for name in whisper_worker.SIDES}

    class Side:
        def __init__(self, name, args, items):
            self.name, self.items = name, items

        def decode(self, block):
            asked[self.name].append(tuple(block))
            said = [texts[f"u{self.items[i][2][-6]}"] for i in block]
            if self.name == whisper.RIVAL:
                said = [text.removesuffix(", four") for text in said]
            return (1.0 if self.name == whisper.OURS else 6.0), said

        def close(self):
            pass

    monkeypatch.setattr(whisper, "Side", Side)
    out = folder / "speed.tsv"
    assert whisper.main(options(folder, "--block", "2", "--out", str(out))[2:]) == 0
    assert asked[whisper.OURS] == asked[whisper.RIVAL] == [(0, 1), (2,)]
    printed = capsys.readouterr().out
    assert "ours is 6.0 x as fast (90 % interval 6.0 to 6.0)" in printed
    rows = [line.split("\t") for line in out.read_text().splitlines()]
    assert rows[0] == ["system", "utterances", "speech_seconds", "seconds", "wer"]
    # 0 of `a` and 1 of 4 words of `b`: 12.5 for two tasks.
    assert {row[0]: float(row[4]) for row in rows[1:]} == {
        whisper.OURS: 0.0,
        whisper.RIVAL: 12.5,
    }


def test_what_is_not_there_is_refused_in_one_line(folder):
    (folder / "model.bin").unlink()
    with pytest.raises(SystemExit, match="there is no model.bin in it; give a folder"):
        cli.main(options(folder))
    soundfile.write(folder / "2.flac", np.zeros(800), 8_000)
    with pytest.raises(DataError, match="8000 Hz; Whisper hears 16000 Hz"):
        whisper.read_items(folder, {})


def test_a_side_that_stops_is_told(folder, monkeypatch):
    """faster-whisper without a model: its process ends, and the reason is above."""
    args = whisper.get_parser().parse_args(options(folder)[2:])
    items = whisper.read_items(folder, {})
    with pytest.raises(Exception, match="has stopped; the lines above say why"):
        whisper.Side(whisper.RIVAL, args, items)
