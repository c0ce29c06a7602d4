"""Small encoders for the tests: an ESPnet encoder, and the same one with an adapter."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from espnet2.asr.encoder.branchformer_encoder import BranchformerEncoder
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder
from espnet2.asr.encoder.transformer_encoder import TransformerEncoder
from torch.utils.checkpoint import checkpoint

from espnet_hra.encoder.adapted import AdaptedEncoder, wrap_encoder

DIM, WIDTH, LAYERS = 20, 16, 3
C, F = 6, 5  # controller_size, head_size
RANK = 2

CLASSES = {
    "conformer": ConformerEncoder,
    "transformer": TransformerEncoder,
    "branchformer": BranchformerEncoder,
    "e_branchformer": EBranchformerEncoder,
}
KINDS = tuple(CLASSES)
CONTROLLERS = ("indrnn", "rnn", "ligru", "none", "gated")
HEADS = ("linear", "ffn", "low_rank")

_CGMLP = {"cgmlp_linear_units": 24, "cgmlp_conv_kernel": 3, "rel_pos_type": "latest"}
CONFS: dict[str, dict[str, Any]] = {
    "conformer": {
        "linear_units": 24,
        "cnn_module_kernel": 3,
        "macaron_style": True,
        "rel_pos_type": "latest",
    },
    "transformer": {"linear_units": 24},
    "branchformer": {**_CGMLP},
    "e_branchformer": {**_CGMLP, "use_ffn": True, "linear_units": 24},
}


#: A small configuration of every method that is built.
METHOD_CONFS: dict[str, dict[str, Any]] = {
    "hra": {"controller_size": C, "head_size": F},
    "residual": {"rank": RANK},
    "lora": {"rank": RANK, "alpha": 3},
    "lily": {"rank": RANK, "stride": 2, "experts": 3},
    "road": {"group_size": 4},
    "prompt": {"prompt_size": 3},
    "bitfit": {},
    "full": {},
    "none": {},
}


def conf_of(kind: str, dropout: float = 0.0, **changes: Any) -> dict[str, Any]:
    """Configuration of a small encoder."""
    return {
        "output_size": WIDTH,
        "attention_heads": 2,
        "num_blocks": LAYERS,
        "dropout_rate": dropout,
        "positional_dropout_rate": dropout,
        "attention_dropout_rate": dropout,
        **CONFS[kind],
        **changes,
    }


def randomise_statistics(module: torch.nn.Module) -> None:
    """Give BatchNorm other statistics than the initial ones."""
    for name, buffer in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)


def stock_encoder(kind: str, seed: int = 1, **changes: Any) -> torch.nn.Module:
    """ESPnet's own encoder."""
    torch.manual_seed(seed)
    encoder = CLASSES[kind](DIM, **conf_of(kind, **changes))
    randomise_statistics(encoder)
    return encoder.eval()


def adapt(
    stock: torch.nn.Module,
    conf: dict[str, Any],
    tasks: Any = (),
    dim: int = DIM,
    adapter: str = "hra",
    **adapter_conf: Any,
) -> AdaptedEncoder:
    """The adapted counterpart, with the stock encoder's checkpoint loaded."""
    if adapter in ("lora", "road"):  # PEFT is an extra
        pytest.importorskip("peft")
    adapter_conf = {**METHOD_CONFS.get(adapter, {}), **adapter_conf}
    torch.manual_seed(7)
    encoder = wrap_encoder(type(stock))(
        dim, adapter=adapter, adapter_conf=adapter_conf, tasks=tasks, **conf
    )
    result = encoder.load_state_dict(stock.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all(key.startswith("adapter.") for key in result.missing_keys)
    return encoder.eval()


def adapted_encoder(
    kind: str,
    tasks: Any = (),
    seed: int = 1,
    dropout: float = 0.0,
    changes: Mapping[str, Any] | None = None,
    **adapter_conf: Any,
) -> AdaptedEncoder:
    """A small adapted encoder; if it is given dropout, then also while training.

    Args:
        kind: One of :data:`KINDS`.
        tasks: Their names.
        seed: Of the backbone's weights.
        dropout: Of the backbone.
        changes: Keys of the encoder's configuration.
        **adapter_conf: Keys of the adapter's, and `adapter` for another than HRA.
    """
    conf = conf_of(kind, dropout, **(changes or {}))
    stock = stock_encoder(kind, seed, dropout=dropout, **(changes or {}))
    adapter_conf.setdefault("backbone_dropout", dropout > 0)
    return adapt(stock, conf, tasks, **adapter_conf)


def as_if_trained(
    encoder: AdaptedEncoder, seed: int = 3, scale: float = 0.3
) -> AdaptedEncoder:
    """Move everything that learns away from its initial values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in encoder.adapter.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator))
    return encoder


def parallel(work: Callable[[Any], None], items: Iterable[Any]) -> None:
    """Do this work in threads, one for each item; errors of a thread are raised."""
    items = list(items)
    with ThreadPoolExecutor(len(items)) as pool:
        list(pool.map(work, items))


def batch(size: int = 3, frames: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of different lengths."""
    generator = torch.Generator().manual_seed(size)
    xs = torch.randn(size, frames, DIM, generator=generator)
    return xs, torch.tensor([frames, *([frames - 11] * (size - 1))])


def loss_of(output: torch.Tensor) -> torch.Tensor:
    """A loss with gradients of ordinary size; sums over a LayerNorm have none."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(output.size(-1), generator=generator)
    return (output.float() @ weights).pow(2).mean()


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the gradients that are not None."""
    return {
        name: p.grad.clone()
        for name, p in module.named_parameters()
        if p.grad is not None
    }


def leaves(output: Any) -> list[Any]:
    """Everything in nested tuples and lists, in order."""
    if isinstance(output, (tuple, list)):
        return [leaf for item in output for leaf in leaves(item)]
    return [output]


def same_bits(one: Any, other: Any) -> bool:
    """Whether two nested outputs are equal bit for bit."""
    one, other = leaves(one), leaves(other)
    return len(one) == len(other) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one, other)
    )


# ------------------------------------------------------- activation checkpointing


class CheckpointingEncoder(ConformerEncoder):
    """A Conformer that checkpoints each of its layers itself."""

    reentrant = False

    def forward(self, xs_pad, ilens):
        masks = torch.ones(xs_pad.size(0), 1, xs_pad.size(1), dtype=torch.bool)
        xs, masks = self.embed(xs_pad, masks)
        for layer in self.encoders:
            xs, masks = checkpoint(layer, xs, masks, use_reentrant=self.reentrant)
        return self.after_norm(xs[0]), masks.sum(-1), None


def same_gradients(found, expected, tolerance=1e-5):
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        difference = (found[name] - gradient).norm()
        assert difference <= tolerance * gradient.norm(), name


def gradients_of(encoder, forward, within=False, names=("b", "a")):
    """Gradients, with backward inside the block that chose the task or after it."""
    encoder.zero_grad()
    encoder.set_task("a")
    xs, lens = batch(2)
    torch.manual_seed(4)
    with encoder.use_task(names):
        loss = loss_of(forward(encoder, xs, lens))
        if within:
            loss.backward()
    if not within:
        loss.backward()
    return gradients(encoder)


def plain(encoder, xs, lens):
    return encoder(xs, lens)[0]


def whole(encoder, xs, lens):
    return checkpoint(lambda x: encoder(x, lens)[0], xs, use_reentrant=False)
