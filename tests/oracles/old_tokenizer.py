"""What a transformers of the 4.x line makes of a tokenizer folder. Runs in its own environment, without torch."""

import json
import sys

import transformers

folder, asked = sys.argv[1], json.load(sys.stdin)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
ids = [tokenizer(text)["input_ids"] for text in asked["texts"]]
json.dump(
    {
        "version": transformers.__version__,
        "ids": ids,
        "text": [tokenizer.decode(one) for one in ids],
        "eos": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
        "length": tokenizer.model_max_length,
        "chat": tokenizer.apply_chat_template(asked["messages"], add_generation_prompt=True),
    },
    sys.stdout,
)
