"""In OLMo's own environment: save a small model in parts, as two ranks of OLMo's FSDP training do.

    python olmo_save_parts.py FOLDER

FOLDER holds what olmo_save.py wrote; it gets model_and_optim/ with the same weights and an optimizer's state.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def rank(number: int, folder: Path, rendezvous: str) -> None:
    from olmo.checkpoint import save_fsdp_model_and_optim_state
    from olmo.config import TrainConfig
    from olmo.model import OLMo
    from torch.distributed.fsdp import FullyShardedDataParallel

    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=number, world_size=2)
    model = OLMo(TrainConfig.load(folder / "config.yaml").model)
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    wrapped = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=0.0, weight_decay=0.0)
    wrapped(torch.arange(8)[None]).logits.sum().backward()
    optimizer.step()
    save_fsdp_model_and_optim_state(folder, wrapped, optimizer)
    dist.destroy_process_group()


if __name__ == "__main__":
    where = Path(sys.argv[1])
    mp.spawn(rank, (where, str(where.resolve() / "rendezvous")), nprocs=2)
