"""The parts of the server: cutting, times, options, the choice of a task."""

import numpy as np
import pytest
from serving import write

from espnet_hra import cli
from espnet_hra.data.audio import AudioError, read_audio
from espnet_hra.errors import ConfigError, TaskError
from espnet_hra.serve import command
from espnet_hra.serve.auto import by_confidence, by_voice
from espnet_hra.serve.cutting import pieces
from espnet_hra.serve.engine import Heard
from espnet_hra.serve.formats import FORMATS, Segment, Transcript
from espnet_hra.serve.lengths import group, lengthened
from espnet_hra.tasks.voice import Voice, compare, spectra

RATE = 16_000


def noise(seconds, level=0.1):
    drawn = np.random.default_rng(0)
    return (level * drawn.standard_normal(int(seconds * RATE))).astype(np.float32)


def test_long_recordings_are_cut_in_pauses_and_nothing_is_lost():
    wave = noise(50)
    pauses = [(12.0, 12.5), (17.0, 18.0), (33.0, 33.4)]
    for start, end in pauses:
        wave[int(start * RATE) : int(end * RATE)] *= 1e-4
    found = pieces(wave, RATE, 20 * RATE)
    assert np.array_equal(np.concatenate([p.wave for p in found]), wave)
    assert all(len(p.wave) <= 20 * RATE for p in found)
    ends = [p.end for p in found[:-1]]
    # The longer of two pauses; later, the only one; and then where there is none.
    assert ends[0] == pytest.approx(17.5, abs=0.05)
    assert ends[1] == pytest.approx(33.2, abs=0.05)
    assert [p.start for p in found] == [0.0, *ends] and found[-1].end == 50


def test_without_a_pause_the_cut_is_in_the_second_half():
    found = pieces(noise(45), RATE, 20 * RATE)
    assert all(10 <= p.end - p.start <= 20 for p in found[:-1])


def test_a_short_recording_is_one_piece():
    ((start, end, wave),) = pieces(noise(3), RATE, 20 * RATE)
    assert (start, end, len(wave)) == (0, 3, 3 * RATE)


def test_subtitles_of_an_hour_leave_out_what_is_silent():
    said = [
        Segment(0, 10, Heard("one")),
        Segment(10, 20, Heard("")),
        Segment(3599.9996, 3661.5, Heard("two")),
    ]
    transcript = Transcript(said, 3661.5, None, {"model": "x"})
    assert transcript.text == "one two"
    assert FORMATS["srt"][0](transcript) == (
        "1\n00:00:00,000 --> 00:00:10,000\none\n\n"
        "2\n01:00:00,000 --> 01:01:01,500\ntwo\n\n"
    )
    assert "01:00:00.000 --> 01:01:01.500" in FORMATS["vtt"][0](transcript)


def test_silence_is_added_up_to_the_least_length_only():
    assert len(lengthened(np.ones(10), 16)) == 16
    assert lengthened(np.ones(10), 16).sum() == 10
    assert len(lengthened(np.ones(20), 16)) == 20


def test_pieces_of_about_the_same_length_are_together():
    assert group(4 * RATE) == group(int(4.3 * RATE))
    assert group(4 * RATE) != group(8 * RATE)
    assert group(0) == group(1)


def test_the_surest_task_is_taken_if_it_beats_the_base_by_the_threshold():
    sure = {"fr": -0.2, "it": -0.4}
    assert by_confidence(sure, base=-0.5, threshold=0.1).task == "fr"
    assert by_confidence(sure, base=-0.25, threshold=0.1).task is None
    assert by_confidence({}, base=-0.5).task is None
    assert by_confidence({"fr": 0.0, "it": 0.0}, base=0.0, threshold=-1).task is None
    told = by_confidence(sure, base=-0.25, threshold=0.1).told("whisper")
    assert told["model"] == "whisper" and told["abstained"]
    assert told["by"] == "confidence" and told["threshold"] == 0.1
    assert list(told["confidence"]) == ["whisper", "fr", "it"]


def vowel(pitch, seed, seconds=2.0):
    """A buzz through a filter, with breath: another voice for another pitch."""
    t = np.arange(int(seconds * RATE)) / RATE
    drawn = np.random.default_rng(seed)
    phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.05 * np.sin(3 * t + seed))) / RATE
    buzz = sum(np.sin(k * phase) / k for k in range(1, 12))
    return (0.1 * buzz + 0.02 * drawn.standard_normal(len(t))).astype(np.float32)


def voice_of(pitch, count=8):
    return Voice.of([spectra(vowel(pitch, seed), RATE) for seed in range(count)])


def test_the_likeliest_voice_is_taken_unless_it_is_too_far():
    voices = {"he": voice_of(110), "she": voice_of(220)}
    for name, pitch in (("he", 110), ("she", 220)):
        found = compare(spectra(vowel(pitch, 20), RATE), voices)
        taken = by_voice(found, 2.0)
        assert taken.task == name and taken.distance < 2
        told = taken.told("whisper")
        assert (told["model"], told["abstained"], told["by"]) == (name, False, "voice")
        assert list(told["likelihood"])[0] == name
        assert told["distance"] == pytest.approx(taken.distance, abs=1e-4)
    stranger = by_voice(compare(spectra(noise(2), RATE), voices), 2.0)
    assert stranger.task is None and stranger.distance > 2
    told = stranger.told("whisper")
    assert (told["model"], told["abstained"]) == ("whisper", True)
    assert by_voice({}, 2.0).task is None


