"""Diffusion of images with diffusers' schedulers: noise is added, and taken away again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from weit.tasks.task import evaluating

STEPS = 1000
_SCHEDULE = {"num_train_timesteps": STEPS, "beta_schedule": "squaredcos_cap_v2"}

Item = tuple[tuple[Tensor, Tensor, Tensor], Tensor]


def scheduler(name: str) -> Any:
    """diffusers' scheduler ``name`` with the cosine schedule, which suits small images; it predicts the noise.

    Raises:
        RuntimeError: diffusers is not installed.

    Source: Ho et al. 2020, "Denoising diffusion probabilistic models"; Nichol & Dhariwal 2021, "Improved denoising
    diffusion probabilistic models", for the schedule.
    """
    try:
        import diffusers
    except ImportError as error:
        raise RuntimeError(f"image generation needs diffusers: pip install .[generation] ({error})") from error
    return getattr(diffusers, name)(**_SCHEDULE)


class Noisy(Dataset[Item]):
    """Images in noise, drawn anew each time: items ((noisy ``(C, H, W)``, time step, label), noise).

    Args:
        images: images ``(n, C, H, W)`` from -1 to 1, and labels ``(n,)``.
        any_label: what stands for any class.
        dropout: share of the items whose label is replaced by it, for classifier-free guidance.

    Raises:
        RuntimeError: diffusers is not installed.

    Source: Ho & Salimans 2022, "Classifier-free diffusion guidance" (arXiv 2207.12598); time steps spread over a batch,
    Kingma et al. 2021, "Variational diffusion models".
    """

    def __init__(self, images: TensorDataset, any_label: int, dropout: float = 0.1) -> None:
        self.images, self.any_label, self.dropout = images, any_label, dropout
        self._scheduler = scheduler("DDPMScheduler")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Item]:
        count = len(indices)
        timesteps = ((torch.randperm(count) + torch.rand(count)) / count * STEPS).long().clamp_(max=STEPS - 1)
        noisy, labels, noise = self._drawn(torch.tensor(indices), timesteps, None)
        labels = torch.where(torch.rand(count) < self.dropout, self.any_label, labels)
        return list(zip(zip(noisy, timesteps, labels, strict=True), noise, strict=True))

    def fixed(self, count: int, seed: int) -> Item:
        """One batch of ``count`` items that is always the same, with all labels and time steps at even distances."""
        timesteps = (torch.arange(count) * STEPS + STEPS // 2) // count
        generator = torch.Generator().manual_seed(seed)
        noisy, labels, noise = self._drawn(torch.arange(count) % len(self), timesteps, generator)
        return (noisy, timesteps, labels), noise

    def _drawn(
        self, index: Tensor, timesteps: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        images, labels = self.images[index]
        noise = torch.randn(images.shape, generator=generator)
        return self._scheduler.add_noise(images, noise, timesteps), labels, noise


def sample(
    model: nn.Module,
    labels: Tensor,
    shape: tuple[int, ...],
    *,
    steps: int = 20,
    guidance: float = 1.0,
    any_label: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """Images of the given classes by DDIM, always the same for the same arguments.

    Args:
        model: (noisy, time steps, labels) → noise; its mode is put back after.
        labels: int64 ``(n,)``.
        shape: of an image, ``(C, H, W)``.
        steps: of denoising, from 1 to 1,000.
        guidance: how far to go from the prediction for any class to that for the label; 1 for the latter alone.
        any_label: what stands for any class; needed with guidance.
        seed: of the noise that is started from.
        batch_size: images at a time; no image depends on it.

    Returns:
        ``(n, C, H, W)`` from -1 to 1, on the CPU.

    Raises:
        ValueError: ``steps`` out of range, or guidance without ``any_label``. RuntimeError: diffusers is not installed.

    Source: Song, Meng & Ermon 2021, "Denoising diffusion implicit models" (arXiv 2010.02502).
    """
    if not 1 <= steps <= STEPS:
        raise ValueError(f"steps must be from 1 to {STEPS}, got {steps!r}")
    if guidance != 1 and any_label is None:
        raise ValueError("any_label must be given with guidance, got None")
    ddim = scheduler("DDIMScheduler")
    ddim.set_timesteps(steps)
    noise = torch.randn(len(labels), *shape, generator=torch.Generator().manual_seed(seed))
    finished = []
    with evaluating(model) as device:
        for x, label in zip(noise.split(batch_size), labels.split(batch_size), strict=True):
            x, label = x.to(device), label.to(device)
            for t in ddim.timesteps:
                times = torch.full_like(label, int(t))
                predicted = model(x, times, label)
                if any_label is not None and guidance != 1:
                    unguided = model(x, times, torch.full_like(label, any_label))
                    predicted = unguided + guidance * (predicted - unguided)
                x = ddim.step(predicted, t, x).prev_sample
            finished.append(x.cpu())
    return torch.cat(finished).clamp(-1, 1)
