"""The registry: everything that is timed beside the dense layer, one file a family."""

from benchmarks.contenders import (
    dense,
    einsum,
    fastkron,
    linear_operator,
    lycoris_lokr,
    peft_lokr,
    phm,
    tensorly_torch,
    weit,
)
from benchmarks.contenders.base import Contender
from benchmarks.contenders.dense import DENSE
from benchmarks.contenders.weit import AUTO

OURS = (*weit.CONTENDERS, *dense.CONTENDERS)
PEERS = tuple(
    contender
    for family in (fastkron, tensorly_torch, peft_lokr, lycoris_lokr, phm, einsum, linear_operator)
    for contender in family.CONTENDERS
)
CONTENDERS = (DENSE, *OURS, *PEERS)

__all__ = ["AUTO", "CONTENDERS", "DENSE", "OURS", "PEERS", "Contender"]
