"""A method on the layers of the attention decoder (``adapter_conf: {decoder: true}``).

It is the mechanism of the encoder once more: each pass runs the decoder's own code on a
view of it, in which each layer is followed by a step of the adapter. What a task has
for the decoder lies in its one vector, behind what it has for the encoder, and the task
of a pass is the one that the encoder would use.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from espnet_hra.encoder import mixed
from espnet_hra.encoder.adapted import AdaptedEncoder
from espnet_hra.encoder.freezing import freeze_dropout
from espnet_hra.encoder.layers import Layers
from espnet_hra.encoder.view import view
from espnet_hra.errors import ConfigError, TaskError
from espnet_hra.methods.base import Backbone
from espnet_hra.methods.substitution import Change, changed

#: Where ESPnet's decoders with attention keep their layers: its own, and Whisper's.
_PATHS = ("decoders", "decoders.blocks")

#: Functions of a decoder that run through its layers. The first argument of each has
#: one row for each utterance or hypothesis.
_ENTRIES = ("forward", "forward_one_step", "forward_partially_AR")


class AdaptedDecoder(torch.nn.Module):
    """Mixin for a frozen decoder whose layers tasks adapt.

    Attributes:
        layer_list: Where it keeps its layers.
    """

    #: The class of ESPnet's that is adapted.
    decoder_class: type

    layer_list: Layers

    # In a tuple: the encoder is no submodule of its decoder.
    _encoder: tuple[AdaptedEncoder]

    def run(self, entry: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """One of the decoder's functions, with the tasks in force.

        Raises:
            TaskError: Several tasks and no choice, or a choice that does not fit.
        """
        function: Callable[..., Any] = getattr(self.decoder_class, entry)
        rows = (args[0] if args else next(iter(kwargs.values()))).size(0)
        return self.run_on_view(function, rows, args, kwargs, entry == "forward")

    def run_on_view(
        self,
        function: Callable[..., Any],
        rows: int,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
        parts: bool = False,
        also: Mapping[str, Change] | None = None,
    ) -> Any:
        """Any function of a decoder, with the tasks in force.

        Args:
            function: Its first argument is the decoder as the tasks have it.
            rows: Utterances or hypotheses of the batch.
            args: Its other arguments.
            kwargs: Those by name.
            parts: Whether the batch may run in parts, one for each task.
            also: What else is changed in the decoder for this pass, by dotted path.

        Raises:
            TaskError: Several tasks and no choice, or a choice that does not fit.
        """
        (encoder,) = self._encoder
        kwargs = kwargs or {}
        with encoder.adapter.heads.hold():
            names = encoder.tasks_of_batch(rows)
            if len(set(names)) < 2 or encoder.adapter.in_one_pass:
                return self._one_pass(function, names, args, kwargs, also)
            if not parts:
                raise TaskError(
                    f"adapter: {encoder.adapter.config['adapter']} searches with one "
                    f"task at a time, and was given {', '.join(dict.fromkeys(names))}; "
                    "decode with espnet_hra.Speech2Text, or task by task"
                )
            return mixed.task_by_task(
                names,
                functools.partial(self._one_pass, function),
                mixed.by_name(function, args, kwargs),
            )

    def _one_pass(
        self,
        function: Callable[..., Any],
        names: tuple[str, ...],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        also: Mapping[str, Change] | None = None,
    ) -> Any:
        (encoder,) = self._encoder
        also = also or {}
        part = encoder.adapter.decoder
        assert part is not None, "given by attach"
        if not names:
            return function(view(self, self.layer_list, None, also), *args, **kwargs)
        after_layer = part.begin(names, encoder.adapter.pass_dtype())
        own = part.changes_for(names[0])
        decoder = changed(self, own) if own else self
        prepared = view(decoder, self.layer_list, after_layer, also)
        try:
            return function(prepared, *args, **kwargs)
        finally:
            after_layer.end()

    def train(self, mode: bool = True) -> "AdaptedDecoder":
        """As ``Module.train``, but for the dropout of what is frozen."""
        super().train(mode)
        (encoder,) = self._encoder
        if not encoder.adapter.backbone_dropout:
            freeze_dropout(self, mode)
        return self

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class is made at run time; pickling rebuilds it from ESPnet's.
        return _blank, (self.decoder_class,), self.__getstate__()


@functools.cache
def _adapted(decoder_class: type) -> type:
    """The adapted counterpart of one of ESPnet's decoders."""

    def entry(name: str) -> Callable[..., Any]:
        @functools.wraps(getattr(decoder_class, name))
        def run(self: AdaptedDecoder, *args: Any, **kwargs: Any) -> Any:
            return self.run(name, args, kwargs)

        return run

    own = {name: entry(name) for name in _ENTRIES if hasattr(decoder_class, name)}
    return type(
        f"HRA{decoder_class.__name__}",
        (AdaptedDecoder, decoder_class),
        {"__module__": __name__, "decoder_class": decoder_class, **own},
    )


def _blank(decoder_class: type) -> AdaptedDecoder:
    cls: type[AdaptedDecoder] = _adapted(decoder_class)
    return cls.__new__(cls)


def attach(model: torch.nn.Module) -> None:
    """Adapt a model's attention decoder, if its adapter is to (``decoder: true``).

    Args:
        model: ESPnet model with an adapted encoder; gets another object as decoder,
            which shares everything with the one that it has.

    Raises:
        ConfigError: It has no decoder whose layers could be adapted.
    """
    encoder = model.encoder
    assert isinstance(encoder, AdaptedEncoder), "asked for adapted models only"
    if not encoder.adapter.adapts_decoder:
        return
    decoder: Any = getattr(model, "decoder", None)
    if decoder is None:
        raise ConfigError(
            "adapter_conf: decoder: true adapts the attention decoder's layers, and "
            "this model has no decoder (ctc_weight: 1.0); leave decoder: true out"
        )
    layers = _layers_of(decoder)
    stack = list(layers.each(decoder))
    encoder.adapter.add_decoder(
        Backbone(decoder, _width_of(stack[0]), stack, layers.path, kind="decoder")
    )
    adapted = _blank(type(decoder))
    adapted.__dict__.update(decoder.__dict__)
    adapted.layer_list, adapted._encoder = layers, (encoder,)
    model.decoder = adapted
    adapted.train(decoder.training)


def _layers_of(decoder: Any) -> Layers:
    lists = (torch.nn.Sequential, torch.nn.ModuleList)
    modules = dict(decoder.named_modules())
    for path in _PATHS:
        if isinstance(modules.get(path), lists) and len(modules[path]):
            return Layers(path)
    raise ConfigError(
        f"adapter_conf: decoder: true: {type(decoder).__name__} keeps no list of "
        "layers `.decoders`; transformer decoders and Whisper's can be adapted"
    )


def _width_of(layer: torch.nn.Module) -> int:
    """Width of what a layer returns: that of its first norm."""
    norms = (m for m in layer.modules() if isinstance(m, torch.nn.LayerNorm))
    return next(norms).normalized_shape[-1]
