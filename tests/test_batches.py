"""What else is in a batch does not change the text of an utterance."""

import random

import numpy as np
import pytest
import torch
from adaptations import TASKS, make_adaptation, waves
from serving import write

import espnet_hra
from espnet_hra.commands import transcribe
from espnet_hra.espnet import padding

FEMALE, CARLO = TASKS


@pytest.fixture(scope="module")
def exp(base, tmp_path_factory):
    return make_adaptation(tmp_path_factory.mktemp("batches") / "exp", base)


@pytest.fixture(scope="module")
def parts(an4):
    """Pieces of real recordings, of many lengths, and a task for each."""
    drawn, found = random.Random(0), []
    for wave in waves(an4["train"]).values():
        for _ in range(4):
            length = drawn.randrange(4000, len(wave))
            start = drawn.randrange(len(wave) - length)
            piece = np.ascontiguousarray(wave[start : start + length])
            found.append((piece, drawn.choice(TASKS)))
    return found


def alike(together, alone):
    """Text and tokens are the same, the score up to rounding."""
    text, _, ids, hypothesis = together[0]
    assert (text, ids) == (alone[0][0], alone[0][2])
    assert float(hypothesis.score) == pytest.approx(float(alone[0][3].score), abs=1e-2)


def test_greedy_ctc_reads_a_list_as_one_by_one(exp, parts):
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(exp), ctc_greedy=True)
    assert speech2text.encoder_masks
    recordings, tasks = zip(*parts)
    for nbest, wave, task in zip(
        speech2text(list(recordings), task=list(tasks)), recordings, tasks
    ):
        alike(nbest, speech2text(wave, task=task))
    speech2text.set_task(CARLO)
    for nbest, wave in zip(speech2text.batch_decode(recordings[:8]), recordings):
        alike(nbest, speech2text(wave))


def test_without_the_adapter_too(base, parts):
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(base), ctc_greedy=True)
    recordings = [wave for wave, _ in parts]
    for nbest, wave in zip(speech2text(recordings), recordings):
        alike(nbest, speech2text(wave))


def test_beam_search_reads_a_list_as_one_by_one(exp, parts):
    speech2text = espnet_hra.Speech2Text.from_pretrained(
        str(exp), beam_size=2, ctc_weight=1.0, task=CARLO
    )
    recordings = [wave for wave, _ in parts[:6]]
    for nbest, wave in zip(speech2text(recordings), recordings):
        alike(nbest, speech2text(wave))


def test_close_decisions_are_made_again_alone(exp, parts, monkeypatch):
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(exp), ctc_greedy=True)
    recordings, tasks = map(list, zip(*parts[:4]))
    monkeypatch.setattr(padding, "SAFE", 1e9)
    for nbest, wave, task in zip(
        speech2text(recordings, task=tasks), recordings, tasks
    ):
        assert nbest[0][3].scores["alone"] == 1
        expected = speech2text(wave, task=task)[0]
        assert nbest[0][2] == expected[2]
        # Bit for bit: it is the same computation.
        assert float(nbest[0][3].score) == float(expected[3].score)


def test_a_training_hears_what_it_has_always_heard(exp, parts):
    """Opening a model for decoding leaves its frontend as it was for others."""
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(exp), ctc_greedy=True)
    frontend = speech2text.asr_model.frontend
    stock = type(frontend).forward
    speech = torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(wave) for wave, _ in parts[:3]], batch_first=True
    )
    lengths = torch.tensor([len(wave) for wave, _ in parts[:3]])
    expected, frames = stock(frontend, speech, lengths)
    found, own = frontend(speech, lengths)
    assert torch.equal(found, expected) and torch.equal(own, frames)
    with padding.alone():
        single, same = frontend(speech, lengths)
    assert torch.equal(same, frames)
    assert not torch.allclose(single, expected[:, : single.size(1)])


def test_transcribe_prints_the_same_one_by_one_and_together(
    exp, parts, tmp_path, capsys
):
    paths = [str(write(tmp_path / f"{i}.wav", w)) for i, (w, _) in enumerate(parts[:8])]
    printed = []
    for size in ("1", "8"):
        words = [*paths, "--model", str(exp), "--task", CARLO, "--batch_size", size]
        assert transcribe.main(words) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and len(printed[0].splitlines()) == 8
