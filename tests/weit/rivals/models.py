"""Small models of several families, in double precision and with every number drawn, so that equal means equal."""

import pytest
import torch

from weit.models import VisionTransformer, create_model


def weit_vit(width=16, depth=2, **sizes):
    arguments = {"img_size": 4, "num_classes": 4, "head_dim": 8, **sizes}
    return _drawn(VisionTransformer(width=width, depth=depth, **arguments))


def timm_vit(width=16, depth=2):
    pytest.importorskip("timm")
    sizes = {"embed_dim": width, "depth": depth, "num_heads": width // 8}
    return _drawn(create_model("timm:deit_tiny_patch16_224", img_size=32, in_chans=1, num_classes=4, **sizes))


def timm_gated_vit(width=16, depth=2):
    pytest.importorskip("timm")
    from timm.layers import SwiGLUPacked
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"embed_dim": width, "depth": depth, "num_heads": width // 8, "mlp_layer": SwiGLUPacked}
    return _drawn(VisionTransformer(img_size=32, patch_size=16, in_chans=1, num_classes=4, **sizes))


def hf_vit(width=16, depth=2):
    pytest.importorskip("transformers")
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": width // 8}
    sizes |= {"intermediate_size": 2 * width, "patch_size": 16}
    return _drawn(create_model("hf:vit", img_size=32, in_chans=1, num_classes=4, **sizes))


def timm_resnet(width=16, depth=2):
    pytest.importorskip("timm")
    sizes = {"channels": (width, *[2 * width] * 3), "layers": (depth, depth, 1, 1)}
    from timm.models.resnet import BasicBlock, ResNet

    return _drawn(ResNet(BasicBlock, in_chans=1, num_classes=4, **sizes))


def images(side=4, count=3):
    return torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def _drawn(model):
    generator = torch.Generator().manual_seed(sum(parameter.numel() for parameter in model.parameters()))
    model.double().eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                spread = 0.3 * torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.copy_(0.8 + spread if tensor.dim() == 1 else spread - 0.15)
    return model
