"""Targets of several sizes, each trained from several starts: who is ahead, after how much work."""

from weit.compare.config import CompareConfig
from weit.compare.run import Comparison, compare

__all__ = ["CompareConfig", "Comparison", "compare"]
