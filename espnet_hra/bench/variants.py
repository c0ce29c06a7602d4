"""What is measured on a backbone: nothing, HRA, and its rivals.

All variants of a backbone are built on the *same tensors*: they differ in what they
add. Only full fine-tuning and a merged LoRA, which write to the weights, have copies of
their own. LoRA is PEFT's, put on ESPnet's stock encoder by PEFT itself.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch

from espnet_hra.bench.backbones import Backbone
from espnet_hra.encoder.adapted import wrap_encoder
from espnet_hra.encoder.freezing import freeze_statistics
from espnet_hra.encoder.layers import find_layers
from espnet_hra.encoder.stepping import used_only
from espnet_hra.errors import ConfigError
from espnet_hra.espnet.params import layer_macs

#: Matrices that a LoRA changes, in every layer: its authors' choice.
MATRICES = ("linear_q", "linear_v")

#: Size of the vocabulary, and tokens in a second of speech, of a training step.
TOKENS, TOKENS_A_SECOND = 64, 4

#: What conf/train_hra.yaml says besides sizes.
RECIPE = {"controller": "indrnn", "output_scale": "layer"}

#: Inner size of an ffn head.
FFN = 64


@dataclass(frozen=True)
class Variant:
    """An encoder to be measured.

    Attributes:
        name: How tables call it.
        method: ``none``, ``hra``, ``residual``, ``lora``, ``full``.
        detail: Its size, for people.
        conf: ``adapter_conf``, or ``rank`` of a LoRA.
        tasks: How many are registered.
        mixed: Whether each utterance of a batch has a task of its own.
        merged: Whether a LoRA is merged into the weights.
    """

    name: str
    method: str
    detail: str = ""
    conf: dict[str, Any] = field(default_factory=dict)
    tasks: int = 1
    mixed: bool = False
    merged: bool = False


def import_peft() -> ModuleType | None:
    """PEFT, None where it is not installed."""
    try:
        import peft
    except ImportError:
        return None
    return peft


def hra(backbone: Backbone, name: str = "hra", c: int = 0, **more: Any) -> Variant:
    """HRA as the recipe trains it, with a controller of size c, by default d."""
    c = c or backbone.width
    keys = [k for k in more if k not in Variant.__dataclass_fields__]
    conf = {"controller_size": c, **RECIPE, **{k: more.pop(k) for k in keys}}
    head = f", ffn of {conf['head_size']}" if conf.get("head") == "ffn" else ""
    frozen = ", controller frozen" if conf.get("regime") == "new_task" else ""
    dropout = ", backbone's dropout" if conf.get("backbone_dropout") else ""
    plain = ", no scale" if conf["output_scale"] == "none" else ""
    detail = f"c = {c}{head}{plain}{frozen}{dropout}"
    return Variant(name, "hra", detail, conf, **more)


def hra_ffn(backbone: Backbone, name: str = "hra_ffn", **more: Any) -> Variant:
    """HRA with heads that have an inner layer."""
    return hra(backbone, name, head="ffn", head_size=FFN, **more)


def lora(backbone: Backbone, name: str, rank: int = 0, **more: Any) -> Variant:
    """PEFT's LoRA, by default of the rank whose tasks cost what HRA's cost."""
    rank = rank or nearest(lambda r: backbone.layers * 4 * backbone.width * r, backbone)
    merged = ", merged" if more.get("merged") else ""
    return Variant(name, "lora", f"r = {rank} on q, v{merged}", {"rank": rank}, **more)


def residual(backbone: Backbone, name: str = "residual", **more: Any) -> Variant:
    """Residual adapters of the width whose tasks cost what HRA's cost."""
    d = backbone.width
    rank = nearest(lambda r: backbone.layers * (2 * d * r + r + 3 * d), backbone)
    return Variant(name, "residual", f"r = {rank}", {"rank": rank}, **more)


def nearest(cost: Callable[[int], int], backbone: Backbone) -> int:
    """The rank whose cost is nearest to a linear head with c = d."""
    budget = backbone.width**2 + backbone.width
    rank = 1
    while abs(cost(rank + 1) - budget) < abs(cost(rank) - budget):
        rank += 1
    return rank


