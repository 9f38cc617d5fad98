"""``dT`` and ``dS`` on sm_90a in the emulator: the kernels of ``wgmma``, where sizes and alignment suit them."""

import ctypes
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.weit_kernels.cases import RAGGED, Case, relative_error
from tests.weit_kernels.cuda import emulated
from tests.weit_kernels.cuda.emulated import Setting
from tests.weit_kernels.cuda.test_weight_grads_emulated import DTYPES, assert_right, drawn, gradients

HOPPER = Setting(major=9)
THREADS = {"mma": 256, "wgmma": 384}  # of a block, which tell the kernels apart
ORDERS = [(order, late) for order in (0, 1, 7) for late in (False, True)]

# Every tile; scaler columns that share 8 inner positions and that take several times 8; a stage of many tokens and of
# one; several blocks on every axis; edges that are not full.
BOTH = [
    Case("four_columns", (70,), 3, 9, 3, 40, 64),
    Case("eight_columns", (21,), 4, 20, 8, 72, 128),
    Case("sixteen_columns", (11,), 7, 16, 13, 64, 64),
    Case("columns_of_24", (5,), 10, 4, 24, 40, 56),
    Case("columns_of_72", (3,), 3, 33, 70, 136, 64),
    Case("rows_of_48", (9,), 5, 100, 16, 40, 72),
    Case("k_blocks", (9,), 3, 8, 5, 40, 256),
]
PLAIN, SIXTEEN = BOTH[0], BOTH[2]
LONG = Case("long", (90,), 3, 8, 16, 40, 72)  # on one processor more tiles of tokens than there are stages
TILES = {  # what wgmma takes of each gradient
    "dT": [
        *BOTH,
        Case("one_column", (35,), 1, 5, 1, 40, 40),
        Case("two_columns", (37,), 2, 16, 2, 40, 72),
    ],
    "dS": [*BOTH, Case("one_column", (70,), 3, 5, 1, 40, 40), Case("two_columns", (37,), 4, 16, 2, 40, 72)],
}
NEED = {"dT": (True, False), "dS": (False, True)}
GRADIENTS = pytest.mark.parametrize("name", NEED)


def threads(library: ctypes.CDLL) -> int:
    """Of a block of the last kernel."""
    return ctypes.c_uint.in_dll(library, "blockDim").value


def check(
    library: ctypes.CDLL, name: str, operands: list[Tensor], setting: Setting = HOPPER, kind: str = "wgmma"
) -> None:
    """One gradient is right, and of the expected kernel."""
    assert_right(library, operands, NEED[name], setting)
    assert threads(library) == THREADS[kind]


@DTYPES
@pytest.mark.parametrize(
    ("name", "case"), [pytest.param(name, case, id=f"{name}-{case.name}") for name in NEED for case in TILES[name]]
)
def test_wgmma_matches_plain_torch(kernels, name: str, case: Case, dtype: torch.dtype) -> None:
    check(kernels("weight_grads"), name, drawn(case, dtype))


@GRADIENTS
@pytest.mark.parametrize("processors", [1, 5, 60])
def test_any_number_of_splits(kernels, name: str, processors: int) -> None:
    for case in BOTH[:2]:
        setting = replace(HOPPER, processors=processors)
        check(kernels("weight_grads"), name, drawn(case, torch.float16), setting)


@GRADIENTS
def test_neither_order_nor_delays_change_a_number(kernels, name: str) -> None:
    library = kernels("weight_grads")
    for case, processors in ((SIXTEEN, 4), (LONG, 1)):
        operands, setting = drawn(case, torch.bfloat16), replace(HOPPER, processors=processors)
        check(library, name, operands, setting)
        first = gradients(library, operands, NEED[name], setting)
        for order, late in ORDERS:
            again = gradients(library, operands, NEED[name], replace(setting, order=order, copies_late=late))
            assert all(a is b is None or torch.equal(a, b) for a, b in zip(first, again, strict=True))


def padded(t: Tensor) -> Tensor:
    """The same numbers in rows that are 8 longer."""
    return torch.cat([t, t.new_zeros(*t.shape[:-1], 8)], -1)[..., : t.shape[-1]]


def test_factors_of_any_strides(kernels) -> None:
    dy, x, T, S = drawn(PLAIN, torch.bfloat16)
    library, transposed = kernels("weight_grads"), T.mT.contiguous().mT
    check(library, "dT", [dy, x, transposed, S.mT.contiguous().mT])
    check(library, "dS", [dy, x, padded(T), padded(S)])
    check(library, "dS", [dy, x, transposed, S], kind="mma")
    check(library, "dT", [x, dy, T.mT, S.mT])  # what the caller does where n > m


@pytest.mark.parametrize(
    ("names", "case"),
    [
        ("dT dS", RAGGED),
        ("dT dS", replace(PLAIN, name="odd_q", q=60)),
        ("dT dS", replace(PLAIN, name="odd_p", p=44)),
        ("dT dS", replace(PLAIN, name="cut_in", cut_in=8)),
        ("dT dS", replace(PLAIN, name="cut_out", cut_out=8)),
        ("dT dS", replace(PLAIN, name="few_rows", p=32)),
        ("dT dS", replace(PLAIN, name="few_columns", q=32)),
        ("dT", Case("scalers_too_large", (2,), 2, 200, 180, 40, 40)),
        ("dS", Case("templates_too_large", (2,), 3, 4, 4, 40, 512)),
        ("dS", Case("tile_too_large", (2,), 3, 48, 1, 40, 64)),
        ("dS", replace(PLAIN, name="few_templates", N=2)),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_mma_takes_what_wgmma_cannot(kernels, names: str, case: Case) -> None:
    for name in names.split():
        check(kernels("weight_grads"), name, drawn(case, torch.bfloat16), kind="mma")


@GRADIENTS
def test_operands_between_multiples_of_16_bytes(kernels, name: str) -> None:
    dy, x, T, S = drawn(PLAIN, torch.float16)
    moved = torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x)
    library, which = kernels("weight_grads"), [*NEED].index(name)
    straight = gradients(library, [dy, x, T, S], NEED[name], HOPPER)[which]
    other = gradients(library, [dy, moved, T, S], NEED[name], HOPPER)[which]
    assert threads(library) == THREADS["mma"]
    assert relative_error(other, straight) < 1e-3


@pytest.fixture(scope="module")
def transposed_products(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if emulated.compiler() is None:
        pytest.skip("no C++ compiler")
    return emulated.build(tmp_path_factory.mktemp("products"), "products", emulated.EMULATOR / "transposed.cu")


@pytest.mark.parametrize(("order", "late"), ORDERS)
def test_products_of_transposed_operands(transposed_products: ctypes.CDLL, order: int, late: bool) -> None:
    """The emulator's own: two products in a row, by their definition."""
    library, generator = transposed_products, torch.Generator().manual_seed(0)
    a, b, x = (torch.randn(16, size, generator=generator).half() for size in (64, 16, 128))
    columns, out = b.T.contiguous(), torch.zeros(64, 128)
    library.emulator_set(4, 9, 0, order, int(late))
    assert library.emulated_transposed(*(ctypes.c_void_p(t.data_ptr()) for t in (out, a, columns, x))) == 0
    assert not library.emulator_error()
    torch.testing.assert_close(out, (a.float().T @ b.float()).half().float() @ x.float(), rtol=1e-3, atol=1e-2)
