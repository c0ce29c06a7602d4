"""Two processes that share a batch of mixed tasks learn what one process learns."""

import socket

import torch
import torch.multiprocessing
from small_encoders import adapted_encoder, as_if_trained, batch, loss_of

TASKS = ["a", "b", "c", "unused"]
STEPS = [  # tasks of rank 0 and of rank 1
    (["a", "b"], ["b", "b"]),
    (["a", "a"], ["c", "a"]),
    (["b", "b"], ["b", "b"]),
]


class Model(torch.nn.Module):
    """An encoder under a loss; tasks come with the batch."""

    def __init__(self):
        super().__init__()
        encoder = adapted_encoder("conformer", TASKS, head="ffn")
        self.encoder = as_if_trained(encoder, scale=0.1)

    def forward(self, xs, lens, names):
        with self.encoder.use_task(names):
            return loss_of(self.encoder(xs, lens)[0])


def train(model, part):
    """Three steps on a part of each batch; which heads had a gradient in each."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    xs, _ = batch(4)
    lens = torch.full((4,), xs.size(1))
    used = []
    for names in STEPS:
        optimizer.zero_grad()
        names = [*names[0], *names[1]]
        model(xs[part], lens[part], names[part]).backward()
        used.append(
            sorted(
                name.split(".")[-1]
                for name, p in model.named_parameters()
                if ".heads." in name and p.grad is not None
            )
        )
        optimizer.step()
    return used


def work(rank, port, folder):
    """One of two processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    model = Model()
    parallel = torch.nn.parallel.DistributedDataParallel(
        model, find_unused_parameters=True
    )
    used = train(parallel, slice(2 * rank, 2 * rank + 2))
    torch.save((used, model.state_dict()), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_learn_what_one_does(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, str(tmp_path)), nprocs=2)
    model = Model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    used = train(model, slice(0, 4))
    assert used == [["a", "b"], ["a", "c"], ["b"]]
    for rank in (0, 1):
        used_there, state = torch.load(tmp_path / f"{rank}.pt")
        assert used_there == used
        for key, value in model.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-5)
            learns = ".adapter." in key and not key.endswith("unused")
            assert torch.equal(state[key], before[key]) != learns, key
