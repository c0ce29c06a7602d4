"""The adapter against the method's equations, written out once more in NumPy."""

import numpy as np
import pytest
import safetensors.numpy
import torch
from espnet2.legacy.nets.pytorch_backend.nets_utils import make_pad_mask
from small_encoders import (
    CONTROLLERS,
    HEADS,
    KINDS,
    C,
    F,
    adapted_encoder,
    as_if_trained,
    batch,
    stock_encoder,
)


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def relu(x):
    return np.maximum(x, 0.0)


def layer_norm(x, p):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * p["norm.weight"] + p["norm.bias"]


def next_state(kind, p, x, h, layer):
    """h_l from x_l and h_{l-1}; the light GRU has an update gate only."""
    z = p["W"] @ x + (p["b"][layer] if p["b"].ndim == 2 else p["b"])
    if kind == "none":
        return relu(z)
    if kind == "indrnn":
        return relu(z + p["u"] * h)
    if kind == "rnn":
        return relu(z + p["U"] @ h)
    if kind == "gated":  # a light GRU that never has a state before
        return (1.0 - sigmoid(z[: len(h)])) * relu(z[len(h) :])
    z = z + p["U"] @ h
    gate, candidate = sigmoid(z[: len(h)]), relu(z[len(h) :])
    return gate * h + (1.0 - gate) * candidate


def head_output(kind, p, h):
    if kind == "linear":
        return p["V"] @ h + p["v"]
    if kind == "low_rank":
        return p["B"] @ (p["A"] @ h) + p["v"]
    return p["V2"] @ relu(p["V1"] @ h + p["v1"]) + p["v2"]


def values(xs):
    """What a layer takes or returns, without the positional embedding."""
    return (xs[0] if isinstance(xs, tuple) else xs).double().numpy()


def reference(stock, xs, lens, controller, p, head, heads, c, conf):
    """The stock encoder layer by layer, frame by frame between the layers."""
    masks = ~make_pad_mask(lens)[:, None, :]
    xs, masks = stock.embed(xs, masks)
    state = None
    norm = conf.get("input_norm") != "none"
    for index, layer in enumerate(stock.encoders):
        read = values(xs)
        xs, masks = layer(xs, masks)
        x = values(xs)
        if conf.get("reads") != "input":
            read = x
        size, frames, _ = x.shape
        if state is None:
            state = np.zeros((size, frames, c))
        y = np.empty_like(x)
        for b in range(size):
            for t in range(frames):
                seen = layer_norm(read[b, t], p) if norm else read[b, t]
                state[b, t] = next_state(controller, p, seen, state[b, t], index)
                change = head_output(head, heads[b], state[b, t])
                if conf.get("shared_head"):
                    each = f".{index}" if conf["shared_head"] == "layer" else ""
                    change += p[f"shared_head{each}.weight"] @ state[b, t]
                    change += p[f"shared_head{each}.bias"]
                y[b, t] = x[b, t] + change * p.get("scale", [1.0] * 99)[index]
        y = torch.from_numpy(y).float()
        xs = (y, *xs[1:]) if isinstance(xs, tuple) else y
    return stock.after_norm(xs[0] if isinstance(xs, tuple) else xs)


OPTIONS = {
    "no_norm": {"input_norm": "none"},
    "layer_bias": {"layer_bias": True},
    "scaled_layers": {"output_scale": "layer"},
    "scaled_channels": {"output_scale": "channel"},
    "reads_input": {"reads": "input"},
    "shared_head": {"shared_head": True, "output_scale": "layer"},
    "shared_heads": {"shared_head": "layer"},
    "shared_rank": {"shared_rank": 3},
}


def share_rank(stock, p, rank):
    """Add the change of rank `rank` that all tasks share to an encoder's weights.

    Its parameters are one vector: for each linear module in order, A and then B.
    """
    values, start = p.pop("shared.all"), 0
    for layer in stock.encoders:
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                outputs, inputs = module.weight.shape
                middle = start + rank * inputs
                end = middle + outputs * rank
                a = values[start:middle].reshape(rank, inputs)
                b = values[middle:end].reshape(outputs, rank)
                module.weight += torch.from_numpy(2 * b @ a).to(module.weight)
                start = end
    assert start == values.size


@pytest.mark.parametrize(
    "kind, conf",
    [*((kind, {}) for kind in KINDS), *(("conformer", c) for c in OPTIONS.values())],
    ids=[*KINDS, *OPTIONS],
)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("controller", CONTROLLERS)
def test_the_encoder_computes_the_method(kind, controller, head, conf, tmp_path):
    encoder = as_if_trained(
        adapted_encoder(kind, ["a", "b"], controller=controller, head=head, **conf)
    )
    p = {
        key.removeprefix("adapter.").removeprefix("controller."): value.double().numpy()
        for key, value in encoder.state_dict().items()
        if key.startswith("adapter.") and ".heads." not in key
    }
    formula = encoder.adapter.formula()
    assert formula["shared"] == sum(value.size for value in p.values())
    assert ("norm.weight" in p) == (conf.get("input_norm") != "none")
    assert ("U" in p) == (controller in ("rnn", "ligru"))
    tensors = {}
    for name in ("a", "b"):
        encoder.save_task(name, tmp_path / name)
        loaded = safetensors.numpy.load_file(tmp_path / name)
        tensors[name] = {k: v.astype(np.float64) for k, v in loaded.items()}
    shapes = {key: value.shape for key, value in tensors["a"].items()}
    assert (
        shapes
        == {
            "linear": {"V": (16, C), "v": (16,)},
            "ffn": {"V1": (F, C), "v1": (F,), "V2": (16, F), "v2": (16,)},
            "low_rank": {"A": (F, C), "B": (16, F), "v": (16,)},
        }[head]
    )
    xs, lens = batch(3, 36)
    names = ["a", "b", "a"]
    heads = [tensors[name] for name in names]
    with torch.no_grad():
        stock = stock_encoder(kind)
        plain = stock(xs, lens)[0].numpy()
        if conf.get("shared_rank"):
            share_rank(stock, p, conf["shared_rank"])
        expected = reference(
            stock, xs, lens, controller, p, head, heads, C, conf
        ).numpy()
        with encoder.use_task(names):
            found = encoder(xs, lens)[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(found - plain).max() > 0.1  # the adapter does something
