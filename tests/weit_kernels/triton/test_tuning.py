"""Tiles: what the first guesses keep to, their neighbours, and what comes out of the cache."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from weit_kernels import tune
from weit_kernels.triton import tuning
from weit_kernels.triton.few_rows import few_rows_tiles
from weit_kernels.triton.tiles import forward_tiles, grad_tiles

SIZES = [1, 3, 16, 100, 5000]
GUESSES = {
    "forward": lambda *sizes: forward_tiles(*sizes, 2),
    "forward, float32": lambda *sizes: forward_tiles(*sizes, 4),
    "one row": lambda *sizes: few_rows_tiles(1, 132, *sizes, 2),
    "64 rows": lambda *sizes: few_rows_tiles(64, 132, *sizes, 2),
    "gradients": lambda *sizes: grad_tiles(*sizes, 2),
    "gradients, float32": lambda *sizes: grad_tiles(*sizes, 4),
    "gradients before sm_90": lambda *sizes: grad_tiles(*sizes, 2, 4096),
}


@pytest.mark.parametrize("name", GUESSES)
def test_guesses_are_powers_of_two_with_no_product_below_16(name: str) -> None:
    for sizes in product(SIZES, repeat=5):
        tiles = GUESSES[name](*sizes)
        assert tuning._whole(tiles), (sizes, tiles)
        assert tuning.parsed(tuning.spelled(tiles), tiles) == tiles


def test_few_rows_fill_the_machine() -> None:
    for n, q, p, m, N in ((8, 128, 128, 8, 4), (16, 256, 256, 16, 4), (32, 256, 256, 32, 8), (256, 16, 16, 256, 4)):
        tiles = few_rows_tiles(1, 132, n, q, p, m, N, 2)
        assert 66 <= -(-p // tiles.a) * -(-m // tiles.i) <= 264


def test_neighbours_differ_and_stay_whole() -> None:
    guess = forward_tiles(16, 256, 256, 16, 4, 2)
    others = list(tuning.neighbours(guess))
    assert len(others) == len(set(others)) > 8
    assert guess not in others
    assert all(map(tuning._whole, others))


@pytest.mark.parametrize("text", ["", "tokens=8", "nonsense"])
def test_a_foreign_winner_is_ignored(text: str) -> None:
    guess = forward_tiles(16, 256, 256, 16, 4, 2)
    assert tuning.parsed(text, guess) == guess
    odd = tuning.spelled(guess).replace(f"tokens={guess.tokens}", "tokens=7")
    assert tuning.parsed(odd, guess) == guess


@pytest.fixture
def pretended_gpu(tmp_path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An operand that says it is on a GPU, a cache of its own, and permission to time."""
    monkeypatch.setenv("WEIT_CACHE", str(tmp_path / "tune.json"))
    monkeypatch.setattr(tune, "may_time", lambda _: True)
    monkeypatch.setattr(tuning, "_CHOSEN", {})
    return SimpleNamespace(is_cuda=True, shape=(100, 4), device=torch.device("cpu"), dtype=torch.bfloat16)


def test_full_tuning_keeps_the_fastest(pretended_gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    guess = forward_tiles(16, 256, 256, 16, 4, 2)
    ran = []

    def run(tiles):
        ran.append(tiles)
        return [torch.full((2,), float("nan") if tiles.warps == 4 else 1.0)]

    def timer(function):
        function()
        return 1.0 if ran[-1].stages == 4 else 2.0

    monkeypatch.setattr(tune, "cuda_timer", timer)
    monkeypatch.setenv("WEIT_TUNE", "1")
    assert tuning.tuned("kernel", guess, pretended_gpu, (1, 2), run) == guess
    assert not ran
    monkeypatch.setattr(tuning, "_CHOSEN", {})
    monkeypatch.setenv("WEIT_TUNE", "full")
    with pytest.warns(RuntimeWarning, match="warps=4.* is not used here"):
        best = tuning.tuned("kernel", guess, pretended_gpu, (1, 2), run)
    assert best.stages == 4
    ran.clear()
    monkeypatch.setattr(tuning, "_CHOSEN", {})  # another process, which does not time
    monkeypatch.setenv("WEIT_TUNE", "0")
    assert tuning.tuned("kernel", guess, pretended_gpu, (1, 2), run) == best
    assert not ran


def test_what_was_chosen_does_not_grow_without_bound(pretended_gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIT_TUNE", "0")
    monkeypatch.setattr(tuning, "_MOST_CHOSEN", 4)
    guess = forward_tiles(16, 256, 256, 16, 4, 2)
    for size in range(20):
        assert tuning.tuned("kernel", guess, pretended_gpu, (size,), lambda tiles: []) == guess
        assert 0 < len(tuning._CHOSEN) <= 4
