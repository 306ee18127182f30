"""LoRA training of the chat weights with PyTorch and PEFT, which are the extra `finetune`."""

import os

# Read when the libraries are imported: no bar for every tensor of the GGUF file, and no look at a
# model hub, since everything is in that file.
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