def test_loudness_and_length_change_no_distance_much():
    voice = voice_of(110)
    usual = voice.likeness(spectra(vowel(110, 20), RATE)).distance
    soft = voice.likeness(spectra(0.1 * vowel(110, 20), RATE)).distance
    assert soft == pytest.approx(usual, rel=1e-3)
    # Of a tenth of the length the mean is less sure, and no more is expected of it.
    assert voice.likeness(spectra(vowel(110, 20, 0.2), RATE)).distance < 2
    # Pauses do not count, and what is too short for a window is padded.
    pauses = np.concatenate([np.zeros(RATE, np.float32), vowel(110, 20)])
    assert voice.likeness(spectra(pauses, RATE)).distance < 2
    assert spectra(np.ones(10, np.float32), RATE).shape == (1, 24)


def test_a_voice_is_written_in_a_kilobyte_and_read_as_it_was():
    rows = [spectra(vowel(110, seed), RATE) for seed in range(8)]
    voice = Voice.of(rows)
    text = str(voice)
    assert len(text) < 1000
    again = Voice.read(text)
    np.testing.assert_array_equal(again.mean, voice.mean)
    np.testing.assert_array_equal(again.root, voice.root)
    assert again.windows == sum(map(len, rows)) and str(again) == text
    every = np.concatenate(rows)
    np.testing.assert_allclose(voice.mean, every.mean(axis=0), rtol=1e-3, atol=1e-3)
    weight = len(every) / (len(every) + 200)
    covariance = weight * np.cov(every.T)
    off = ~np.eye(24, dtype=bool)
    found = voice.root @ voice.root.T
    np.testing.assert_allclose(found[off], covariance[off], atol=5e-3)
    assert Voice.of([]) is None and Voice.of([rows[0][:1]]) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: "1 32",
        lambda text: "2" + text[1:],
        lambda text: text.replace(" ", " -", 1),
        lambda text: text[:-8],
        lambda text: text[:-4] + "?",
        lambda text: text.split(" ")[0] + " 99 " + "AAAA" * 216,
    ],
)
def test_what_is_no_voice_is_refused(change):
    with pytest.raises(TaskError, match="no voice of a task"):
        Voice.read(change(str(voice_of(110, 2))))


def test_recordings_that_are_too_long_are_refused_whatever_reads_them(tmp_path):
    for name in ("a.flac", "a.ogg"):
        path = write(tmp_path / name, noise(3))
        assert len(read_audio(path, longest=3.1)[0]) == 3 * RATE
        with pytest.raises(AudioError, match="longer"):
            read_audio(path, longest=2.9)
    import av

    path = tmp_path / "a.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=RATE)
        frame = av.AudioFrame.from_ndarray(noise(3)[None], "fltp", "mono")
        frame.sample_rate = RATE
        container.mux([*stream.encode(frame), *stream.encode()])
    assert len(read_audio(path, longest=4)[0]) == pytest.approx(3 * RATE, rel=0.05)
    with pytest.raises(AudioError, match="longer"):
        read_audio(path, longest=2)


def test_a_file_that_names_others_is_no_recording_of_a_stranger(tmp_path):
    from espnet_hra.data.audio import SELF_CONTAINED

    write(tmp_path / "secret.wav", noise(1))
    path = tmp_path / "list.txt"
    path.write_text("ffconcat version 1.0\nfile secret.wav\n")
    assert len(read_audio(path)[0]) == RATE
    with pytest.raises(AudioError):
        read_audio(path, formats=SELF_CONTAINED)


@pytest.mark.parametrize(
    "model, name",
    [
        ("exp/debian_voices/asr_hra", "asr_hra"),
        ("models/voices.zip", "voices"),
        ("whisper:tiny.en", "whisper-tiny.en"),
        ("owner/model@v1", "model-v1"),
        ("auto", "base"),
    ],
)
def test_clients_call_the_base_by_the_name_of_its_file(model, name):
    assert command.base_name(model) == name


def test_options_that_are_not_possible_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("ESPNET_HRA_TOKEN", raising=False)
    parser = command.get_parser()

    def settings(*options):
        return command.settings_of(parser.parse_args(["m", *options]))

    assert settings().token == "" and settings().name == "m"
    token = tmp_path / "token"
    token.write_text("secret\n")
    for options, reason in (
        (["--batch_size", "0"], "--batch_size 0: must be above 0"),
        (["--wait_ms", "-1"], "must not be below 0"),
        (["--name", "auto"], "--name 'auto'"),
        (["--token_file", str(token)], "the token has 6 characters: give at least 16"),
        (["--token_file", str(tmp_path / "no")], "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=reason):
            settings(*options)
    monkeypatch.setenv("ESPNET_HRA_TOKEN", "0123456789abcdef")
    assert settings().token == "0123456789abcdef"
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    assert "ESPNET_HRA_TOKEN" in capsys.readouterr().out
