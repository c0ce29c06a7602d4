"""Whisper's beam search, beside one that is written down without batches and caches."""

import math

import numpy as np
import pytest
import torch
from test_training import waves
from test_whisper import adapted, no_network, stock  # noqa: F401

import espnet_hra
from espnet_hra.espnet import whisper_beam
from espnet_hra.espnet import whisper_decoding as decoding


def plain(speech2text, wave, task, size):
    """All texts that a beam search finds, (score, tokens), the best one first."""
    model, without = speech2text.asr_model, speech2text._whisper._without
    prompt = speech2text._whisper.language_of(task)
    vocabulary = speech2text.converter.tokenizer.tokenizer
    prompt = vocabulary.convert_tokens_to_ids(
        ["<|startoftranscript|>", f"<|{prompt}|>", "<|transcribe|>", "<|notimestamps|>"]
    )
    limit = decoding.token_limit(model.decoder, len(prompt), len(wave) / 16000)
    beam, found, loops = [(0.0, [])], [], []
    with torch.no_grad(), model.encoder.use_task(task):
        memory, _ = speech2text._encode([torch.as_tensor(wave)])
        while beam and len(found) < size and len(beam[0][1]) < limit:
            following = []
            for score, ids in beam:
                given = torch.tensor([prompt + ids]), None, memory
                logits, _ = model.decoder.forward_one_step(*given)
                own = logits[0].masked_fill(without, -torch.inf).log_softmax(-1)
                best, tokens = own.topk(2 * size)
                following += [
                    (score + s, [*ids, t])
                    for s, t in zip(best.tolist(), tokens.tolist())
                ]
            beam = []
            for score, ids in sorted(following, reverse=True)[: 2 * size]:
                if len(beam) == size:
                    break
                if ids[-1] == model.eos:
                    if len(found) < size:
                        found.append((score / len(ids), score, ids[:-1]))
                elif decoding.repeated(ids):
                    loops.append(ids)
                else:
                    beam.append((score, ids))
        if beam and len(beam[0][1]) >= limit:
            more = [(score / len(ids), score, ids) for score, ids in beam]
            found += more[: size - len(found)]
    return [(score, ids) for _, score, ids in sorted(found, reverse=True)]


@pytest.mark.parametrize("size", [2, 4])
def test_a_batch_of_several_tasks_is_searched_as_written_down(adapted, an4, size):  # noqa: F811
    speech2text = espnet_hra.Speech2Text.from_pretrained(
        str(adapted), beam_size=size, nbest=size
    )
    first, second = (np.asarray(wave) for wave in waves(an4)[:2])
    recordings = [first, second[:9000], first[:7000], second]
    names = ["male", "female", "female", "male"]
    together = speech2text(recordings, task=names)
    assert len({tuple(nbest[0][2]) for nbest in together}) > 1
    for wave, name, nbest in zip(recordings, names, together):
        expected = plain(speech2text, wave, name, size)
        assert nbest[0][2] == expected[0][1]
        assert len(nbest) == len(expected)
        for (*_, ids, hypothesis), (score, _) in zip(nbest, expected):
            assert float(hypothesis.score) == pytest.approx(score, rel=1e-4)
            assert hypothesis.yseq.tolist()[4:-1] == ids


def extended(size, limit, *steps):
    """An utterance's beam after some steps of (score, row, token); 0 ends a text."""
    one = whisper_beam._Utterance(size, limit)
    for continuations in steps:
        one.extend(*zip(*continuations), end=0)
    return one


def test_what_ends_is_compared_by_its_probability_for_each_token():
    one = extended(
        2,
        9,
        [(-1.0, 0, 5), (-1.5, 0, 0), (-2.0, 0, 6)],
        [(-1.2, 0, 7), (-2.1, 0, 0), (-9.0, 1, 8)],
    )
    assert one.over and one.beam == [[5], [6]]
    assert [text.ids for text in one.best(2)] == [[5], []]
    assert one.best(2)[0].margin == pytest.approx(1.5 - 2.1 / 2)
    assert [text.score for text in one.best(2)] == [-2.1, -1.5]


def test_an_end_that_is_less_likely_than_a_whole_beam_is_none():
    """Else a long text would be over before it is at its end."""
    one = extended(2, 9, [(-1.0, 0, 5), (-2.0, 0, 6), (-2.5, 0, 0), (-3.0, 0, 7)])
    assert not one.over and one.found == []
    one.extend((-1.1, -2.6, -2.7), (0, 0, 1), (0, 5, 6), end=0)
    assert [ids for ids, *_ in one.found] == [[5]]


def test_a_search_is_over_when_nothing_can_win_any_more():
    steps = [(-1.0, 0, 5), (-30.0, 0, 6)], [(-1.2, 0, 0), (-31.0, 1, 6), (-32.0, 1, 7)]
    assert extended(2, 99, *steps).over  # 18 certain tokens more: -31 / 18 < -1.2 / 2
    several = whisper_beam._Utterance(2, 99, most=2)
    for continuations in steps:
        several.extend(*zip(*continuations), end=0)
    assert not several.over


def test_a_loop_counts_only_if_nothing_else_is_found():
    circles = [[(-0.01 * n, 0, 7), (-5.0 - n, 0, 8)] for n in range(1, 12)]
    last = [(-0.12, 0, 7)]
    one = extended(1, 99, *circles, last)
    assert one.over and [text.ids for text in one.best(1)] == [[7]]
    assert one.best(1)[0].margin == math.inf
    ended = extended(2, 99, [(-3.0, 0, 0), (-0.01, 0, 7)], *circles[1:], last)
    assert ended.over and [text.ids for text in ended.best(2)] == [[]]


def test_a_text_ends_at_its_limit():
    one = extended(2, 2, [(-1.0, 0, 5), (-2.0, 0, 6)], [(-2.0, 0, 5), (-3.0, 1, 6)])
    assert one.over and [text.ids for text in one.best(9)] == [[5, 5], [6, 6]]
