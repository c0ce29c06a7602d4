"""Decoding with tasks in the ESPnet task asr_transducer: offline, or chunk by chunk."""

from collections.abc import Sequence
from typing import Any, Literal

from espnet2.bin import asr_transducer_inference

from espnet_hra.encoder import selection
from espnet_hra.errors import ConfigError
from espnet_hra.espnet.inference_others import OneByOne
from espnet_hra.espnet.inputs import Wave, as_wave


class TransducerSpeech2Text(OneByOne, asr_transducer_inference.Speech2Text):
    """ESPnet's ``asr_transducer_inference.Speech2Text`` for adapted models.

    A stream (``streaming=True`` and :meth:`streaming_decode`) keeps the task that it
    began with, whatever is chosen meanwhile.

    Args:
        asr_train_config: Saved configuration of the adaptation.
        asr_model_file: Its checkpoint.
        **kwargs: See :class:`espnet_hra.espnet.decoding.Decoding`, and as for ESPnet's
            class. Calls return hypotheses as ESPnet's do; with ``return_decoded_hyp``
            (text, tokens, token ids, hypothesis) of each.

    Examples:
        >>> speech2text = espnet_hra.Speech2Text.from_pretrained(
        ...     "exp/asr_hra", task="fr_june", streaming=True, decoding_window=640
        ... )
        >>> for chunk, last in chunks:
        ...     hypotheses = speech2text.streaming_decode(chunk, is_final=last)
        >>> text = speech2text.text_of(hypotheses)
    """

    built_by = {
        ("espnet2.bin.asr_transducer_inference", "ASRTransducerTask"): "asr_transducer"
    }

    #: Whether a stream has begun and not ended, and its choice.
    _running = False
    _stream: selection.Choice = None

    def __init__(
        self, *args: Any, ctc_greedy: bool | Literal["auto"] = False, **kwargs: Any
    ):
        if ctc_greedy not in (False, "auto"):
            raise ConfigError(
                "ctc_greedy: models of asr_transducer decode without a CTC; leave it "
                "out, for ESPnet's beam search (beam_size: 1 is the quickest)"
            )
        super().__init__(*args, **kwargs)

    def text_of(self, nbest: Any) -> str:  # type: ignore[override]
        """What was said, of an n-best list: the best text.

        Args:
            nbest: What a call or :meth:`streaming_decode` has returned.
        """
        if not nbest:
            return ""
        if not isinstance(nbest[0], tuple | list):
            nbest = self.hypotheses_to_results(nbest[:1])
        return nbest[0][0] or ""

    def reset_streaming_cache(self) -> None:
        """End a stream; the next chunk begins another."""
        self._running = False
        super().reset_streaming_cache()

    def streaming_decode(
        self, speech: Wave | Sequence[float], is_final: bool = False
    ) -> list[Any]:
        """Take in a chunk.

        Args:
            speech: Samples, shape (samples,).
            is_final: Whether it is the last one.

        Returns:
            The n best hypotheses of the stream so far.

        Raises:
            ConfigError: The model was opened without ``streaming=True``.
            TaskError: None was chosen among several.
        """
        if not hasattr(self, "audio_processor"):
            raise ConfigError(
                "streaming_decode: this model was opened for whole utterances; open it "
                "with streaming=True (on the command line, --streaming true)"
            )
        wave = as_wave(speech)
        if self._heads is None:
            return super().streaming_decode(wave, is_final)
        encoder = self.model.encoder
        if not self._running:
            self._stream, self._running = encoder.chosen_task, True
        with encoder.use_task(self._stream):
            with self._request(None, None):
                return super().streaming_decode(wave, is_final)
