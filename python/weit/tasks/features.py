"""How far generated images are from real ones, in the features of a small classifier that is trained here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from weit.engine.seeds import own_randomness
from weit.files import atomic_write
from weit_kernels.timings import cache_folder

_FEATURES = 16  # few enough that some hundred images give their covariance
_STEPS, _BATCH, _LR = 400, 128, 4e-3  # 99 % on digits, 87 % on Fashion-MNIST
_VERSION = 1  # of how a cached file comes about; goes into its name


class Moments(NamedTuple):
    """Mean ``(d,)`` and covariance ``(d, d)`` of features, in float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Of features ``(n, d)``."""
        return cls(features.double().mean(0), features.double().T.cov())


def frechet_distance(a: Moments, b: Moments) -> float:
    """``|μ_a - μ_b|² + tr(C_a + C_b - 2 (C_a C_b)^½)``, the Wasserstein distance of two Gaussians, squared.

    Source: Dowson & Landau 1982, "The Fréchet distance between multivariate normal distributions"; for images, Heusel et
    al. 2017, "GANs trained by a two time-scale update rule converge to a local Nash equilibrium".
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    # C_a C_b is similar to this symmetric matrix, so the root has the same trace.
    overlap = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return max(0.0, float(distance))


class Classifier(nn.Module):
    """A small ConvNet; images ``(B, C, H, W)`` → logits ``(B, classes)``.

    ``features`` gives what lies before the last layer, ``(B, 16)``, each with mean 0 and variance 1 over what it was
    trained on, so that distances on different data are of one size.
    """

    def __init__(self, img_size: int, in_chans: int, num_classes: int) -> None:
        super().__init__()
        first = 2 if img_size >= 16 else 1
        side = -(-img_size // (4 * first))
        self.body = nn.Sequential(
            nn.Conv2d(in_chans, 16, 3, first, 1),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(64 * side**2, _FEATURES),
            nn.BatchNorm1d(_FEATURES, affine=False),
        )
        self.head = nn.Linear(_FEATURES, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))

    def features(self, images: Tensor) -> Tensor:
        self.eval()
        with torch.no_grad():
            return torch.cat([self.body(part) for part in images.split(512)])


class Judge:
    """A trained classifier, and the moments of its features over real images.

    It is trained once for each data set, on the CPU, and kept in the user's cache folder. Processes that are first at
    the same time train the same one, and the file appears whole.

    Args:
        train: images and labels to train on.
        real: name → images to compare with.
        model_args: arguments of ``Classifier``.
        folder: where to keep it; by default ``$XDG_CACHE_HOME/weit``.
    """

    def __init__(
        self,
        train: TensorDataset,
        real: Mapping[str, TensorDataset],
        model_args: Mapping[str, int],
        folder: Path | None = None,
    ) -> None:
        path = (folder or cache_folder()) / f"classifier-{_fingerprint(train, *real.values())}.safetensors"
        with torch.inference_mode(False), torch.enable_grad(), own_randomness(0):
            self._classifier = Classifier(**model_args)
            self._moments = {
                name: Moments(torch.zeros(_FEATURES).double(), torch.zeros(_FEATURES, _FEATURES).double())
                for name in real
            }
            if not self._read(path):
                _fit(self._classifier, *train.tensors)
                for name, images in real.items():
                    self._moments[name] = Moments.of(self._classifier.features(images.tensors[0]))
                with suppress(OSError):  # a folder that cannot be written costs the next process some seconds, no more
                    atomic_write(path, safetensors.torch.save(self._state()))

    def distance(self, images: Tensor, name: str) -> float:
        """The Fréchet distance of ``images`` from the real ones of that name."""
        return frechet_distance(Moments.of(self._classifier.features(images)), self._moments[name])

    def accuracy(self, images: TensorDataset) -> float:
        """Of the classifier; how far its features may be trusted."""
        pixels, labels = images.tensors
        logits = self._classifier.head(self._classifier.features(pixels))
        return float((logits.argmax(-1) == labels).double().mean())

    def _state(self) -> dict[str, Tensor]:
        state = dict(self._classifier.state_dict())
        for name, moments in self._moments.items():
            state |= {f"{name}.mean": moments.mean, f"{name}.covariance": moments.covariance}
        return state

    def _read(self, path: Path) -> bool:
        """Whether ``path`` is there and holds what it should; a damaged file is as good as none."""
        try:
            found = safetensors.torch.load(path.read_bytes())
        except (OSError, SafetensorError):
            return False
        expected = self._state()
        if {k: (v.shape, v.dtype) for k, v in found.items()} != {k: (v.shape, v.dtype) for k, v in expected.items()}:
            return False
        if not all(tensor.isfinite().all() for tensor in found.values()):
            return False
        for name in self._moments:
            self._moments[name] = Moments(found.pop(f"{name}.mean"), found.pop(f"{name}.covariance"))
        self._classifier.load_state_dict(found)
        return True


def _fit(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """A loop of its own: the engine's has the devices and processes of the run that is being measured."""
    optimizer = torch.optim.AdamW(model.parameters(), _LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, _STEPS)
    model.train()
    for _ in range(_STEPS):
        index = torch.randint(len(images), (_BATCH,))
        optimizer.zero_grad()
        F.cross_entropy(model(images[index]), labels[index]).backward()
        optimizer.step()
        schedule.step()


def _fingerprint(*datasets: TensorDataset) -> str:
    digest = hashlib.sha256(f"{_VERSION} {_FEATURES} {_STEPS} {_BATCH} {_LR}".encode())
    for dataset in datasets:
        for tensor in dataset.tensors:
            digest.update(f"{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:16]
