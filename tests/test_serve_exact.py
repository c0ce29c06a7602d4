"""What is in a batch changes no text: mixed batches against requests one at a time."""

import concurrent.futures
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from adaptations import TASKS, make_adaptation, waves
from conftest import make_base
from serving import ask, serving, write

import espnet_hra
from espnet_hra.errors import ConfigError
from espnet_hra.espnet import padding
from espnet_hra.espnet.whisper import without_weights
from espnet_hra.serve.batcher import Batcher, ClosedError
from espnet_hra.serve.engine import Engine, Heard, Job

pytest.importorskip("fastapi")

FEMALE, CARLO = TASKS


@pytest.fixture(scope="module")
def exp(base, tmp_path_factory):
    return make_adaptation(tmp_path_factory.mktemp("served") / "exp", base)


@pytest.fixture(scope="module")
def engine(exp):
    return Engine.open(str(exp))


@pytest.fixture(scope="module")
def parts(an4):
    """Pieces of real recordings, of many lengths."""
    drawn, found = random.Random(0), []
    for wave in (*waves(an4["train"]).values(), *waves(an4["test"]).values()):
        for _ in range(4):
            length = drawn.randrange(4000, len(wave))
            start = drawn.randrange(len(wave) - length)
            found.append(np.ascontiguousarray(wave[start : start + length]))
    return found


def jobs_of(parts, tasks=(FEMALE, CARLO)):
    drawn = random.Random(1)
    return [Job(wave, drawn.choice(tasks)) for wave in parts]


def in_batches(engine, jobs, size=8):
    """Decode jobs in mixed batches, as they can be together."""
    groups = {}
    for i, job in enumerate(jobs):
        groups.setdefault(engine.group(job), []).append(i)
    found, sizes = [None] * len(jobs), []
    for rows in groups.values():
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            sizes.append(len(part))
            for i, heard in zip(part, engine.decode([jobs[i] for i in part])):
                assert isinstance(heard, Heard)
                found[i] = heard
    return found, sizes


def test_ctc_texts_are_those_of_speech2text_alone(engine, exp, parts):
    jobs = jobs_of(parts)
    found, sizes = in_batches(engine, jobs)
    assert max(sizes) >= 4
    alone = espnet_hra.Speech2Text.from_pretrained(str(exp), ctc_greedy=True)
    for job, heard in zip(jobs, found):
        (text, _, ids, hypothesis), *_ = alone(job.wave, task=job.task)
        assert heard.text == text and list(heard.ids) == ids
        assert heard.score == pytest.approx(float(hypothesis.score), abs=1e-2)


def test_an_encoder_that_hears_padding_gets_equal_lengths_only(exp, parts, monkeypatch):
    """As if the frontend let the zeros behind a recording in."""
    monkeypatch.setattr(padding, "prepare", lambda model: None)
    engine = Engine.open(str(exp))
    assert not engine._speech2text.encoder_masks
    assert "only recordings of equal length" in engine.about
    jobs = jobs_of(parts)
    found, sizes = in_batches(engine, jobs)
    assert max(sizes) >= 4
    for job, heard in zip(jobs, found):
        assert engine.decode([job])[0].ids == heard.ids


def test_close_decisions_are_made_alone(engine, parts, monkeypatch):
    jobs = [replace(job, wave=parts[0]) for job in jobs_of(parts[:3])]
    assert not any(heard.alone for heard in engine.decode(jobs[:1]))
    monkeypatch.setattr(padding, "SAFE", 1e9)
    again = engine.decode(jobs)
    assert all(heard.alone for heard in again)
    for job, heard in zip(jobs, again):
        assert vars(engine.decode([job])[0]) == {**vars(heard), "alone": False}


def test_one_job_that_fails_does_not_harm_the_others(engine, parts):
    jobs = [Job(parts[0], FEMALE), Job(parts[0], "nobody"), Job(parts[0], CARLO)]
    first, bad, last = engine.decode(jobs)
    assert isinstance(bad, espnet_hra.TaskError) and "nobody" in str(bad)
    assert first.text == engine.decode(jobs[:1])[0].text
    assert last.text == engine.decode(jobs[2:])[0].text


def test_over_http_with_eight_clients_every_text_is_the_one_of_a_request_alone(
    engine, parts, tmp_path
):
    files = [write(tmp_path / f"{i}.wav", wave) for i, wave in enumerate(parts)]
    asked = [(f, model) for f in files for model in (FEMALE, CARLO, "small")]
    with serving(engine, wait=0.05) as url:
        alone = {one: ask(url, *one).json()["text"] for one in asked}
        shuffled = random.Random(2).sample(asked, len(asked))
        with concurrent.futures.ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(lambda one: ask(url, *one), shuffled))
    assert [a.json()["text"] for a in answers] == [alone[one] for one in shuffled]
    assert len(set(alone.values())) > len(parts)


