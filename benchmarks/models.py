"""Whole models, dense and on a template bank, and one pre-training step of each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weit
from benchmarks.contenders.base import importable
from benchmarks.operands import WrongResult
from weit.models import create_model

MOST_ERROR = {torch.float32: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.1}  # of many layers
BANK = {"templates": 8}  # of shapes that kronify chooses from the layers' sizes


def why_not(name: str) -> str:
    """Why a model of ``weit.models`` cannot be built here; empty if it can."""
    return importable("timm", "timm") if name.startswith("timm:") else ""


def build(name: str, bank: dict[str, Any] | None, device: str, dtype: torch.dtype, **sizes: Any) -> nn.Module:
    """A fresh model, never downloaded; with ``bank`` its layers are Kron layers on one."""
    torch.manual_seed(0)
    model = create_model(name, **sizes)
    if bank is not None:
        weit.kronify(model, bank)
    return model.to(device, dtype).train()


def training_step(model: nn.Module, images: Tensor) -> Callable[[], None]:
    """Forward pass, cross-entropy, backward pass and AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def step() -> None:
        F.cross_entropy(model(images).float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def check(model: nn.Module, images: Tensor) -> None:
    """Compare the answers of a model on a bank with those of the same model, made dense; raises ``WrongResult``.

    In evaluation, where batch norms leave their statistics as they are.
    """
    dense = weit.materialize(copy.deepcopy(model)).eval()
    with torch.no_grad():
        expected, got = dense(images).double(), model.eval()(images).double()
    model.train()
    error = float((got - expected).norm() / expected.norm())
    if not error <= MOST_ERROR[images.dtype]:
        raise WrongResult(f"relative error {error:.1e} in a model's answers")


def numbers(model: nn.Module) -> int:
    """How many parameters a model has."""
    return sum(parameter.numel() for parameter in model.parameters())
