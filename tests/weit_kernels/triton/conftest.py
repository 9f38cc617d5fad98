"""Without a GPU the kernels run in Triton's interpreter; it must be chosen before they are defined."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