class Subject:
    """A variant, built, with a batch to run it on.

    Args:
        variant: What to build.
        backbone: What it stands on.
        stock: The backbone, built; its tensors are shared.
        batch: Number of utterances.
        seconds: Of speech, in each.

    Attributes:
        task_params: Parameters of one task.
        arithmetic: Multiply-accumulates of the layers with it / without it.

    Raises:
        ConfigError: PEFT is needed and not installed.
    """

    def __init__(
        self,
        variant: Variant,
        backbone: Backbone,
        stock: torch.nn.Module,
        batch: int,
        seconds: float,
    ):
        self.names = [f"task{i}" for i in range(variant.tasks)]
        self.choice: Any = self.names[0]
        if variant.mixed:
            self.choice = [self.names[i % len(self.names)] for i in range(batch)]
        torch.manual_seed(1)
        build = {"none": _none, "full": _full, "lora": _lora}.get(variant.method, _ours)
        self.encoder, self._chosen, self.task_params, macs = build(
            variant, backbone, stock, self.names
        )
        self.arithmetic = 1 + macs / layer_macs(
            find_layers(stock, "the backbone").each(stock)
        )
        device = next(stock.parameters()).device
        torch.manual_seed(2)
        frames = max(40, round(100 * seconds))
        self.features = torch.randn(batch, frames, backbone.input_size, device=device)
        self.lengths = torch.full((batch,), frames, device=device)
        # A step of training ends in CTC, whose projection only full fine-tuning trains.
        self.projection = torch.nn.Linear(backbone.width, TOKENS).to(device)
        self.projection.requires_grad_(variant.method == "full")
        self.tokens = torch.randint(
            1, TOKENS, (batch, max(1, round(TOKENS_A_SECOND * seconds))), device=device
        )
        self._optimizer: torch.optim.Optimizer | None = None
        # A frozen backbone without dropout, as ours by default, for PEFT's LoRA too.
        self._rests = variant.method == "lora"
        self.encoder.eval()

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What the encoder makes of the batch: (b, t, d) and lengths (b)."""
        out, lengths, *_ = self._chosen(self.choice, self.features, self.lengths)
        return (out[0] if isinstance(out, tuple) else out), lengths

    @torch.inference_mode()
    def decode(self) -> None:
        """The encoder's part of decoding."""
        self.forward()

    def step(self) -> None:
        """Forward, CTC, backward, clipping, and AdamW, as `espnet-hra train` has them.

        Whatever the variant, clipping looks at all parameters and AdamW at those that
        have a gradient.
        """
        everything = [*self.encoder.parameters(), *self.projection.parameters()]
        if self._optimizer is None:
            self.encoder.train()
            # Of all variants: none is to gain by what it leaves out.
            freeze_statistics(self.encoder, True)
            if self._rests:
                for module in self.encoder.modules():
                    if isinstance(module, torch.nn.modules.dropout._DropoutNd):
                        module.eval()
            self._optimizer = torch.optim.AdamW(everything, lr=1e-5)
        out, lengths = self.forward()
        torch.nn.functional.ctc_loss(
            self.projection(out).log_softmax(-1).transpose(0, 1),  # [t, b, v]
            self.tokens,
            lengths,
            torch.full_like(lengths, self.tokens.size(1)),
            zero_infinity=True,
        ).backward()
        torch.nn.utils.clip_grad_norm_(everything, 5.0)
        with used_only([self._optimizer]):
            self._optimizer.step()
            self._optimizer.zero_grad()


def _shared(stock: torch.nn.Module) -> torch.nn.Module:
    """Modules of its own with the stock encoder's tensors."""
    tensors = [*stock.parameters(), *stock.buffers()]
    return copy.deepcopy(stock, memo={id(tensor): tensor for tensor in tensors})


# Each builder returns the encoder, what runs it with a choice of tasks, the parameters
# of one task, and the multiply-accumulates that it adds to a frame.


def _none(variant, backbone, stock, names):
    encoder = _shared(stock)
    return encoder, lambda _, *batch: encoder(*batch), 0, 0


def _full(variant, backbone, stock, names):
    encoder = copy.deepcopy(stock).requires_grad_(True)
    size = sum(p.numel() for p in encoder.parameters())
    return encoder, lambda _, *batch: encoder(*batch), size, 0


def _ours(variant, backbone, stock, names):
    cls: Any = type(stock)
    encoder = wrap_encoder(cls)(
        backbone.input_size,
        adapter=variant.method,
        adapter_conf=variant.conf,
        tasks=names,
        **backbone.conf,
    )
    result = encoder.load_state_dict(stock.state_dict(), strict=False, assign=True)
    assert all(key.startswith("adapter.") for key in result.missing_keys)
    encoder.to(next(stock.parameters()).device)
    with torch.no_grad():
        for name in names:  # as if trained: zeros might be faster
            encoder.adapter.heads.vector(name).normal_(std=0.01)

    def run(choice, *batch):
        with encoder.use_task(choice):
            return encoder(*batch)

    return encoder, run, encoder.adapter.heads.size, encoder.adapter.macs()


def _lora(variant, backbone, stock, names):
    peft = import_peft()
    if peft is None:
        raise ConfigError(
            "LoRA is measured with PEFT, which is not installed: "
            "pip install 'espnet-hra[lora]'"
        )
    config = peft.LoraConfig(
        r=variant.conf["rank"],
        lora_alpha=2 * variant.conf["rank"],
        target_modules=list(MATRICES),
        init_lora_weights=False,  # as if trained: zeros might be faster
    )
    encoder = copy.deepcopy(stock) if variant.merged else _shared(stock)
    model = peft.get_peft_model(encoder, config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    model.set_adapter(names[0])
    size = sum(p.numel() for n, p in model.named_parameters() if f".{names[0]}." in n)
    if variant.merged:
        merged = model.merge_and_unload()
        return merged, lambda _, *batch: merged(*batch), size, 0

    def run(choice, *batch):
        mixed = {} if isinstance(choice, str) else {"adapter_names": choice}
        return model(*batch, **mixed)

    return model, run, size, size
