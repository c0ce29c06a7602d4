"""Decoding with tasks in other ESPnet tasks than asr: s2t, s2t_ctc, st, slu."""

from collections.abc import Sequence
from typing import Any

import torch
from espnet2.bin import s2t_inference, slu_inference, st_inference
from espnet2.legacy.nets.beam_search import Hypothesis

from espnet_hra.encoder import selection
from espnet_hra.errors import NoRoomError
from espnet_hra.espnet.decoding import Decoding, NBest
from espnet_hra.espnet.inputs import (
    Wave,
    as_wave,
    as_waves,
    check_tags,
    in_memory,
)


class OneByOne(Decoding):
    """Mixin for inference classes of ESPnet that decode one utterance at a time."""

    @torch.no_grad()
    def __call__(
        self,
        speech: Wave | Sequence[Wave],
        *args: Any,
        utt2task: Wave | Sequence[Wave] | None = None,
        task: None | str | Sequence[str] = None,
        **kwargs: Any,
    ) -> Any:
        """Decode one utterance, or a list of them.

        Args:
            speech: Samples, shape (samples,), or a list of such.
            *args: As for ESPnet's class, the same for all of a list.
            utt2task: The utterance's task as the data loader gives it, shape
                (characters,), or a list with one for each.
            task: The task of this call, or one per utterance; otherwise (None) the one
                that was set.
            **kwargs: As for ESPnet's class, the same for all of a list.

        Returns:
            What ESPnet's class returns, or a list of that.

        Raises:
            TaskError: A task is unknown, or none was chosen among several.
            NoRoomError: An utterance does not fit into memory.
        """
        given = self._given(utt2task, task)
        if given is not None:
            with self.model.encoder.use_task(given):
                return self(speech, *args, **kwargs)
        if isinstance(speech, list | tuple):
            with self._request(None, None) as choice:
                found = []
                waves = [as_wave(wave) for wave in speech]
                names = self._names(choice, len(waves))
                for i, (wave, name) in enumerate(zip(waves, names)):
                    with selection.block(self.model.encoder, name):
                        try:
                            found.append(self._alone(wave, *args, **kwargs))
                        except NoRoomError as e:
                            raise NoRoomError(e.samples, i, len(waves)) from e
                return found
        wave = as_wave(speech)
        with self._request(None, None):
            return self._alone(wave, *args, **kwargs)

    def batch_decode(
        self,
        speech: Wave | Sequence[Wave],
        speech_lengths: Wave | Sequence[int] | None = None,
        utt2task: torch.Tensor | None = None,
        utt2task_lengths: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Decode a batch; every utterance keeps its task.

        Args:
            speech: List of utterances, or padded, (utterances, samples).
            speech_lengths: Number of samples of each, for padded speech.
            utt2task: Task names as the data loader gives them, padded.
            utt2task_lengths: Their lengths.
            **kwargs: As for ESPnet's class.

        Returns:
            What ESPnet's class returns, for each utterance in the given order.

        Raises:
            TaskError: A task is unknown, or none was chosen among several.
        """
        waves = as_waves(speech, speech_lengths)
        with self._request(utt2task, utt2task_lengths):
            return self(waves, **kwargs)

    def _names(self, choice: selection.Choice, size: int) -> Sequence[str | None]:
        """The task of each utterance of a batch, or None for the plain backbone."""
        if choice is None or isinstance(choice, str):
            return [choice] * size
        return self.model.encoder.tasks_of_batch(size)

    def _alone(self, wave: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        with in_memory(len(wave)):
            return self._decode(wave, *args, **kwargs)

    def _decode(self, wave: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """One utterance, with the task in force."""
        return super().__call__(wave, *args, **kwargs)  # type: ignore[misc]


class S2TSpeech2Text(OneByOne, s2t_inference.Speech2Text):
    """ESPnet's ``s2t_inference.Speech2Text`` for adapted models of s2t and s2t_ctc.

    ``best_path`` and ``decode_long`` work with the task that was set.

    Args:
        s2t_train_config: Saved configuration of the adaptation.
        s2t_model_file: Its checkpoint.
        **kwargs: See :class:`espnet_hra.espnet.decoding.Decoding`; with `ctc_greedy` a
            call is ESPnet's ``best_path``, and scores nothing. And as for ESPnet's
            class.

    Examples:
        >>> speech2text = espnet_hra.Speech2Text.from_pretrained("exp/s2t_hra")
        >>> speech2text.set_task("fr_june")
        >>> *_, text, hypothesis = speech2text(waveform, lang_sym="<fra>")[0]
    """

    built_by = {
        ("espnet2.bin.s2t_inference", "S2TTask"): "s2t",
        ("espnet2.tasks.s2t_ctc", "S2TTask"): "s2t_ctc",
    }

    def set_language(self, tag: str | None) -> None:
        """Say which language is spoken.

        Args:
            tag: ESPnet's tag of it, e.g. ``fra``; None for what ESPnet's programs do:
                models of s2t_ctc find out, others are told ``eng``.

        Raises:
            ConfigError: The model has no such tag.
        """
        if tag is None and not self.ctc_only:
            return
        symbol = self.no_language() if tag is None else f"<{tag.strip('<>')}>"
        self._check_tags(symbol)
        self.lang_sym = symbol

    def _check_tags(self, *symbols: str | None) -> None:
        check_tags(self.converter.token2id, *symbols)

    @staticmethod
    def text_of(nbest: NBest) -> str:
        """What was said, of an n-best list: the best text, without tags."""
        return nbest[0][3] or ""

    @torch.no_grad()
    def batch_decode(
        self,
        speech: Wave | Sequence[Wave],
        speech_lengths: Wave | Sequence[int] | None = None,
        utt2task: torch.Tensor | None = None,
        utt2task_lengths: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """As ESPnet's; the utterances of one task are a batch of their own.

        Arguments, returns and errors as of :meth:`OneByOne.batch_decode`. Without tasks
        for each utterance it is ESPnet's own.
        """
        waves = as_waves(speech, speech_lengths)
        self._check_tags(
            kwargs.get("lang_sym") or self.lang_sym,
            kwargs.get("task_sym") or self.task_sym,
        )
        with self._request(utt2task, utt2task_lengths) as choice:
            if self.ctc_greedy:
                return self(waves, **kwargs)
            rows: dict[str | None, list[int]] = {}
            for i, name in enumerate(self._names(choice, len(waves))):
                rows.setdefault(name, []).append(i)
            results: dict[int, Any] = {}
            for name, own in rows.items():
                part = {
                    key: value[own] if isinstance(value, torch.Tensor) else value
                    for key, value in kwargs.items()
                }
                with selection.block(self.model.encoder, name):
                    batch = [waves[i] for i in own]
                    found = s2t_inference.Speech2Text.batch_decode(self, batch, **part)
                results.update(zip(own, found))
        return [results[i] for i in range(len(waves))]

    def _decode(
        self,
        wave: torch.Tensor,
        text_prev: Any = None,
        lang_sym: str | None = None,
        task_sym: str | None = None,
        predict_time: bool | None = None,
    ) -> Any:
        self._check_tags(lang_sym or self.lang_sym, task_sym or self.task_sym)
        if not self.ctc_greedy:
            return super()._decode(wave, text_prev, lang_sym, task_sym, predict_time)
        previous = "<na>" if text_prev is None else text_prev
        found = self.best_path(wave, previous, lang_sym, task_sym)
        nbest, *more = found if isinstance(found, tuple) else (found,)
        # ESPnet's loop wants a hypothesis of everything; this one has no score.
        nbest = [
            (*one[:4], Hypothesis(yseq=torch.tensor(one[2]), score=0.0))
            for one in nbest
        ]
        return (nbest, *more) if more else nbest


class STSpeech2Text(OneByOne, st_inference.Speech2Text):
    """ESPnet's ``st_inference.Speech2Text`` for adapted models of speech translation.

    Args:
        st_train_config: Saved configuration of the adaptation.
        st_model_file: Its checkpoint.
        **kwargs: See :class:`espnet_hra.espnet.decoding.Decoding`, and as for ESPnet's
            class, whose own `ctc_greedy` it is.
    """

    built_by = {("espnet2.bin.st_inference", "STTask"): "st"}
    # ESPnet's class would assert that there is a CTC before we say it in words.
    greedy_options = {"ctc_greedy": True, "ctc_weight": 0.0}
    ctc_name = "st_ctc"

    @staticmethod
    def text_of(nbest: Any) -> str:
        """What was said, of an n-best list: the best translation.

        Of a multi-decoder model the texts in the language of the speech come second.
        """
        best = nbest[0] if isinstance(nbest, tuple) else nbest
        return best[0][0] or ""


class Speech2Understand(OneByOne, slu_inference.Speech2Understand):
    """ESPnet's ``Speech2Understand`` for adapted models that understand speech.

    Args:
        slu_train_config: Saved configuration of the adaptation.
        slu_model_file: Its checkpoint.
        **kwargs: See :class:`espnet_hra.espnet.decoding.Decoding`, and as for ESPnet's
            class.
    """

    built_by = {("espnet2.bin.slu_inference", "SLUTask"): "slu"}

    def _decode(self, wave: torch.Tensor, transcript: Any = None) -> Any:
        if not self.ctc_greedy:
            return super()._decode(wave, transcript)
        batch = [wave.to(getattr(torch, self.dtype))]
        batch += [] if transcript is None else [torch.as_tensor(transcript)]
        inputs = [
            one for given in batch for one in (given[None], torch.tensor([len(given)]))
        ]
        encoded, frames = self.model.encode(*(one.to(self.device) for one in inputs))
        encoded = encoded[0] if isinstance(encoded, tuple) else encoded
        return self._best_path(encoded, frames)[0]
