"""Decoding with tasks: ESPnet's ``Speech2Text``, strict loading, and greedy CTC."""

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from espnet2.bin import asr_inference
from espnet2.legacy.nets.beam_search import Hypothesis
from espnet2.torch_utils.device_funcs import release_accelerator_memory

from espnet_hra.encoder import selection
from espnet_hra.encoder.adapted import AdaptedEncoder
from espnet_hra.errors import ConfigError, NoRoomError, TaskError
from espnet_hra.espnet import classifying, padding
from espnet_hra.espnet.decoding import NO_LANGUAGE, Decoding, NBest
from espnet_hra.espnet.inputs import (
    Wave,
    as_wave,
    as_waves,
    batch_names,
    in_memory,
    out_of_memory,
)
from espnet_hra.espnet.models import opened
from espnet_hra.espnet.whisper import RATE, without_weights
from espnet_hra.espnet.whisper_decoding import windows
from espnet_hra.espnet.whisper_reader import WhisperReader, reads_with_whisper

logger = logging.getLogger(__name__)

#: Size of the beam where texts are Whisper's, chosen on the five voices' dev sets.
WHISPER_BEAM = 4

#: Utterances are padded to a multiple of it for Whisper, in samples.
STEP = 2 * RATE


class Speech2Text(Decoding, asr_inference.Speech2Text):
    """ESPnet's ``Speech2Text`` for adapted models.

    Args:
        asr_train_config: Saved configuration of the adaptation.
        asr_model_file: Its checkpoint.
        ctc_greedy: Take the best CTC symbol of each frame instead of a beam search;
            auto: where texts are not Whisper's.
        language: Of a Whisper, the language of all utterances (a code such as ``fr``);
            by default that of each one's task, or else the one that it hears.
        **kwargs: `task` and others, see :class:`espnet_hra.espnet.decoding.Decoding`;
            `ctc_greedy` is fast, batched, and needs no decoder or language model. And
            as for ESPnet's ``Speech2Text``.

    Examples:
        >>> speech2text = Speech2Text.from_pretrained("exp/asr_hra", task="fr_june")
        >>> text, *_ = speech2text(waveform)[0]
        >>> speech2text([wave, another], task=["fr_june", "it_carlo"])

    Raises:
        BaseModelError: The checkpoint or its base is incomplete or another.
        TaskError: The task is unknown.
    """

    built_by = {("espnet2.bin.asr_inference", "ASRTask"): "asr"}

    def __init__(
        self,
        asr_train_config: Path | str | None = None,
        asr_model_file: Path | str | None = None,
        *args: Any,
        ctc_greedy: bool | Literal["auto"] = False,
        language: str | None = None,
        **kwargs: Any,
    ):
        if kwargs.get("ready") is not None:
            config = vars(kwargs["ready"][1])
        else:
            asr_train_config, asr_model_file, config = opened(
                asr_train_config, asr_model_file
            )
        whisper = reads_with_whisper(config)
        ctc_greedy = not whisper if ctc_greedy == "auto" else ctc_greedy
        if whisper:
            kwargs = {"beam_size": WHISPER_BEAM, **kwargs}
            if (config.get("model_conf") or {}).get("ctc_weight") == 0.0:
                kwargs["ctc_weight"] = 0.0
        with without_weights(config):
            super().__init__(
                asr_train_config, asr_model_file, *args, ctc_greedy=ctc_greedy, **kwargs
            )
        self._masks: bool | None = None
        self._whisper: WhisperReader | None = None
        if whisper and not ctc_greedy:
            self._whisper = WhisperReader(self, language, kwargs["beam_size"])
        elif language is not None:
            super().set_language(language)

    @property
    def whisper(self) -> WhisperReader | None:
        """What reads texts of Whisper's; None where texts are another model's."""
        return self._whisper

    def set_language(self, tag: str | None) -> None:
        if self._whisper is None:
            super().set_language(tag)
        else:
            self._whisper.set_language(tag)

    @torch.no_grad()
    def __call__(
        self,
        speech: Wave | Sequence[Wave],
        utt2task: str | Wave | Sequence[str | Wave] | None = None,
        utt2lang: Wave | None = None,
        *,
        task: None | str | Sequence[str] = None,
    ) -> Any:
        """Decode one utterance, or a list of them as one batch.

        Args:
            speech: Samples, shape (samples,), or a list of such.
            utt2task: The utterance's task, its name (as of ESPnet3's data) or as
                ESPnet2's data loader gives it, shape (characters,); or a list with
                one for each.
            utt2lang: The utterance's language as the data loader gives it; for Whisper
                only.
            task: The task of this call, or one per utterance; otherwise (None) the one
                that was set.

        Returns:
            An n-best list of (text, tokens, token ids, hypothesis), or a list of them.

        Raises:
            TaskError: A task is unknown, or none was chosen among several.
        """
        given = self._given(utt2task, task)
        if given is not None:
            with self.asr_model.encoder.use_task(given):
                return self(speech, utt2lang=utt2lang)
        if isinstance(speech, list | tuple):
            return self.batch_decode(speech)
        wave = as_wave(speech)
        with self._request(None, None):
            if self.ctc_greedy or self._whisper is not None or self._classify(1):
                waves: list[Any] = [wave]
                spoken = None if utt2lang is None else torch.as_tensor(utt2lang)[None]
                return self.batch_decode(waves, utt2lang=spoken)[0]
            with in_memory(len(wave)):
                return super().__call__(wave)

    @torch.no_grad()
    def hear_languages(self, speech: Sequence[Wave]) -> list[str]:
        """The languages that Whisper hears, e.g. ``fr``.

        Args:
            speech: Utterances, (samples) each; of long ones, the beginning counts.

        Raises:
            ConfigError: The model is no Whisper of several languages.
        """
        if self._whisper is None:
            raise ConfigError(f"languages cannot be heard: {NO_LANGUAGE}")
        return self._whisper.hear([as_wave(wave) for wave in speech])

    @torch.no_grad()
    def batch_decode(
        self,
        speech: Wave | Sequence[Wave],
        speech_lengths: Wave | Sequence[int] | None = None,
        utt2task: torch.Tensor | None = None,
        utt2task_lengths: torch.Tensor | None = None,
        utt2lang: torch.Tensor | None = None,
        utt2lang_lengths: torch.Tensor | None = None,
    ) -> list[NBest]:
        """Decode a batch; every utterance keeps its task.

        ESPnet's own sorts by length and halves a batch that runs out of memory, and
        knows nothing of tasks. Here the encoder runs first, in the given order and with
        each utterance's task; the search works on what it returns.

        Args:
            speech: List of utterances, or padded, (utterances, samples).
            speech_lengths: Number of samples of each, for padded speech.
            utt2task: Task names as the data loader gives them, padded.
            utt2task_lengths: Their lengths.
            utt2lang: Languages likewise; for Whisper only.
            utt2lang_lengths: Their lengths.

        Returns:
            One n-best list per utterance, in the given order. Without a beam the text
            of each is the one that it has alone, see :mod:`espnet_hra.espnet.padding`;
            ``scores`` of a hypothesis that was decoded again, alone, have ``alone``.

        Raises:
            NoRoomError: One does not fit into memory, not even alone.
        """
        waves = as_waves(speech, speech_lengths)
        with self._request(utt2task, utt2task_lengths) as choice:
            rows = self._classify(len(waves))
            if rows:
                return self._apart(waves, rows, utt2lang, utt2lang_lengths)
            if self._whisper is not None:
                spoken = batch_names(utt2lang, utt2lang_lengths)
                spoken = spoken or [""] * len(waves)
                return self._safely(self._whisper.read, waves, choice, spoken)
            if utt2lang is not None:
                raise ConfigError(f"utt2lang: {NO_LANGUAGE}")
            if self.ctc_greedy:
                return self._safely(self._greedy, waves, choice)
            if choice is None or isinstance(choice, str):  # one task: none to mix up
                return self._split_if_too_large(self._of_one_task, waves, choice)
            return self._split_if_too_large(self._search, waves, choice)

    def _of_one_task(self, waves: list[torch.Tensor]) -> list[NBest]:
        """ESPnet's search; one by one where padding would be heard."""
        if self.encoder_masks:
            return super().batch_decode(waves)
        return [asr_inference.Speech2Text.__call__(self, wave) for wave in waves]

    def _safely(
        self,
        decode: Callable[..., list[NBest]],
        waves: list[torch.Tensor],
        choice: selection.Choice,
        *others: Sequence[Any],
    ) -> list[NBest]:
        """Decode a batch, and what was won by little again, alone."""
        results = self._split_if_too_large(decode, waves, choice, *others)
        if len(waves) == 1:
            return results
        for i, nbest in enumerate(results):
            if nbest[0][3].scores.get("margin", math.inf) >= padding.SAFE:
                continue
            own = choice[i : i + 1] if isinstance(choice, tuple) else choice
            rest = (other[i : i + 1] for other in others)
            (again,) = self._split_if_too_large(decode, waves[i : i + 1], own, *rest)
            again[0][3].scores["alone"] = 1.0
            results[i] = again
        return results

    def _classify(self, size: int) -> list[int]:
        """Which utterances of a batch are of tasks that tell labels."""
        if self._heads is None:
            return []
        return classifying.rows_of(
            self.asr_model, classifying.names_of(self.asr_model, size)
        )

    def _apart(
        self,
        waves: list[torch.Tensor],
        rows: Sequence[int],
        utt2lang: torch.Tensor | None,
        utt2lang_lengths: torch.Tensor | None,
    ) -> list[NBest]:
        """A batch in which some utterances are given a label, and the others a text.

        Args:
            waves: The utterances.
            rows: Those that are given a label.
            utt2lang: As of :meth:`batch_decode`.
            utt2lang_lengths: As of :meth:`batch_decode`.
        """
        encoder = self.asr_model.encoder
        names = classifying.names_of(self.asr_model, len(waves))
        results: dict[int, NBest] = {}
        chosen = tuple(str(names[i]) for i in rows)
        own = [waves[i] for i in rows]
        results.update(zip(rows, self._split_if_too_large(self._labels, own, chosen)))
        others = [i for i in range(len(waves)) if i not in results]
        if others:
            spoken = utt2lang if utt2lang is None else utt2lang[others]
            lengths = utt2lang_lengths
            lengths = lengths if lengths is None else lengths[others]
            with encoder.use_task([str(names[i]) for i in others]):
                texts = self.batch_decode(
                    [waves[i] for i in others],
                    utt2lang=spoken,
                    utt2lang_lengths=lengths,
                )
            results.update(zip(others, texts))
        return [results[i] for i in range(len(waves))]

    def _labels(self, waves: list[torch.Tensor]) -> list[NBest]:
        """The label of each utterance, as its text; the score is a log-probability."""
        encoder = self.asr_model.encoder
        names = classifying.names_of(self.asr_model, len(waves))
        parts = [[wave] for wave in waves]
        if self._whisper is not None:
            parts = [windows(wave, self._whisper.longest, RATE) for wave in waves]
        encoded: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
        for name, own in zip(names, parts):
            with encoder.use_task(name):
                encoded.append([self._encode([wave]) for wave in own])
        results: list[NBest] = []
        for told in classifying.answers(self.asr_model, encoded):
            scores = {"margin": told.margin, "frames": told.frames}
            end = torch.tensor([self.asr_model.eos])
            hypothesis = Hypothesis(end, score=told.score, scores=scores)
            results.append([(told.label, [told.label], [told.number], hypothesis)])
        return results

    def _split_if_too_large(
        self,
        decode: Callable[..., list[NBest]],
        waves: list[torch.Tensor],
        choice: selection.Choice,
        *others: Sequence[Any],
    ) -> list[NBest]:
        """Decode a batch, in halves if memory runs out.

        What belongs to an utterance goes with it: its task, and items of `others`.
        """
        names = choice if isinstance(choice, tuple) else None
        if names is not None and len(names) != len(waves):
            raise TaskError(
                f"{len(names)} tasks were chosen for a batch of {len(waves)} "
                "utterances: give one name for all, or one per utterance"
            )
        try:
            if names is None:
                return decode(waves, *others)
            with self.asr_model.encoder.use_task(names):
                return decode(waves, *others)
        except Exception as e:  # only running out of memory is handled
            if not out_of_memory(e):
                raise
            if len(waves) == 1:
                raise NoRoomError(len(waves[0])) from e
        # What was computed so far is kept by the error, which is gone from here on.
        release_accelerator_memory()
        half = (len(waves) + 1) // 2
        logger.warning(
            f"memory ran out with {len(waves)} utterances of up to "
            f"{max(map(len, waves)):,} samples: decoding {half} at once"
        )
        results = []
        for part in (slice(None, half), slice(half, None)):
            try:
                results += self._split_if_too_large(
                    decode,
                    waves[part],
                    choice if names is None else names[part],
                    *(other[part] for other in others),
                )
            except NoRoomError as e:
                place = e.index + (part.start or 0)
                raise NoRoomError(e.samples, place, len(waves)) from e
        return results

    @property
    def encoder_masks(self) -> bool:
        """Whether utterances that are padded to the longest are read as alone.

        It is tried when it is first asked for.
        """
        if self._masks is None:
            encoder = self.asr_model.encoder
            with selection.block(encoder, None), padding.alone():
                ctc = getattr(self.asr_model, "ctc", None) if self.ctc_greedy else None
                whisper = self._whisper is not None
                self._masks = not whisper and padding.masks(self._padded, ctc)
        return self._masks

    def _encode(self, waves: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoder output (b, frames, d) and its lengths (b), as of each one alone."""
        if self.encoder_masks:
            return self._padded(waves)
        rows, frames = self.encode_each(waves)
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return padded, torch.stack(frames)

    def encode_each(
        self, waves: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Encoder outputs; only what is equally long goes through it together.

        Args:
            waves: Utterances, (samples) each.

        Returns:
            For each the whole output, (frames, d), and how many frames are of speech.
        """
        encoder = self.asr_model.encoder
        names: Sequence[str] = ()
        if isinstance(encoder, AdaptedEncoder):
            names = encoder.tasks_of_batch(len(waves))
        by_length: dict[int, list[int]] = {}
        for i, wave in enumerate(waves):
            by_length.setdefault(self._room(len(wave)), []).append(i)
        found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for room, rows in by_length.items():
            choice: selection.Choice = next(iter(names), None)
            if len(names) > 1:
                choice = tuple(names[i] for i in rows)
            with selection.block(encoder, choice):
                encoded, frames = self._padded([waves[i] for i in rows], room)
            found.update(zip(rows, zip(encoded, frames)))
        return (
            [found[i][0] for i in range(len(waves))],
            [found[i][1] for i in range(len(waves))],
        )

    def _room(self, samples: int) -> int:
        """How long an utterance is made for an encoder that hears what is behind it.

        With Whisper that is a whole number of steps, so that many are equally long, and
        what is heard is still the utterance's own. Samples, as the argument.
        """
        encoder = self.asr_model.encoder
        if self._whisper is None or not getattr(encoder, "pad_seconds", 0.0):
            return samples
        return max(samples, min(-(-samples // STEP) * STEP, self._whisper.longest))

    def _padded(
        self, waves: list[torch.Tensor], room: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of utterances that are padded to the longest, or to `room`."""
        dtype = getattr(torch, self.dtype)
        speech = torch.nn.utils.rnn.pad_sequence(
            [wave.to(dtype) for wave in waves], batch_first=True
        )
        speech = torch.nn.functional.pad(speech, (0, max(0, room - speech.size(1))))
        lengths = torch.tensor([wave.numel() for wave in waves])
        encoded, frames = self.asr_model.encode(
            speech.to(self.device), lengths.to(self.device)
        )
        return (encoded[0] if isinstance(encoded, tuple) else encoded), frames

    def _search(self, waves: list[torch.Tensor]) -> list[NBest]:
        """ESPnet's beam search over a batch."""
        encoded, frames = self._encode(waves)
        if not self._can_batch_decode():
            results = []
            names = self.asr_model.encoder.tasks_of_batch(len(waves))
            for x, n, name in zip(encoded, frames, names):
                # The CTC projection may be the task's own.
                with self.asr_model.encoder.use_task(name):
                    results.append(self._decode_single_sample(x[:n]))
            return results
        if self.asr_model.encoder.adapter.decoder is not None:
            return self._search_by_task(encoded, frames)
        found = self.beam_search(
            x=encoded,
            x_lengths=frames,
            maxlenratio=self.maxlenratio,
            minlenratio=self.minlenratio,
        )
        return [self._hyps_to_results(hypotheses) for hypotheses in found]

    def _search_by_task(
        self, encoded: torch.Tensor, frames: torch.Tensor
    ) -> list[NBest]:
        """As above, task by task: hypotheses do not say whose utterance they are."""
        encoder = self.asr_model.encoder
        names = encoder.tasks_of_batch(len(encoded))
        results: dict[int, NBest] = {}
        for name in dict.fromkeys(names):
            rows = [i for i, other in enumerate(names) if other == name]
            with encoder.use_task(name):
                found = self.beam_search(
                    x=encoded[rows],
                    x_lengths=frames[rows],
                    maxlenratio=self.maxlenratio,
                    minlenratio=self.minlenratio,
                )
            results.update(zip(rows, map(self._hyps_to_results, found)))
        return [results[i] for i in range(len(names))]

    def _greedy(self, waves: list[torch.Tensor]) -> list[NBest]:
        """The best CTC symbol of each frame, repeats and blanks removed."""
        return self._best_path(*self._encode(waves))
