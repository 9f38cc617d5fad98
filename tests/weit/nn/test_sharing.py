import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from weit import KronConv2d, KronFusedLinear, KronLinear, TemplateBank


class Model(nn.Module):
    """Two roles, a fused layer and a convolution on one bank."""

    def __init__(self):
        super().__init__()
        bank = TemplateBank({"a": torch.randn(2, 4, 4), "c": torch.randn(2, 4, 4, 3, 3)})
        self.first = KronLinear(8, 8, templates=bank["a"])
        self.qkv = KronFusedLinear([KronLinear(8, 4, templates=bank["a"]) for _ in range(2)])
        self.convs = nn.Sequential(KronConv2d(4, 8, 3, templates=bank["c"]), KronConv2d(8, 8, 3, templates=bank["c"]))
        self.bank = bank

    def holders(self):
        """All places of each role's templates."""
        return (
            [self.first.templates, *(part.templates for part in self.qkv.parts), self.bank["a"]],
            [*(conv.templates for conv in self.convs), self.bank["c"]],
        )


def assert_shared(model):
    for places in model.holders():
        assert all(place is places[0] for place in places)
    a, c = model.holders()
    assert a[0] is not c[0]


def through_torch_save(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def load_copies(model, **options):
    """Every key with a tensor of its own, as a file that knows nothing of sharing gives them."""
    model.load_state_dict({k: v.clone() + 1 for k, v in model.state_dict().items()}, **options)
    return model


def overwrite_on_conversion(model):
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return model.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def swap_on_conversion(model):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return model.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def twice_from_meta(model):
    return model.to("meta").to_empty(device="cpu").to("meta").to_empty(device="cpu")


WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": through_torch_save,
    "to dtype": lambda m: m.to(torch.float64),
    "half": lambda m: m.half(),
    "overwriting conversion": overwrite_on_conversion,
    "swapping conversion": swap_on_conversion,
    "to meta": lambda m: m.to("meta"),
    "meta and to_empty": twice_from_meta,
    "to_empty without meta": lambda m: m.to_empty(device="cpu"),
    "share_memory": lambda m: m.share_memory(),
    "load_state_dict": load_copies,
    "load_state_dict assign": lambda m: load_copies(m, assign=True),
    "assign own tensors": lambda m: (m.load_state_dict(m.state_dict(), assign=True), m)[1],
    "assign onto meta": lambda m: (copy.deepcopy(m).to("meta").load_state_dict(m.state_dict(), assign=True), m)[1],
    "meta, empty, assign, pickle": lambda m: WAYS["pickle"](load_copies(twice_from_meta(m), assign=True)),
    "swap after assign": lambda m: swap_on_conversion(load_copies(m, assign=True)),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_shared_templates_stay_shared(way):
    model = way(Model())
    assert_shared(model)
    if model.first.scalers.device.type != "meta":
        assert len(list(model.parameters())) == 2 + 5 * 2


def test_values_arrive_through_assign():
    model = Model()
    wanted = {k: v.clone() + 1 for k, v in model.state_dict().items()}
    for _ in range(2):
        model.to("meta").load_state_dict({k: v.clone() for k, v in wanted.items()}, assign=True)
        assert_shared(model)
        assert all(torch.equal(v, wanted[k]) for k, v in model.state_dict().items())


def test_what_is_loaded_last_counts_with_and_without_assign():
    contradiction = {k: torch.full_like(v, i) for i, (k, v) in enumerate(Model().state_dict().items())}
    plain, assigned = Model(), Model()
    plain.load_state_dict(contradiction)
    assigned.load_state_dict({k: v.clone() for k, v in contradiction.items()}, assign=True)
    assert_shared(assigned)
    assert all(torch.equal(v, assigned.state_dict()[k]) for k, v in plain.state_dict().items())


def test_a_bank_outside_the_model_follows_when_moved_alike():
    model = Model()
    bank, model.bank = model.bank, None
    model.to("meta").to_empty(device="cpu")
    assert bank["a"] is not model.first.templates
    bank.to("meta").to_empty(device="cpu")
    assert bank["a"] is model.first.templates
    assert bank["c"] is model.convs[0].templates


def test_memory_formats_are_for_maps():
    model = Model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.to(memory_format=torch.channels_last)
    assert_shared(model)
    assert all(holder.is_contiguous() for places in model.holders() for holder in places)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        maps = torch.ones(2, 4, 5, 5).to(memory_format=torch.channels_last)
        assert model.convs(maps).is_contiguous(memory_format=torch.channels_last)


def test_a_new_parameter_put_in_by_hand_stays_alone():
    model = Model()
    model.first.templates = nn.Parameter(torch.randn(2, 4, 4))
    model.to("meta").to_empty(device="cpu")
    assert model.first.templates is not model.bank["a"]
    assert model.qkv.parts[0].templates is model.bank["a"]


def test_models_on_one_bank_part_only_when_they_differ():
    model = Model()
    other = KronLinear(8, 8, templates=model.bank["a"])
    model.to("meta")
    other.load_state_dict({k: v.clone() for k, v in other.state_dict().items()}, assign=True)
    assert model.first.templates.is_meta
    assert other.templates.device.type == "cpu"


def test_a_bank_left_behind_catches_up_with_the_newest():
    model = Model()
    bank, model.bank = model.bank, None
    load_copies(model, assign=True)
    load_copies(model, assign=True)
    bank.load_state_dict({k: v.clone() for k, v in bank.state_dict().items()}, assign=True)
    assert bank["a"] is model.first.templates
    assert bank["c"] is model.convs[0].templates


def test_frozen_templates_stay_frozen():
    model = Model()
    model.bank.requires_grad_(False)
    model.to("meta").to_empty(device="cpu")
    load_copies(model, assign=True)
    assert not model.first.templates.requires_grad
    assert model.first.scalers.requires_grad


DDP = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from weit import KronLinear

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)

def build():
    torch.manual_seed(0)
    first = KronLinear(8, 8, templates=2, template_shape=(4, 4), dtype=torch.float64)
    return nn.Sequential(first, nn.Tanh(), KronLinear(8, 8, templates=first.templates))

data = torch.randn(6, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

def train(model, batches):
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for x in batches:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

alone, parallel = build(), build()
train(alone, data)
train(DistributedDataParallel(parallel), data[:, rank * 2 : rank * 2 + 2])
assert parallel[0].templates is parallel[2].templates
start = build().state_dict()
for key, value in alone.state_dict().items():
    torch.testing.assert_close(parallel.state_dict()[key], value)
    assert not torch.allclose(value, start[key])
dist.destroy_process_group()
"""


def test_two_processes_train_as_one(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DDP, str(rank), str(tmp_path / "store")], stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
