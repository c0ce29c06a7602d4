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
from espnet_hra.tasks.voice import Voice, distances, thinned

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


def heard(seed, at=0.0, rows=None):
    """What a base makes of utterances around a point, in 384 values."""
    drawn = np.random.default_rng(seed)
    return drawn.normal(at, 1.0, (384,) if rows is None else (rows, 384))


def test_the_nearest_voice_is_taken_unless_it_is_too_far():
    voices = {"fr": Voice.of(heard(0, 0.0, 32)), "it": Voice.of(heard(1, 2.0, 32))}
    taken = by_voice(heard(2, 2.0), voices, 1.5)
    assert taken.task == "it" and taken.values["it"] == pytest.approx(1, abs=0.15)
    assert by_voice(heard(3, 0.0), voices, 1.5).task == "fr"
    stranger = by_voice(heard(4, -3.0), voices, 1.5)
    assert stranger.task is None
    told = stranger.told("whisper")
    assert (told["model"], told["abstained"], told["by"]) == ("whisper", True, "voice")
    assert list(told["distance"]) == ["fr", "it"] and told["distance"]["fr"] > 2
    assert by_voice(heard(4), {}, 1.5).task is None


def test_a_voice_is_written_in_little_room_and_read_as_it_was():
    voice = Voice.of(heard(0, 0.5, 32))
    text = str(voice)
    assert len(text) < 1600
    again = Voice.read(text)
    np.testing.assert_array_equal(again.mean, voice.mean)
    np.testing.assert_array_equal(again.spread, voice.spread)
    assert again.utterances == 32 and str(again) == text
    rows = heard(0, 0.5, 32)
    np.testing.assert_allclose(voice.mean, rows.mean(axis=0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(voice.spread, rows.std(axis=0, ddof=1), rtol=0.03)
    assert Voice.of([]) is None


def test_a_single_utterance_takes_the_spread_of_the_others():
    one, many = Voice.of(heard(0, 2.0, 1)), Voice.of(heard(1, 0.0, 32))
    away = distances(heard(2, 2.0), {"one": one, "many": many})
    assert away["one"] == pytest.approx(1, abs=0.15) and away["many"] > 2
    assert distances(heard(2), {"one": one}) == {}  # nothing says how far is far


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 32",
        "2 3 ADw= AA==",
        "1 0 ADw= AA==",
        "1 3 ADw= AAA=",
        "1 3 x y",
        "1 3 AHw= AA==",
    ],
)
def test_what_is_no_voice_is_refused(text):
    with pytest.raises(TaskError, match="no voice of a task"):
        Voice.read(text)


def test_large_encoders_are_thinned_evenly():
    values = thinned(np.arange(1280.0))
    assert len(values) == 384 and values[0] == 0 and values[-1] == 1279
    assert set(np.diff(values)) <= {3.0, 4.0}
    assert len(thinned(np.arange(256.0))) == 256


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
