"""What stays frozen beside the parameters: statistics, dropout, counters of updates."""

import torch

#: All that torch calls dropout, of single values or whole channels.
_Dropout = torch.nn.modules.dropout._DropoutNd

#: Attributes of ESPnet's HuBERT and wav2vec encoders: for so many updates, all layers
#: run without gradients.
_SCHEDULES = ("freeze_encoder_updates", "freeze_finetune_updates")


def learn_at_once(encoder: torch.nn.Module) -> None:
    """Take back a schedule by which the encoder's layers begin to learn later.

    They never learn here, and what follows them could not either: without gradients
    the adapter would stand still for as long, or the training fail.
    """
    for name in _SCHEDULES:
        if hasattr(encoder, name):
            setattr(encoder, name, 0)


def freeze_statistics(
    module: torch.nn.Module, mode: bool, except_under: str | None = None
) -> None:
    """Keep BatchNorm in evaluation mode: freezing its parameters is not enough.

    Args:
        module: Whose BatchNorm layers.
        mode: The training mode that was just set; nothing to do if it is False.
        except_under: Name of a child that is left alone.
    """
    if mode:
        _evaluate(module, torch.nn.modules.batchnorm._NormBase, except_under)


def freeze_dropout(
    module: torch.nn.Module, mode: bool, except_under: str | None = None
) -> None:
    """Keep dropout out of a frozen module, which cannot overfit. Arguments as above."""
    if mode:
        _evaluate(module, _Dropout, except_under)


def _evaluate(
    module: torch.nn.Module, kind: type[torch.nn.Module], except_under: str | None
) -> None:
    for name, child in module.named_modules():
        if isinstance(child, kind) and name.partition(".")[0] != except_under:
            child.eval()
