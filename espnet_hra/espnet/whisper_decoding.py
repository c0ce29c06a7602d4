"""Whisper's decoding: prompts by task, batched steps, and no endless repetition.

The decoder's keys and values are kept from step to step. Its layers are called as
ESPnet calls them, so whatever follows a layer there (an adapter) follows it here.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
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
        margin: How far the second best was behind: of tokens, where it was nearest, or
            of texts.
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


class Memory:
    """What a batch's encoder has heard, whatever its lengths.

    Whisper's decoder has no mask for what it hears. So here its cross-attention is
    another one, which leaves out what is padded.

    Args:
        rows: Output of the encoder for each utterance, (frames, d).
    """

    def __init__(self, rows: Sequence[torch.Tensor]):
        self.rows = list(rows)
        self.mask: torch.Tensor | None = None
        if not self.rows:
            return
        self.padded = torch.nn.utils.rnn.pad_sequence(self.rows, batch_first=True)
        sizes = [len(row) for row in self.rows]
        if len(set(sizes)) > 1:
            numbers = torch.arange(self.padded.size(1), device=self.padded.device)
            lengths = torch.tensor(sizes, device=self.padded.device)
            # [b, heads, tokens, frames]
            self.mask = (numbers < lengths[:, None])[:, None, None]

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, rows: Sequence[int]) -> "Memory":
        """That of some of its utterances."""
        return Memory([self.rows[i] for i in rows])

    def select(self, rows: Sequence[int]) -> "Memory":
        """The same, as long as it was: what is kept of a batch still fits."""
        part = Memory(())
        part.rows = [self.rows[i] for i in rows]
        part.padded = self.padded[list(rows)]
        part.mask = None if self.mask is None else self.mask[list(rows)]
        return part


class _Masked:
    """Cross-attention to what is no padding; keys and values are kept.

    Several rows of one utterance (a beam's) ask as several tokens would: what the
    encoder has heard is there once.
    """

    def __init__(self, kept: Kept, path: str, mask: Any, attention: Any):
        self._kept, self._path, self._mask = kept, path, mask
        self._attention = attention

    def __call__(
        self, x: torch.Tensor, memory: torch.Tensor, **_: Any
    ) -> tuple[torch.Tensor, None]:
        own = self._attention
        query = own.query(x.reshape(len(memory), -1, x.size(-1)))
        key, value = (
            _Once(self._kept, f"{self._path}.{name}", getattr(own, name))(memory)
            for name in ("key", "value")
        )
        q, k, v = (
            one.unflatten(-1, (own.n_head, -1)).transpose(1, 2)
            for one in (query, key, value)
        )
        found = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=self._mask
        )
        return own.out(found.transpose(1, 2).flatten(start_dim=2)).view_as(x), None


def step(
    decoder: Any, kept: Kept, tokens: torch.Tensor, before: int, memory: Memory
) -> torch.Tensor:
    """What comes next, with the tasks in force.

    Args:
        decoder: ESPnet's Whisper decoder, which may be adapted; it is left as it is.
        kept: Keys and values of the batch; empty at its first step.
        tokens: Tokens that the decoder has not seen yet, (b, n); or several rows for
            each utterance, one behind the other, (b * rows, n).
        before: How many it has seen.
        memory: What the encoder has heard.

    Returns:
        Logits, (b, vocabulary) or (b * rows, vocabulary).
    """
    remember: dict[str, Callable[[Any], Any]] = {}
    for i in range(len(decoder.decoders.blocks)):
        block = f"decoders.blocks.{i}"
        for name in ("key", "value"):
            path = f"{block}.attn.{name}"
            remember[path] = functools.partial(_Growing, kept, path)
        path = f"{block}.cross_attn"
        remember[path] = functools.partial(_Masked, kept, path, memory.mask)
    args = (tokens, before, memory.padded)
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


def reorder(kept: Kept, rows: torch.Tensor, utterances: Sequence[int] = ()) -> None:
    """Let each row go on from another one of the same utterance.

    Args:
        kept: Keys and values of the batch.
        rows: From which, (b * rows).
        utterances: Those that are left, if some are done.
    """
    for path, found in kept.items():
        if ".cross_attn." not in path:
            kept[path] = found[rows]
        elif utterances:
            kept[path] = found[list(utterances)]


def token_limit(decoder: Any, prompt: int, seconds: float) -> int:
    """Most tokens of an utterance's text.

    Args:
        decoder: ESPnet's Whisper decoder.
        prompt: Tokens of its prompt.
        seconds: How long it is.
    """
    room: int = decoder.decoders.positional_embedding.size(0) - prompt
    return min(room, int(_TOKENS + _TOKENS_PER_SECOND * seconds))


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
    memory: Memory,
    prompts: Sequence[Sequence[int]],
    seconds: Sequence[float],
    end: int,
    without: torch.Tensor,
) -> list[Text]:
    """The likeliest token at each step, for a batch.

    Args:
        decoder: ESPnet's Whisper decoder.
        memory: What the encoder has heard.
        prompts: What each text begins with; equally long.
        seconds: How long each utterance is.
        end: The token that ends a text.
        without: Tokens that are not considered, (vocabulary) or (b, vocabulary).

    Returns:
        A text for each utterance.
    """
    kept: Kept = {}
    limits = [token_limit(decoder, len(prompts[0]), s) for s in seconds]
    ids: list[list[int]] = [[] for _ in prompts]
    scores = [0.0] * len(prompts)
    margins = [math.inf] * len(prompts)
    open_ = set(range(len(prompts)))
    device = memory.padded.device
    tokens = torch.tensor([list(p) for p in prompts], device=device)
    before = 0
    without = without.to(device)
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
    decoder: Any, memory: Memory, vocabulary: Vocabulary, codes: Sequence[str]
) -> list[tuple[str, float]]:
    """The language that Whisper hears in each utterance, and its margin.

    The margin is how far the second likeliest language is behind, as a difference of
    logits.

    Args:
        decoder: ESPnet's Whisper decoder.
        memory: What the encoder has heard.
        vocabulary: Its tokens.
        codes: The languages to choose from.
    """
    start = vocabulary.convert_tokens_to_ids(START)
    tokens = torch.full((len(memory), 1), start, device=memory.padded.device)
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
