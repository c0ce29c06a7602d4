"""Whisper's beam search, for a batch whose utterances may have different tasks.

At each step the likeliest continuations of an utterance are kept, so many at most. One
that ends is compared with others by its logarithmic probability for each token, as
OpenAI's own search does: sums alone would favour short texts.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from espnet_hra.espnet import whisper_decoding as decoding
from espnet_hra.espnet.whisper_decoding import Kept, Memory, Text

#: Where no more than this part of the utterances goes on, the others are let go.
_FEWER = 0.75

#: So many tokens more a text may need to become the best, each of them certain.
_MORE = 16


class _Utterance:
    """What is known of one utterance's texts.

    Attributes:
        beam: Texts that go on, the likeliest first, as tokens.
        scores: Their logarithmic probabilities.
        found: Texts that have ended, with their scores and numbers of tokens.
        loop: The likeliest text that went round in circles, without its circles.
        over: Whether no text goes on.
    """

    def __init__(self, size: int, limit: int, most: int = 1):
        self.size, self.limit, self.most = size, limit, most
        self.beam: list[list[int]] = [[]]
        self.scores = [0.0]
        self.found: list[tuple[list[int], float, int]] = []
        self.loop: tuple[list[int], float, int] | None = None
        self.over = False

    def _end(self, ids: list[int], score: float, tokens: int) -> None:
        if len(self.found) < self.size:
            self.found.append((ids, score, max(tokens, 1)))

    def extend(
        self,
        scores: Sequence[float],
        rows: Sequence[int],
        tokens: Sequence[int],
        end: int,
    ) -> list[int]:
        """One token more.

        Args:
            scores: Of the likeliest continuations, the best first.
            rows: Which text of the beam each continues.
            tokens: With what.
            end: The token that ends a text.

        Returns:
            Which text of the beam before each text of the beam continues.
        """
        beam: list[list[int]] = []
        kept: list[float] = []
        came: list[int] = []
        for score, row, token in zip(scores, rows, tokens):
            # An end that is less likely than a whole beam of texts that go on is none.
            if score == -math.inf or len(beam) == self.size:
                break
            ids = [*self.beam[row], token]
            if token == end:
                self._end(self.beam[row], score, len(ids))
                continue
            circles = decoding.repeated(ids)
            if circles:
                # Loops are ever likelier: one counts only if nothing else is found.
                self.loop = self.loop or (ids[:-circles], score, len(ids))
            else:
                beam.append(ids)
                kept.append(score)
                came.append(row)
        if not beam or len(self.found) == self.size or len(beam[0]) >= self.limit:
            for ids, score in zip(beam, kept):
                if len(ids) >= self.limit:
                    self._end(ids, score, len(ids))
            if not self.found and self.loop is not None:
                self.found = [self.loop]
            self.over = True
            return []
        self.beam, self.scores = beam, kept
        if self.most == 1 and self.found:
            best = max(found / tokens for _, found, tokens in self.found)
            self.over = kept[0] / (len(beam[0]) + _MORE) <= best
        return came

    def best(self, most: int) -> list[Text]:
        """The best texts, best first."""
        order = sorted(self.found, key=lambda one: one[1] / one[2], reverse=True)
        means = [score / tokens for _, score, tokens in order]
        ahead = means[0] - means[1] if len(means) > 1 else math.inf
        return [Text(ids, score, ahead) for ids, score, _ in order[:most]]


def search(
    decoder: Any,
    memory: Memory,
    prompts: Sequence[Sequence[int]],
    seconds: Sequence[float],
    end: int,
    without: torch.Tensor,
    size: int,
    most: int = 1,
    rows_of: Callable[[Sequence[int]], AbstractContextManager[Any]] = nullcontext,
) -> list[list[Text]]:
    """The likeliest texts of each utterance of a batch.

    Args:
        decoder: ESPnet's Whisper decoder. It is called with ``size`` rows for each
            utterance that goes on, one behind the other.
        memory: What the encoder has heard.
        prompts: What each text begins with; equally long.
        seconds: How long each utterance is.
        end: The token that ends a text.
        without: Tokens that are not considered, (vocabulary) or (b, vocabulary).
        size: Size of the beam.
        most: How many texts of each utterance are returned.
        rows_of: Given the numbers of utterances that go on, within what the decoder is
            called: where the tasks of its rows are chosen.

    Returns:
        For each utterance its texts, best first; ``margin`` of a text is how far the
        second best was behind the best, for each token.
    """
    device = memory.padded.device
    kept: Kept = {}
    utterances = [
        _Utterance(size, decoding.token_limit(decoder, len(prompts[0]), s), most)
        for s in seconds
    ]
    live = list(range(len(prompts)))
    without = without.to(device).expand(len(live), -1)
    without = without.repeat_interleave(size, dim=0)
    tokens = torch.tensor([list(prompts[u]) for u in live for _ in range(size)])
    tokens = tokens.to(device)
    scores = torch.full((len(live), size), -math.inf, device=device)
    scores[:, 0] = 0.0  # all rows are the same at first
    before = 0
    while going := [k for k, u in enumerate(live) if not utterances[u].over]:
        if len(going) <= _FEWER * len(live):
            live = [live[k] for k in going]
            rows = torch.tensor([k * size + j for k in going for j in range(size)])
            rows = rows.to(device)
            decoding.reorder(kept, rows, going)
            memory, scores = memory.select(going), scores[going]
            tokens, without = tokens[rows], without[rows]
        with rows_of(live):
            logits = decoding.step(decoder, kept, tokens, before, memory)
        before += tokens.size(1)
        logits.masked_fill_(without, -torch.inf)
        # Only the best few of a text can be among the best few of its utterance.
        top, numbers = logits.topk(2 * size, dim=-1)
        top -= logits.logsumexp(dim=-1, keepdim=True)
        total = scores[..., None] + top.view(len(live), size, -1)
        best, places = total.flatten(1).topk(2 * size, dim=-1)
        came_from = (places // (2 * size)).tolist()
        chosen = numbers.view(len(live), -1).gather(1, places).tolist()
        order = list(range(len(live) * size))
        following = [end] * len(order)
        scores = torch.full_like(scores, -math.inf)
        for k, (u, values) in enumerate(zip(live, best.tolist())):
            if utterances[u].over:
                continue
            came = utterances[u].extend(values, came_from[k], chosen[k], end)
            for j, row in enumerate(came):
                order[k * size + j] = k * size + row
                following[k * size + j] = utterances[u].beam[j][-1]
            scores[k, : len(came)] = torch.tensor(utterances[u].scores[: len(came)])
        decoding.reorder(kept, torch.tensor(order, device=device))
        tokens = torch.tensor(following, device=device)[:, None]
    return [one.best(most) for one in utterances]
