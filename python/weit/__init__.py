"""Layers, template banks and training on top of ``weit_kernels``."""

from weit import models
from weit.bank import BankSpec, Source, TemplateBank
from weit.convert import extract_bank, kronify, materialize
from weit.fitting import fit_scalers
from weit.initialize import initialize
from weit.nn import KronConv1d, KronConv2d, KronConv3d, KronFusedLinear, KronLinear
from weit.pretrain import PretrainConfig, pretrain
from weit_kernels import __version__

__all__ = [
    "BankSpec",
    "KronConv1d",
    "KronConv2d",
    "KronConv3d",
    "KronFusedLinear",
    "KronLinear",
    "PretrainConfig",
    "Source",
    "TemplateBank",
    "__version__",
    "extract_bank",
    "fit_scalers",
    "initialize",
    "kronify",
    "materialize",
    "models",
    "pretrain",
]
