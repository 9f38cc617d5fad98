"""The rates of CPUs by kind, of known GPUs from data sheets, and of unknown ones, with a clock that is made up."""

from contextlib import nullcontext

import pytest
import torch

from weit_kernels import cpp, plan, rates, tune

GPU = torch.device("cuda", 0)
pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_cpu_of_another_kind_has_rates_of_the_same_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "NEW")
    single, half, double = (
        rates.rates_for(torch.device("cpu"), d) for d in (torch.float32, torch.bfloat16, torch.float64)
    )
    assert "16-bit" in half.name
    assert half.flops > single.flops
    assert double.flops == single.flops / 2


@pytest.mark.parametrize(
    ("vectors", "pairs", "kind"),
    [("AVX512", True, "AVX512, AMD"), ("AVX512", False, "AVX512"), ("AVX2", True, "AVX2")],
)
def test_cpus_are_told_apart_by_maker_where_they_were_measured(
    vectors: str, pairs: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)
    monkeypatch.setattr(cpp, "multiplies_pairs", lambda: pairs)
    assert rates.cpu_kind() == kind
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert (rates.compiled_unproven(dtype) == "") == (kind != "AVX512")


def test_convolutions_count_what_fills_their_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    widths = {torch.float32: 16, torch.bfloat16: 16, torch.float64: 8}
    for dtype, width in widths.items():
        assert rates.rates_for(torch.device("cpu"), dtype, "cpp", conv=True).columns == width
        assert rates.rates_for(torch.device("cpu"), dtype, "torch", conv=True).columns == 0


def test_known_gpus_are_planned_with_their_data_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, sheet in rates.DATA_SHEETS.items():
        monkeypatch.setattr(tune, "device_name", lambda device, name=name: f"NVIDIA {name} 80GB")
        half = rates.rates_for(GPU, torch.bfloat16)
        assert (half.flops, half.bandwidth) == (sheet.half, sheet.bandwidth)
        assert "data sheet" in half.name
        assert rates.rates_for(GPU, torch.float32).flops in (sheet.single, sheet.tf32)


@pytest.fixture
def unknown_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "device_name", lambda device: "Some GPU")
    monkeypatch.setattr(tune, "may_time", lambda device: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(rates, "_FAILED", set())


@pytest.mark.usefixtures("unknown_gpu")
def test_an_unknown_gpu_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tune, "may_time", lambda device: False)
        assert "unknown GPU" in rates.rates_for(GPU, torch.float32).name
    timed = []
    monkeypatch.setattr(
        rates, "_time_product_and_copy", lambda *args: timed.append(args) or {"product": 0.5, "copy": 0.25}
    )
    for _ in range(2):
        found = rates.rates_for(GPU, torch.float32)
        assert found.name == "Some GPU, measured"
        assert found.flops * rates.LIBRARY_REACHED == pytest.approx(2 * 4096**3 / 0.5)
        assert found.bandwidth == pytest.approx(2 * 4 * 4096**2 / 0.25)
    assert len(timed) == 1


@pytest.mark.usefixtures("unknown_gpu")
def test_a_gpu_that_could_not_be_measured_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = []

    def out_of_memory(*args: object) -> None:
        timed.append(args)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(rates, "_time_product_and_copy", out_of_memory)
    for _ in range(2):
        assert "unknown GPU" in rates.rates_for(GPU, torch.float32).name
    assert len(timed) == 1


@pytest.mark.usefixtures("unknown_gpu")
def test_nothing_is_measured_where_nothing_is_to_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = []
    monkeypatch.setattr(rates, "_time_product_and_copy", lambda *args: timed.append(args) or {"product": 1, "copy": 1})
    sizes = (64, (2, 4, 4), (8, 8), torch.float32, GPU)
    plan(*sizes, path="panel", backend="torch")
    assert not timed
    plan(*sizes, path="panel")
    assert timed