# --------------------------------------------------------------------------- Whisper


@pytest.fixture(scope="module")
def whisper_exp(tmp_path_factory):
    """A Whisper of two layers with two tasks, which speak different languages."""
    pytest.importorskip("whisper")
    from test_whisper import STOCK, TOY, tokens

    folder = tmp_path_factory.mktemp("whisper")
    listed = folder / "tokens.txt"
    listed.write_text("".join(f"{token}\n" for token in tokens.token_list(TOY)))
    with without_weights(STOCK):
        base = make_base(folder / "base", listed, STOCK)
    # Between the encoder's layers noise is small: a decoder that is adapted shows it.
    return make_adaptation(folder / "exp", base, decoder=True)


@pytest.fixture(scope="module")
def whisper(whisper_exp):
    return Engine.open(str(whisper_exp))


def test_whispers_texts_are_those_of_requests_alone(whisper, parts):
    jobs = [
        replace(job, language=code)
        for job, code in zip(jobs_of(parts[:14]), ["", "de", "en"] * 5)
    ]
    found, sizes = in_batches(whisper, jobs)
    assert max(sizes) >= 3
    for job, heard in zip(jobs, found):
        alone = whisper.decode([job])[0]
        assert alone.ids == heard.ids and alone.text == heard.text
        assert heard.language == (job.language or "fr")
    assert len({heard.ids for heard in found}) > 1


def test_whisper_reads_as_speech2text_does_and_its_base_with_silence(
    whisper, whisper_exp, parts
):
    plain = espnet_hra.Speech2Text.from_pretrained(str(whisper_exp))
    for wave in parts[:3]:
        expected = plain(wave, task=CARLO)[0]
        assert list(whisper.decode([Job(wave, CARLO)])[0].ids) == expected[2]
        # Without a task it is Whisper itself, which needs more silence.
        longer = np.pad(wave, (0, 10 * whisper.rate - len(wave)))
        plain.set_task(None)
        assert list(whisper.decode([Job(wave)])[0].ids) == plain(longer)[0][2]


def test_languages_that_whisper_does_not_know_are_refused(whisper, engine):
    assert whisper.language_code("French") == "fr"
    with pytest.raises(ConfigError, match="no token for it"):
        whisper.language_code("klingon")
    with pytest.raises(ConfigError, match="not told a language"):
        engine.language_code("fr")


# --------------------------------------------------------------------------- batches


def test_requests_of_different_tasks_go_into_one_batch(engine, parts):
    seen = []
    batcher = Batcher(engine, 4, wait=5.0, watch=lambda jobs, *_: seen.append(jobs))
    jobs = [Job(parts[0], task) for task in (FEMALE, CARLO, FEMALE, CARLO)]
    futures = [batcher.submit(job) for job in jobs]
    texts = [future.result(timeout=60).text for future in futures]
    assert texts[0] == texts[2] != texts[1] == texts[3]
    assert [len(batch) for batch in seen] == [4]  # full before five seconds were over
    # What is in line when the server is stopped is decoded, and nothing after that.
    last = batcher.submit(jobs[0])
    batcher.close()
    assert last.result().text == texts[0]
    with pytest.raises(ClosedError):
        batcher.submit(jobs[0])


def test_what_its_client_has_given_up_is_not_decoded(engine, parts):
    seen = []
    batcher = Batcher(engine, 4, wait=0.3, watch=lambda jobs, *_: seen.extend(jobs))
    given_up, kept = (batcher.submit(Job(parts[0], task)) for task in TASKS)
    assert given_up.cancel()
    assert kept.result(timeout=60).text is not None
    batcher.close()
    assert [job.task for job in seen] == [CARLO]


def test_rounding_is_far_below_what_counts_as_close(engine, parts):
    """The other half of the argument: a safe margin is a hundred times the rounding."""
    speech2text = engine._speech2text
    wave = torch.from_numpy(parts[0])
    with torch.inference_mode():
        with speech2text.model.encoder.use_task([FEMALE, CARLO] * 4):
            together, _ = speech2text._encode([wave] * 8)
            many = speech2text.model.ctc.log_softmax(together)[0]
        with speech2text.model.encoder.use_task(FEMALE):
            one, _ = speech2text._encode([wave])
            alone = speech2text.model.ctc.log_softmax(one)[0]
    assert float((many - alone).abs().max()) < padding.SAFE / 100
