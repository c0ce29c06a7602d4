"""How :class:`espnet_hra.Speech2Text` reads with Whisper."""

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from espnet2.bin import asr_inference
from espnet2.legacy.nets.beam_search import Hypothesis

from espnet_hra.encoder.adapted import AdaptedEncoder
from espnet_hra.errors import ConfigError
from espnet_hra.espnet import whisper_beam
from espnet_hra.espnet import whisper_decoding as decoding
from espnet_hra.espnet.whisper import NAME, RATE, model_sizes
from espnet_hra.tasks import file as taskfile
from espnet_hra.whisper import tokens

logger = logging.getLogger(__name__)

#: Seconds that Whisper hears at once.
_WINDOW = 30

#: Whisper itself, without a task, was trained on windows of 30 seconds and repeats
#: itself where little silence follows; 10 are enough (as the recipe reads it, see
#: ``--frozen_seconds``).
_WITHOUT_TASK = 10

#: Windows of long recordings that are read at once.
_TOGETHER = 8


def reads_with_whisper(config: Mapping[str, Any]) -> bool:
    """Whether a configuration's texts are written by Whisper's decoder and tokens."""
    return config.get("decoder") == NAME and str(config.get("bpemodel")).startswith(
        "whisper_"
    )


class WhisperReader:
    """Reads utterances with Whisper, each in the language of its task.

    Args:
        speech2text: Has the model, its tasks, and ESPnet's beam search.
        language: The language of all utterances, a code or English name; None for
            that of each one's task, or else the one that Whisper hears.
        beam: Size of the beam; 1 takes the best token at each step. Where more than the
            decoder takes part (a CTC, a language model), the search is ESPnet's, one
            utterance after the other.

    Raises:
        ConfigError: Whisper does not know the language.
    """

    def __init__(self, speech2text: Any, language: str | None, beam: int):
        self._speech2text, self._beam = speech2text, beam
        search = speech2text.beam_search
        scorers = {*search.full_scorers, *search.part_scorers}
        self._espnets = beam > 1 and scorers != {"decoder"}
        args = speech2text.asr_train_args
        self._sizes = model_sizes(args.decoder_conf)
        self._vocabulary = speech2text.converter.tokenizer.tokenizer
        self._multilingual = args.bpemodel == "whisper_multilingual"
        conf = args.preprocessor_conf or {}
        self._task = conf.get("whisper_task") or "transcribe"
        usual = conf.get("whisper_language", "en")
        self._usual = self.code(usual) if usual and self._multilingual else None
        self._by_task: Mapping[str, str] = getattr(args, "languages", None) or {}
        self._without = decoding.forbidden(
            self._vocabulary, speech2text.asr_model.vocab_size
        )
        #: Tasks whose texts have no digits, and the mask of what they may not have.
        self._spelled = frozenset(getattr(args, "spelled_numbers", None) or ())
        self._letters: torch.Tensor | None = None
        self._searching = threading.RLock()  # ESPnet's search has one prompt at a time
        self.set_language(language)

    def set_language(self, language: str | None) -> None:
        """Set the language of all utterances. Argument and errors as above."""
        if language is not None and not self._multilingual:
            raise ConfigError(
                f"language {language!r}: this Whisper knows English alone; leave the "
                "language out, or take a model without .en"
            )
        self.language = None if language is None else self.code(language)

    def code(self, language: str) -> str:
        """The code of a language, see :func:`espnet_hra.whisper.tokens.code_of`.

        Raises:
            ConfigError: Whisper does not know the language.
        """
        return tokens.code_of(language, self._sizes.num_languages)

    # ------------------------------------------------------------------ language

    def language_of(self, task: str | None, spoken: str = "") -> str | None:
        """The language of an utterance; None if nothing tells it.

        What is known of the utterance itself goes first, then what was asked for, the
        training's ``languages``, what the task's file says of itself, and last the
        language of the model's own training.

        Args:
            task: Its task.
            spoken: Its own language, if it is known.
        """
        if not self._multilingual:
            return None
        if spoken:
            return self.code(spoken)
        if self.language is not None:
            return self.language
        if task is not None and task in self._by_task:
            return self.code(self._by_task[task])
        said = self._said(task)
        return self.code(said[0]) if len(said) == 1 else self._usual

    def language_in(self, sequence: Sequence[int] | torch.Tensor) -> str | None:
        """The language that a text was read in.

        Args:
            sequence: Its tokens, with the prompt that they begin with.
        """
        if not self._multilingual:
            return None
        token: str = self._vocabulary.convert_ids_to_tokens(int(sequence[1]))
        return token.removeprefix("<|").removesuffix("|>")

    def _said(self, task: str | None) -> list[str]:
        """Languages that the task's file names."""
        store = self._speech2text.store
        if task is None or store is None or store.version(task) is None:
            return []
        return list(taskfile.describe(store.path(task)).get("languages") or ())

    def hear(self, waves: Sequence[torch.Tensor]) -> list[str]:
        """The language of each utterance, by its first window.

        Args:
            waves: Samples of each, (samples).

        Raises:
            ConfigError: This Whisper knows English alone.
        """
        if not self._multilingual:
            raise ConfigError("this Whisper knows English alone: it tells no languages")
        heard: list[str] = []
        with self._plain():
            for start in range(0, len(waves), _TOGETHER):
                part = [w[: self.longest] for w in waves[start : start + _TOGETHER]]
                rows, _ = self._speech2text.encode_each(part)
                memory = decoding.Memory(rows)
                heard += [code for code, _ in self._languages(memory)]
        return heard

    def _languages(self, memory: decoding.Memory) -> list[tuple[str, float]]:
        with self._plain():
            return decoding.languages(
                self._speech2text.asr_model.decoder,
                memory,
                self._vocabulary,
                tokens.codes(self._sizes.num_languages),
            )

    # ------------------------------------------------------------------- reading

    def read(self, waves: Sequence[torch.Tensor], spoken: Sequence[str]) -> list[Any]:
        """Read utterances with the tasks that are chosen.

        Args:
            waves: Samples of each, (samples).
            spoken: The language of each, or nothing.

        Returns:
            An n-best list for each.

        Raises:
            TaskError: Several tasks and no choice, or a choice that does not fit.
        """
        encoder = self._speech2text.asr_model.encoder
        names: Sequence[str | None] = ()
        if isinstance(encoder, AdaptedEncoder):
            names = encoder.tasks_of_batch(len(waves))
        names = names or [None] * len(waves)
        pieces = [decoding.windows(wave, self.longest, RATE) for wave in waves]
        if max(map(len, pieces), default=0) > 1:
            logger.info(
                f"Recordings of more than {_WINDOW} seconds are read in windows: "
                f"{', '.join(str(len(p)) for p in pieces if len(p) > 1)} of them"
            )
        flat = [
            (wave, name, language)
            for own, name, language in zip(pieces, names, spoken)
            for wave in own
        ]
        found: list[Any] = [None] * len(flat)
        together = max(_TOGETHER, len(waves))
        for rows in self._groups([name for _, name, _ in flat]):
            for start in range(0, len(rows), together):
                part = rows[start : start + together]
                for row, nbest in zip(part, self._batch([flat[i] for i in part])):
                    found[row] = nbest
        results, at = [], 0
        for own in pieces:
            results.append(_joined(found[at : at + len(own)]))
            at += len(own)
        return results

    def _groups(self, names: Sequence[str | None]) -> list[list[int]]:
        """What is read together: all, or each task's own if its decoder is its own."""
        adapter = getattr(self._speech2text.asr_model.encoder, "adapter", None)
        if adapter is None or adapter.decoder is None:
            return [list(range(len(names)))]
        # Hypotheses of ESPnet's search do not say whose utterance they are.
        if adapter.in_one_pass and not self._espnets:
            return [list(range(len(names)))]
        return [
            [i for i, other in enumerate(names) if other == name]
            for name in dict.fromkeys(names)
        ]

    @property
    def longest(self) -> int:
        """Most samples that are read at once; more are cut into windows."""
        silence = getattr(self._speech2text.asr_model.encoder, "pad_seconds", 0.0)
        return int((_WINDOW - silence) * RATE)

    @property
    def least(self) -> int:
        """Samples that are best read without a task, with silence at their end."""
        return min(_WITHOUT_TASK * RATE, self.longest)

    def _batch(
        self, pieces: Sequence[tuple[torch.Tensor, str | None, str]]
    ) -> list[Any]:
        names = [name for _, name, _ in pieces]
        waves = [wave for wave, _, _ in pieces]
        languages = [self.language_of(name, spoken) for _, name, spoken in pieces]
        if names[0] is None:  # no adapter, or it is switched off
            return self._texts(waves, languages, self._without)
        # One name serves all rows: ESPnet's search has more of them than utterances.
        choice = names[0] if len(set(names)) == 1 else names
        with self._speech2text.asr_model.encoder.use_task(choice):
            return self._texts(waves, languages, self._without_of(names), choice)

    def _without_of(self, names: Sequence[str | None]) -> torch.Tensor:
        """Which tokens are not considered, of each task, (b, vocabulary)."""
        if self._spelled.isdisjoint(names):
            return self._without
        if self._letters is None:
            self._letters = decoding.without_digits(self._vocabulary, self._without)
        return torch.stack(
            [
                self._letters if name in self._spelled else self._without
                for name in names
            ]
        )

    def _texts(
        self,
        waves: list[torch.Tensor],
        languages: Sequence[str | None],
        without: torch.Tensor,
        choice: Any = None,
    ) -> list[Any]:
        rows, _ = self._speech2text.encode_each(waves)
        memory = decoding.Memory(rows)
        model = self._speech2text.asr_model
        prompts, margins = self._prompts(memory, languages)
        if self._espnets:
            return [self._search(one, prompt) for one, prompt in zip(rows, prompts)]
        given = (
            model.decoder,
            memory,
            prompts,
            [len(wave) / RATE for wave in waves],
            model.eos,
            without,
        )
        if self._beam == 1:
            found = [[text] for text in decoding.greedy(*given)]
        else:
            most = self._speech2text.nbest
            found = whisper_beam.search(
                *given, self._beam, most, lambda going: self._rows_of(choice, going)
            )
        return [
            [
                self._result(text, prompt, min(text.margin, margin), rows[0].device)
                for text in texts
            ]
            for texts, prompt, margin in zip(found, prompts, margins)
        ]

    def _rows_of(
        self, choice: Any, going: Sequence[int]
    ) -> AbstractContextManager[Any]:
        """Within, the decoder has a beam of rows for each utterance that goes on."""
        if not isinstance(choice, list):  # one task for all, or none
            return nullcontext()
        names = [choice[i] for i in going for _ in range(self._beam)]
        use: AbstractContextManager[Any]
        use = self._speech2text.asr_model.encoder.use_task(names)
        return use

    def _prompts(
        self, memory: decoding.Memory, given: Sequence[str | None]
    ) -> tuple[list[tuple[int, ...]], list[float]]:
        """What each text begins with; languages that nobody tells are heard.

        With it comes how sure that is, see :func:`decoding.languages`.
        """
        languages, margins = list(given), [math.inf] * len(given)
        silent = [i for i, code in enumerate(languages) if code is None]
        if silent and self._multilingual:
            for i, heard in zip(silent, self._languages(memory.part(silent))):
                languages[i], margins[i] = heard
        prompts = [
            tokens.prompt(self._vocabulary, code, self._task) for code in languages
        ]
        return prompts, margins

    def _plain(self) -> AbstractContextManager[Any]:
        """Within, the decoder is Whisper's own: a task has learned one language."""
        encoder = self._speech2text.asr_model.encoder
        if isinstance(encoder, AdaptedEncoder):
            return encoder.use_task(None)
        return nullcontext()

    def _result(
        self,
        text: decoding.Text,
        prompt: Sequence[int],
        margin: float,
        device: torch.device,
    ) -> tuple[str, list[str], list[int], Hypothesis]:
        speech2text = self._speech2text
        words = speech2text.converter.ids2tokens(text.ids)
        sequence = [*prompt, *text.ids, speech2text.asr_model.eos]
        hypothesis = Hypothesis(
            yseq=torch.tensor(sequence, device=device),
            score=text.score,
            scores={"margin": margin},
        )
        return (
            speech2text.tokenizer.tokens2text(words).strip(),
            words,
            text.ids,
            hypothesis,
        )

    def _search(self, memory: torch.Tensor, prompt: Sequence[int]) -> Any:
        """ESPnet's beam search on one utterance."""
        speech2text = self._speech2text
        with self._searching:
            speech2text.beam_search.set_hyp_primer(list(prompt))
            found = asr_inference.Speech2Text._decode_single_sample(speech2text, memory)
        return [
            (text.strip(), words, [i for i in ids if i not in prompt], hypothesis)
            for text, words, ids, hypothesis in found
        ]


def _joined(parts: list[Any]) -> Any:
    """The n-best list of an utterance; of one in windows, the best of each together."""
    if len(parts) == 1:
        return parts[0]
    best = [nbest[0] for nbest in parts if nbest]
    ids = [i for _, _, own, _ in best for i in own]
    score = sum(float(hypothesis.score) for *_, hypothesis in best)
    edges = [best[0][3].yseq[:1], best[-1][3].yseq[-1:]]
    sequence = torch.cat([edges[0], edges[0].new_tensor(ids), edges[1]])
    text = " ".join(text for text, *_ in best if text)
    words = [word for _, own, *_ in best for word in own]
    margin = min(one[3].scores.get("margin", math.inf) for one in best)
    scores = {"margin": margin}
    return [(text, words, ids, Hypothesis(yseq=sequence, score=score, scores=scores))]
