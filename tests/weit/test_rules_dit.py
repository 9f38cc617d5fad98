"""Diffusion transformers through the whole method: rules, masks, banks, first guesses and rivals."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

import weit
from tests.weit.rivals.models import snapshot, unchanged
from weit.masks import Elastic
from weit.models.dit import DiT
from weit.nn import KronFusedLinear
from weit.rivals import RIVALS
from weit.rivals.axes import stream_sizes, width_axes
from weit.rules import find_rules, weit_dit

SPEC = {"templates": 4, "template_shape": (8, 8)}
ROLES = {"q", "k", "v", "o", "fc1", "fc2", "time", *weit_dit.MODULATION, *weit_dit.LAST_MODULATION}
SIZES = [(16, 1), (48, 2), (32, 3), (16, 3)]


def own(width=32, depth=2):
    return DiT(img_size=4, num_classes=4, width=width, depth=depth, head_dim=8)


def diffusers_dit(width=32, depth=2):
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=width // 8,
        attention_head_dim=8,
        in_channels=1,
        num_layers=depth,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=4,
    )
    for block in model.transformer_blocks:
        block.norm1.emb.class_embedder.dropout_prob = 0  # else every block drops labels of its own
    return model


FAMILIES = {"weit": own, "diffusers": diffusers_dit}


def drawn(model):
    """Every number anew, in double precision, so that none is the zero that modulations start with."""
    generator = torch.Generator().manual_seed(sum(parameter.numel() for parameter in model.parameters()))
    model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return model


def noise(model, count=6):
    images = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(3)).double()
    output = model(images, torch.arange(count) * 100, torch.arange(count) % 5)
    return getattr(output, "sample", output)


class Noise(Dataset):
    """Items of several inputs: it is to be learned that an image is its own noise, in a measure that goes with time."""

    def __init__(self, count=64):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(count, 1, 4, 4, generator=generator)
        self.times = torch.randint(1000, (count,), generator=generator)

    def __len__(self):
        return len(self.times)

    def __getitem__(self, i):
        return (self.images[i], self.times[i], torch.tensor(i % 4)), self.images[i] * self.times[i] / 1000


def denoising(model):
    data = Noise()
    with torch.no_grad():
        items = [data[i] for i in range(len(data))]
        inputs = [torch.stack(parts) for parts in zip(*(inputs for inputs, _ in items), strict=True)]
        return float(F.mse_loss(model.eval()(*inputs), torch.stack([target for _, target in items])))


@pytest.fixture(scope="module")
def bank():
    torch.manual_seed(0)
    config = weit.PretrainConfig(steps=40, batch_size=32, lr=8e-3, spec=SPEC)
    return weit.pretrain(own(), Noise(), config, smaller=[own(16, 1)], loss=F.mse_loss, progress=False)


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_every_layer_of_the_blocks_has_its_role(make):
    model = make()
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    bank = weit.kronify(model, SPEC)
    assert set(bank.roles) == ROLES
    assert [len(fused.parts) for fused in model.modules() if isinstance(fused, KronFusedLinear)] == [6, 6, 2]
    expected = noise(drawn(model))
    torch.testing.assert_close(noise(weit.materialize(model)), expected)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes


def test_own_dit_is_not_taken_for_a_vit():
    assert find_rules(own()) is weit_dit.FAMILIES[0].rules
    assert find_rules(nn.ModuleDict({"denoiser": own()})) is weit_dit.FAMILIES[0].rules


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_a_masked_size_is_a_smaller_model_of_the_cut_parameters(make):
    big, small = make(), make(16, 1)
    shared = weit.kronify(big, SPEC)
    weit.kronify(small, shared)
    drawn(small), drawn(big)
    model = Elastic(big, [small])
    gain = {"scalers": (2, 2**0.5), "weight": (1, 2**0.5)}
    dense = {f"{path}.weight" for path, m in small.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            if name.endswith("templates"):
                continue
            whole = big.get_parameter(name)
            parameter.copy_(whole[tuple(map(slice, parameter.shape))])
            if (name in dense or name.endswith("scalers")) and parameter.dim() > 1:
                axis, by = gain[name.rpartition(".")[2]]
                parameter.mul_(by if whole.shape[axis] > parameter.shape[axis] else 1)
    torch.testing.assert_close(noise(lambda *inputs: model(*inputs, size=1)), noise(small))
    assert not torch.allclose(noise(small), noise(big))


@pytest.mark.parametrize("size", SIZES)
def test_targets_of_all_sizes_start_ahead(bank, size):
    target = own(*size)
    fresh = denoising(target)
    shapes = {name: tensor.shape for name, tensor in target.state_dict().items()}
    weit.initialize(target, bank, Noise(), steps=15, batch_size=32, loss=F.mse_loss)
    assert {name: tensor.shape for name, tensor in target.state_dict().items()} == shapes
    assert denoising(target) < 0.5 * fresh


def test_features_of_every_stream_are_told():
    model = own(16)
    axes, state = width_axes(model), model.state_dict()
    assert stream_sizes(state, axes) == {"residual": 16, "query": 16, "key": 16, "value": 16, "hidden": 64}
    assert axes["blocks.0.modulation.weight"] == (("residual",) * 6, ("residual",))
    assert axes["time_embed.fc1.weight"] == ((), ("residual",))
    assert axes["head.weight"] == ((), ("residual",))


@pytest.mark.parametrize(
    ("rival", "source", "target"),
    [
        ("scratch", (32, 2), (16, 1)),
        ("weight_selection", (32, 2), (16, 1)),
        ("bert2bert", (16, 1), (32, 2)),
        ("ligo", (16, 1), (32, 2)),
        ("mimetic", (16, 1), (32, 2)),
        ("tleg", (32, 2), (32, 3)),
        ("distillation", (32, 2), (16, 1)),
    ],
)
def test_rivals_start_a_dit(rival, source, target):
    learns = {"ligo", "tleg", "distillation"}
    settings = {"data": Noise(), "steps": 2, "batch_size": 16, "loss": F.mse_loss} if rival in learns else {}
    if rival in ("tleg", "distillation"):
        settings["distance"] = F.mse_loss
    torch.manual_seed(0)
    trained, model = (drawn(own(*size)).float() for size in (source, target))
    before = snapshot(model)
    assert RIVALS[rival](model, trained, seed=0, **settings) is model
    assert unchanged(model, before) == (rival == "scratch")
    assert noise(model.double()).isfinite().all()


def test_growth_keeps_what_a_dit_computes():
    small, large = drawn(own(16, 2)), drawn(own(32, 2))
    RIVALS["bert2bert"](large, small)
    torch.testing.assert_close(noise(large), noise(small))


def test_selection_takes_the_same_features_of_every_part_of_a_modulation():
    large, small = drawn(own(32, 2)), drawn(own(16, 2))
    RIVALS["weight_selection"](small, large)
    theirs = torch.cat([part[::2] for part in large.blocks[1].modulation.weight.split(32)])
    assert torch.equal(small.blocks[1].modulation.weight, theirs[:, ::2])


@pytest.mark.parametrize(
    ("rival", "source", "target", "message"),
    [
        ("weight_selection", (16, 2), (32, 2), "source must be at least as large"),
        ("bert2bert", (32, 2), (16, 2), "source must be no larger"),
        ("ligo", (32, 2), (16, 2), "source must be no wider"),
        ("tleg", (16, 2), (32, 2), "differ in depth alone"),
    ],
)
def test_rivals_refuse_what_they_cannot_start(rival, source, target, message):
    trained, model = own(*source), own(*target)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        RIVALS[rival](model, trained)
    assert unchanged(model, before)
