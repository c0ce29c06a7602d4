"""Whisper's beam search, for a batch whose utterances may have different tasks.

At each step the likeliest continuations of an utterance are kept, so many at most. One
that ends is compared with others by its logarithmic probability for each token, as
OpenAI's own search does: sums alone would favour short texts.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from espnet_hra.espnet import whisper_decoding as decoding
from espnet_hra.espnet.whisper_decoding import Kept, Memory, Text


class _Utterance:
    """What is known of one utterance's texts.

    Attributes:
        beam: Texts that go on, the likeliest first, as tokens.
        scores: Their logarithmic probabilities.
        found: Texts that have ended, with their scores and numbers of tokens.
        loop: The likeliest text that went round in circles, without its circles.
        over: Whether no text goes on.
    """

    def __init__(self, size: int, limit: int):
        self.size, self.limit = size, limit
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
            if score == -math.inf:
                break
            ids = [*self.beam[row], token]
            if token == end:
                self._end(self.beam[row], score, len(ids))
                continue
            circles = decoding.repeated(ids)
            if (
                circles
            ):  # a loop is ever likelier: it counts only if nothing else is found
                self.loop = self.loop or (ids[:-circles], score, len(ids))
            elif len(beam) < self.size:
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
) -> list[list[Text]]:
    """The likeliest texts of each utterance of a batch.

    Args:
        decoder: ESPnet's Whisper decoder. It is called with ``size`` rows for each
            utterance, one behind the other, and so must its tasks be chosen.
        memory: What the encoder has heard.
        prompts: What each text begins with; equally long.
        seconds: How long each utterance is.
        end: The token that ends a text.
        without: Tokens that are not considered, (vocabulary) or (b, vocabulary).
        size: Size of the beam.
        most: How many texts of each utterance are returned.

    Returns:
        For each utterance its texts, best first; ``margin`` of a text is how far the
        second best was behind the best, for each token.
    """
    device = memory.padded.device
    kept: Kept = {}
    utterances = [
        _Utterance(size, decoding.token_limit(decoder, len(prompts[0]), s))
        for s in seconds
    ]
    without = without.to(device).expand(len(prompts), -1)
    without = without.repeat_interleave(size, dim=0)
    tokens = torch.tensor(
        [list(p) for p in prompts for _ in range(size)], device=device
    )
    scores = torch.full((len(prompts), size), -math.inf, device=device)
    scores[:, 0] = 0.0  # all rows are the same at first
    before = 0
    while not all(one.over for one in utterances):
        logits = decoding.step(decoder, kept, tokens, before, memory).masked_fill(
            without, -torch.inf
        )
        before += tokens.size(1)
        each = logits.log_softmax(dim=-1).view(len(prompts), size, -1)
        # Of each text the best alone can be among the best: fewer to sort.
        top, numbers = each.topk(2 * size, dim=-1)
        best, places = (scores[..., None] + top).flatten(1).topk(2 * size, dim=-1)
        rows = (places // (2 * size)).tolist()
        chosen = numbers.flatten(1).gather(1, places).tolist()
        order = list(range(len(prompts) * size))
        following = [end] * len(order)
        scores = torch.full_like(scores, -math.inf)
        for u, one in enumerate(utterances):
            if one.over:
                continue
            came = one.extend(best[u].tolist(), rows[u], chosen[u], end)
            for k, row in enumerate(came):
                order[u * size + k] = u * size + row
                following[u * size + k] = one.beam[k][-1]
            scores[u, : len(came)] = torch.tensor(one.scores[: len(came)])
        decoding.reorder(kept, torch.tensor(order, device=device))
        tokens = torch.tensor(following, device=device)[:, None]
    return [one.best(most) for one in utterances]
