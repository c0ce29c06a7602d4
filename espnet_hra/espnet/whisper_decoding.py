"""Whisper's decoding: prompts by task, greedy and batched, and no endless repetition.

The decoder's keys and values are kept from step to step. Its layers are called as
ESPnet calls them, so whatever follows a layer there (an adapter) follows it here.
"""

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from espnet_hra.encoder.attention_decoder import AdaptedDecoder
from espnet_hra.methods.substitution import changed
from espnet_hra.whisper.tokens import END, START, Vocabulary

#: Most tokens of a text: some, and as many for each second of speech. No language needs
#: more, and what Whisper makes up must end.
_TOKENS, _TOKENS_PER_SECOND = 16, 30

#: A phrase that comes so often in a row, over so many tokens, is a loop.
_TIMES, _LENGTH = 4, 12

#: Longest phrase that is looked for, in tokens.
_PHRASE = 24

_TIMESTAMP = re.compile(r"<\|\d+\.\d\d\|>")


@dataclass(frozen=True)
class Text:
    """What was found for one utterance.

    Attributes:
        ids: Numbers of its tokens, without prompt and end.
        score: Sum of their logarithmic probabilities.
        margin: How far the second best token was behind, where it was nearest.
    """

    ids: list[int]
    score: float
    margin: float


#: What the decoder's projections have returned so far, by their path.
Kept = dict[str, torch.Tensor]


class _Growing:
    """A projection of the decoder's self-attention that keeps what it has returned."""

    def __init__(self, kept: Kept, path: str, linear: torch.nn.Module):
        self._kept, self._path, self._linear = kept, path, linear

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        new = self._linear(x)
        if self._path in self._kept:
            new = torch.cat([self._kept[self._path], new], dim=1)
        self._kept[self._path] = new
        return new


