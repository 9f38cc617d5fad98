"""Models that are trained here: built by name, kept in folders."""

from weit.models.create import create_model
from weit.models.dit import DiT
from weit.models.folder import load_model, save_model
from weit.models.policy import MLPPolicy, TransformerPolicy
from weit.models.vit import VisionTransformer

__all__ = ["DiT", "MLPPolicy", "TransformerPolicy", "VisionTransformer", "create_model", "load_model", "save_model"]
