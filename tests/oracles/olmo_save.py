"""In OLMo's own environment: write a small model as OLMo's trainer does, and the logits it gives.

    python olmo_save.py FOLDER OPTIONS.json

FOLDER gets model.pt, config.yaml and logits.npz (ids [1, T], logits [1, T, V]).
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from olmo.config import ModelConfig, TrainConfig
from olmo.model import OLMo

folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
torch.manual_seed(1)
config = ModelConfig(**options)
model = OLMo(config).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.normal_(std=0.08)
ids = torch.arange(40)[None] * 31 % config.vocab_size
with torch.inference_mode():
    logits = model(ids).logits
folder.mkdir(parents=True, exist_ok=True)
torch.save(model.state_dict(), folder / "model.pt")
TrainConfig(model=config, run_name="small").save(folder / "config.yaml")
np.savez(folder / "logits.npz", ids=ids.numpy(), logits=logits.numpy())