class _Once(_Growing):
    """A projection of the encoder's output, which is the same in every step."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._path not in self._kept:
            self._kept[self._path] = self._linear(x)
        return self._kept[self._path]


def step(
    decoder: Any, kept: Kept, tokens: torch.Tensor, before: int, memory: torch.Tensor
) -> torch.Tensor:
    """What comes next, with the tasks in force.

    Args:
        decoder: ESPnet's Whisper decoder, which may be adapted; it is left as it is.
        kept: Keys and values of the batch; empty at its first step.
        tokens: Tokens that the decoder has not seen yet, (b, n).
        before: How many it has seen.
        memory: Output of the encoder, (b, frames, d).

    Returns:
        Logits, (b, vocabulary).
    """
    remember = {
        (path := f"decoders.blocks.{i}.{part}.{name}"): functools.partial(
            kind, kept, path
        )
        for i in range(len(decoder.decoders.blocks))
        for part, kind in (("attn", _Growing), ("cross_attn", _Once))
        for name in ("key", "value")
    }
    args = (tokens, before, memory)
    if not isinstance(decoder, AdaptedDecoder):
        return _step(changed(decoder, remember), *args)
    logits: torch.Tensor = decoder.run_on_view(_step, len(tokens), args, also=remember)
    return logits


def _step(
    decoder: Any, tokens: torch.Tensor, before: int, memory: torch.Tensor
) -> torch.Tensor:
    inner = decoder.decoders
    x = inner.token_embedding(tokens)
    x = x + inner.positional_embedding[before : before + tokens.size(1)]
    x = x.to(memory.dtype)
    for block in inner.blocks:
        x = block(x, memory, mask=inner.mask)
    last = inner.ln(x[:, -1])
    return (last @ inner.token_embedding.weight.to(last.dtype).T).float()


def forbidden(vocabulary: Vocabulary, size: int) -> torch.Tensor:
    """Which tokens no text has: languages, timestamps and the like, (size)."""
    mask = torch.zeros(size, dtype=torch.bool)
    for token, number in vocabulary.get_added_vocab().items():
        own = token in vocabulary.special or _TIMESTAMP.fullmatch(token)
        if own and token != END and number < size:
            mask[number] = True
    return mask


def without_digits(vocabulary: Vocabulary, mask: torch.Tensor) -> torch.Tensor:
    """A mask as of :func:`forbidden`, and no token that has a digit, (size)."""
    mask = mask.clone()
    mask[vocabulary.with_digits()] = True
    return mask


def greedy(
    decoder: Any,
    memory: torch.Tensor,
    prompts: Sequence[Sequence[int]],
    seconds: Sequence[float],
    end: int,
    without: torch.Tensor,
) -> list[Text]:
    """The likeliest token at each step, for a batch.

    Args:
        decoder: ESPnet's Whisper decoder.
        memory: Output of the encoder, (b, frames, d).
        prompts: What each text begins with; equally long.
        seconds: How long each utterance is.
        end: The token that ends a text.
        without: Tokens that are not considered, (vocabulary) or (b, vocabulary).

    Returns:
        A text for each utterance.
    """
    kept: Kept = {}
    room = decoder.decoders.positional_embedding.size(0) - len(prompts[0])
    limits = [min(room, int(_TOKENS + _TOKENS_PER_SECOND * s)) for s in seconds]
    ids: list[list[int]] = [[] for _ in prompts]
    scores = [0.0] * len(prompts)
    margins = [math.inf] * len(prompts)
    open_ = set(range(len(prompts)))
    tokens = torch.tensor([list(p) for p in prompts], device=memory.device)
    before = 0
    without = without.to(memory.device)
    while open_:
        logits = step(decoder, kept, tokens, before, memory).masked_fill(
            without, -torch.inf
        )
        before += tokens.size(1)
        top, numbers = logits.log_softmax(dim=-1).topk(2, dim=-1)
        best, chosen = top[:, 0], numbers[:, 0]
        ahead = (best - top[:, 1]).tolist()
        tokens = chosen[:, None]
        for row in sorted(open_):
            token = int(chosen[row])
            scores[row] += float(best[row])
            margins[row] = min(margins[row], ahead[row])
            if token == end:
                open_.remove(row)
                continue
            ids[row].append(token)
            loop = repeated(ids[row])
            if loop:
                del ids[row][-loop:]
            if loop or len(ids[row]) >= limits[row]:
                open_.remove(row)
    return [Text(*found) for found in zip(ids, scores, margins)]


def repeated(ids: Sequence[int]) -> int:
    """How many tokens at the end only repeat the phrase before them; 0 for no loop."""
    for length in range(1, min(_PHRASE, len(ids) // _TIMES) + 1):
        times = max(_TIMES, -(-_LENGTH // length))
        tail = list(ids[-times * length :])
        if len(tail) == times * length and tail == tail[:length] * times:
            return (times - 1) * length
    return 0


def languages(
    decoder: Any, memory: torch.Tensor, vocabulary: Vocabulary, codes: Sequence[str]
) -> list[tuple[str, float]]:
    """The language that Whisper hears in each utterance, and its margin.

    The margin is how far the second likeliest language is behind, as a difference of
    logits.

    Args:
        decoder: ESPnet's Whisper decoder.
        memory: Output of the encoder, (b, frames, d).
        vocabulary: Its tokens.
        codes: The languages to choose from.
    """
    start = vocabulary.convert_tokens_to_ids(START)
    tokens = torch.full((memory.size(0), 1), start, device=memory.device)
    numbers = vocabulary.convert_tokens_to_ids([f"<|{code}|>" for code in codes])
    logits = step(decoder, {}, tokens, 0, memory)[:, numbers]
    top, first = logits.topk(min(2, len(codes)), dim=-1)
    margins = (top[:, 0] - top[:, -1]).tolist()
    return list(zip([codes[i] for i in first[:, 0].tolist()], margins))


def windows(wave: torch.Tensor, longest: int, rate: int) -> list[torch.Tensor]:
    """An utterance in pieces that Whisper can hear, cut where it is quietest.

    Args:
        wave: Samples, (samples).
        longest: Most samples of a piece.
        rate: Samples a second.
    """
    pieces = []
    frame = rate // 50
    while len(wave) > longest:
        # Within the last fifth of a window, the quietest tenth of a second.
        late = wave[longest - longest // 5 : longest]
        energy = late[: len(late) // frame * frame].view(-1, frame).square().mean(dim=1)
        smooth = energy.unfold(0, min(5, len(energy)), 1).mean(dim=1)
        cut = longest - longest // 5 + (int(smooth.argmin()) + 2) * frame
        pieces.append(wave[:cut])
        wave = wave[cut:]
    return [*pieces, wave]
