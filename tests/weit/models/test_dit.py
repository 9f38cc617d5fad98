import pytest
import torch
from torch import nn

from weit.models.dit import DiT, DiTBlock, _positions


def tiny(width=32, depth=2, *, drawn=True, **arguments):
    """A DiT in double precision; ``drawn``: no number is the zero that it starts with."""
    torch.manual_seed(width + depth)
    model = DiT(**{"img_size": 8, "num_classes": 4, "width": width, "depth": depth, **arguments}).double()
    with torch.no_grad():
        for parameter in model.parameters() if drawn else ():
            parameter.normal_(std=0.2)
    return model


def batch(count=3, chans=1, classes=4):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, chans, 8, 8, dtype=torch.float64, generator=generator)
    timesteps = torch.randint(1000, (count,), generator=generator)
    return images, timesteps, torch.arange(count) % (classes + 1)


@pytest.mark.parametrize(("chans", "patch"), [(1, 2), (3, 4)])
def test_noise_has_the_shape_of_the_images(chans, patch):
    model = tiny(in_chans=chans, patch_size=patch)
    assert model(*batch(5, chans)).shape == (5, chans, 8, 8)
    assert model(*batch(0, chans)).shape == (0, chans, 8, 8)
    assert model(*model.example_inputs()).shape == (1, chans, 8, 8)


def test_blocks_start_as_the_identity_and_the_noise_as_zero():
    model = tiny(drawn=False)
    x, condition = torch.randn(2, 16, 32, dtype=torch.float64), torch.randn(2, 32, dtype=torch.float64)
    assert torch.equal(model.blocks[0](x, condition), x)
    assert not model(*batch()).any()


def test_a_block_is_modulated_as_in_the_paper():
    torch.manual_seed(0)
    block = DiTBlock(32, 16, 128).double()
    x, c = torch.randn(2, 5, 32, dtype=torch.float64), torch.randn(2, 32, dtype=torch.float64)
    shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = (
        (c @ weight.T + bias)[:, None]
        for weight, bias in zip(block.modulation.weight.split(32), block.modulation.bias.split(32), strict=True)
    )

    def norm(x):
        return nn.functional.layer_norm(x, (32,), eps=1e-6)

    middle = x + gate_msa * block.attn(norm(x) * (1 + scale_msa) + shift_msa)
    expected = middle + gate_mlp * block.mlp(norm(middle) * (1 + scale_mlp) + shift_mlp)
    torch.testing.assert_close(block(x, c), expected)


def test_patches_come_back_to_their_places():
    """With blocks that do nothing, what is in one patch changes that patch of the output and no other."""
    model = tiny(in_chans=3)
    with torch.no_grad():
        for block in model.blocks:
            block.modulation.weight.zero_()
            block.modulation.bias.zero_()
    images, timesteps, labels = batch(1, 3)
    changed = images.clone()
    changed[:, 1, 2:4, 6:8] += 1
    difference = model(changed, timesteps, labels) - model(images, timesteps, labels)
    assert difference[:, :, 2:4, 6:8].abs().min() > 0
    difference[:, :, 2:4, 6:8] = 0
    assert not difference.any()


def test_channels_and_pixels_of_a_patch_are_in_order():
    model = tiny(in_chans=3)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.arange(12))
    expected = torch.arange(12.0, dtype=torch.float64).view(3, 2, 2).repeat(1, 4, 4)
    torch.testing.assert_close(model(*batch(1, 3))[0], expected)


def test_time_and_label_count():
    model = tiny()
    images, timesteps, labels = batch()
    before = model(images, timesteps, labels)
    assert (model(images, timesteps + 1, labels) - before).flatten(1).abs().amax(1).min() > 0
    assert (model(images, timesteps, labels + 1) - before).flatten(1).abs().amax(1).min() > 0
    with pytest.raises(IndexError):
        model(images, timesteps, labels + 5)


def test_positions_of_a_narrower_model_differ_in_their_rates_alone():
    wide = _positions(4, 32).view(4, 4, 8, 4)
    row_sine, row_cosine, column_sine, _ = wide.unbind(-1)
    assert torch.equal(row_sine, row_sine[:, :1].expand_as(row_sine))
    assert torch.equal(column_sine, column_sine[:1].expand_as(column_sine))
    assert torch.equal(row_sine, column_sine.transpose(0, 1))
    torch.testing.assert_close(row_sine**2 + row_cosine**2, torch.ones(4, 4, 8))
    torch.testing.assert_close(wide[:, 0, 0, 0], torch.arange(4.0).sin())
    assert _positions(2, 6).shape == (1, 4, 6)
    assert len(_positions(4, 16)[0].unique(dim=0)) == 16


def test_on_the_meta_device():
    with torch.device("meta"):
        model = DiT()
        inputs = model.example_inputs()
        assert model(*inputs).shape == (1, 1, 8, 8)
    assert all(tensor.is_meta for tensor in inputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width must be a positive integer, got 0"),
        ({"num_classes": 1.5}, "num_classes must be a positive integer, got 1.5"),
        ({"width": 40}, "head_dim must divide width, got head_dim=16, width=40"),
        ({"patch_size": 3}, "patch_size must divide img_size, got patch_size=3, img_size=8"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must leave at least one hidden feature"),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DiT(**arguments)
