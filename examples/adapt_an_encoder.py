#!/usr/bin/env python3
"""Adapt a frozen ESPnet encoder to two tasks, and see what changes and what does not.

    .venv/bin/python examples/adapt_an_encoder.py

It runs in seconds and fetches nothing. The encoder is a small random Conformer; yours
would be that of a trained model, with its checkpoint loaded as it is.
"""

import tempfile
from pathlib import Path

import torch
from espnet2.tasks.asr import encoder_choices

import espnet_hra


def main() -> None:
    """Wrap, train, compare, save, load."""
    espnet_hra.register()  # every encoder of ESPnet with "hra_" before its name
    torch.manual_seed(0)
    encoder = encoder_choices.get_class("hra_conformer")(
        input_size=80,
        output_size=64,
        num_blocks=4,
        adapter="hra",
        adapter_conf={"controller": "indrnn", "controller_size": 32, "head": "linear"},
        tasks=["fr_june", "it_carlo"],
    )
    features, lengths = torch.randn(4, 120, 80), torch.tensor([120, 120, 100, 80])
    wanted = torch.randn(64)  # what stands for a loss of yours, CTC for instance

    def outputs() -> dict[str | None, torch.Tensor]:
        encoder.eval()
        found = {}
        for task in (None, *encoder.tasks):
            with torch.no_grad(), encoder.use_task(task):
                found[task] = encoder(features, lengths)[0]
        return found

    before = outputs()
    print("a new task is the backbone:", torch.equal(before["fr_june"], before[None]))

    # The controller is frozen, so that no other task can change.
    encoder.adapter.regime = "new_task"
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.01, weight_decay=0.01)
    for step in range(30):
        encoder.train()
        with encoder.use_task("fr_june"):
            loss = (encoder(features, lengths)[0] - wanted).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (0, 29):
            print(f"step {step}: loss {loss.item():.3f}")

    after = outputs()
    for task in (None, "it_carlo", "fr_june"):
        same = torch.equal(after[task], before[task])
        print(
            f"{task or 'backbone'}: {'unchanged, bit for bit' if same else 'adapted'}"
        )

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fr_june.safetensors"
        encoder.save_task("fr_june", path)
        encoder.remove_task("fr_june")
        encoder.load_task(path)
        print(f"a file of {path.stat().st_size:,} bytes, loaded again:", end=" ")
        print(torch.equal(outputs()["fr_june"], after["fr_june"]))


if __name__ == "__main__":
    main()
