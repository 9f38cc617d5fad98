"""Two processes, with every parameter on each (DDP) or spread over both (FSDP2), do what one does alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import weit
from tests.weit.engine import scenarios
from tests.weit.engine.launch import TORCHRUN, forked_pair, module
from tests.weit.engine.launch import scenarios as on_two_processes

pytestmark = pytest.mark.timeout(900)  # seconds on a free machine, but many processes on one that is not

RUNS = [name for name in scenarios.RUNS if not name.startswith("slowly")]
ONE: dict[str, Callable[..., scenarios.Result]] = {
    "dense": scenarios.dense,
    "bank": scenarios.bank,
    "halves": scenarios.halves,
    "fitted": scenarios.fitted,
    "ranked": scenarios.ranked,
}
UNRECORDED = ("halves", "fitted", "ranked")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of each kind of run, and the runs themselves, back at their first checkpoint but one."""
    out = tmp_path_factory.mktemp("alone")
    for name, run in ONE.items():
        made, history = run() if name in UNRECORDED else run(out / f"{name}_of_one")
        save_file({k: v.clone() for k, v in made.state_dict().items()}, out / f"{name}.safetensors")
        (out / f"{name}.json").write_text(json.dumps(history))
    for folder in out.glob("*_of_one"):
        shutil.rmtree(folder / "checkpoints/step_00000012")
    return out


@pytest.fixture(scope="module")
def together(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes make of them."""
    out = tmp_path_factory.mktemp("together")
    for folder in alone.glob("*_of_one"):
        shutil.copytree(folder, out / folder.name)
    left, died = forked_pair(scenarios.killed_sharded, out / "dense_killed", "half a file")
    died.join()
    assert died.exitcode == -signal.SIGKILL
    left.join()
    assert [path.name for path in (out / "dense_killed/checkpoints").glob("step_*")] == ["step_00000004"]
    done = on_two_processes(out, *RUNS, "held")
    assert done.returncode == 0, done.stderr
    return out


def test_the_curve_and_the_parameters_are_those_of_one_process(alone: Path, together: Path) -> None:
    for name in RUNS:
        kind = name.partition("_")[0]
        if name == "dense_bf16":
            continue
        expected, found = (load_file(out / f"{each}.safetensors") for out, each in ((alone, kind), (together, name)))
        assert expected.keys() == found.keys()
        for key in expected:
            assert torch.allclose(expected[key], found[key], atol=1e-7, rtol=1e-6), (name, key)
        curve, again = (
            json.loads((out / f"{each}.json").read_text()) for out, each in ((alone, kind), (together, name))
        )
        for a, b in zip(curve[-len(again) :], again, strict=True):  # pretrain gives the scores since it went on
            assert a == pytest.approx(b, rel=1e-5), name


def test_bf16(together: Path) -> None:
    history = json.loads((together / "dense_bf16.json").read_text())
    _, expected = scenarios.dense(dtype=torch.float32, mixed_precision="bf16")
    _, exact = scenarios.dense(dtype=torch.float32)
    assert [record["loss"] for record in history] == pytest.approx([record["loss"] for record in expected], rel=0.02)
    assert history[0]["loss"] != exact[0]["loss"]


def test_a_killed_sharded_run_resumes_to_the_same_bits(together: Path) -> None:
    whole, resumed = (load_file(together / f"dense_{name}.safetensors") for name in ("fsdp", "killed"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    records = [(together / f"dense_{name}/metrics.jsonl").read_bytes() for name in ("fsdp", "killed")]
    assert records[0] == records[1]
    assert not list((together / "dense_killed/checkpoints").glob(".*"))


@pytest.mark.parametrize("name", ["dense_ddp", "dense_fsdp", "bank_ddp", "bank_fsdp"])
def test_a_run_of_two_resumes_on_one(name: str, alone: Path, together: Path, tmp_path: Path) -> None:
    kind = name.partition("_")[0]
    run = shutil.copytree(together / name, tmp_path / name)
    shutil.rmtree(run / "checkpoints/step_00000012")
    resumed, _ = ONE[kind](run, resume=True)
    expected = load_file(alone / f"{kind}.safetensors")
    for key, tensor in resumed.state_dict().items():
        assert torch.allclose(expected[key], tensor, atol=1e-7, rtol=1e-6), key


def test_buffers_are_the_first_processs(tmp_path: Path) -> None:
    done = on_two_processes(tmp_path, "normed")
    assert done.returncode == 0, done.stderr


def test_each_process_holds_and_writes_its_half(together: Path) -> None:
    block = sum(parameter.numel() for parameter in scenarios.vit().blocks[1].parameters())
    for file in (together / f"held_{kind}_{rank}.json" for kind in ("dense", "bank") for rank in range(2)):
        found = json.loads(file.read_text())
        for name in ("parameters", "gradients", "moments"):
            assert found[name] == pytest.approx(found["all"] / 2, rel=0.02), name
        assert found["model"] == 0
        whole = block if "dense" in file.name else found["all"]
        assert whole <= found["whole in a block"] < 1.1 * whole
    for kind in ("dense", "bank"):
        folder = together / f"{kind}_fsdp/checkpoints/step_00000012"
        files = {path.name for path in folder.iterdir()}
        shards = {f"{part}-0000{i}-of-00002.safetensors" for part in ("model", "optimizer") for i in (1, 2)}
        assert files == shards | {"state.json"}
        sizes = [(folder / f"model-0000{i}-of-00002.safetensors").stat().st_size for i in (1, 2)]
        assert max(sizes) < 2 * min(sizes)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-8]),
        lambda file: file.write_bytes(file.read_bytes()[:-8] + bytes(8)),
        Path.unlink,
    ],
    ids=["truncated", "changed", "missing"],
)
@pytest.mark.parametrize("shard", ["model-00002-of-00002.safetensors", "optimizer-00001-of-00002.safetensors"])
def test_a_damaged_shard_is_refused_by_name(shard: str, damage, together: Path, tmp_path: Path) -> None:
    run = shutil.copytree(together / "dense_fsdp", tmp_path / "run")
    damage(run / "checkpoints/step_00000012" / shard)
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=shard):
        scenarios.dense(run, resume=True)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_part_that_cannot_be_written_is_an_error_on_every_process(tmp_path: Path) -> None:
    for process in forked_pair(scenarios.refused, tmp_path):
        process.join()
    found = [(tmp_path / f"error_{rank}").read_text() for rank in range(2)]
    assert found[0] == "RuntimeError: 1 of 2 processes failed; theirs is the message that says why"
    assert "step_00000008: No space left on device" in found[1]
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step_00000004"]


def diverged(out: Path) -> None:
    """A sharded run whose last step spoils the parameters, each process seeing its own part; each leaves its error."""
    try:
        scenarios.dense(dtype=torch.float32, steps=1, lr=3e38, **scenarios.FSDP)
    except FloatingPointError as error:
        (out / f"error_{os.environ['RANK']}").write_text(str(error))


def test_a_last_step_that_diverges_is_an_error_on_every_process(tmp_path: Path) -> None:
    for process in forked_pair(diverged, tmp_path):
        process.join()
    found = [(tmp_path / f"error_{rank}").read_text() for rank in range(2)]
    assert found == ["parameters became NaN or infinite in step 1 of 1; a smaller lr may help"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ("accelerate.commands.launch", "--num_processes", "2", "--cpu", "-m")])
@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_launchers(command: str, launcher: tuple[str, ...], tmp_path: Path) -> None:
    smaller = ["--smaller", "16x1"] if command == "pretrain" else []
    words = ["weit", command, "--out", tmp_path / "run", *scenarios.TINY, *smaller]
    for sharding in ("none", "fsdp"):
        resume = ["--resume"] if sharding == "fsdp" else []
        done = module(*launcher, *words, "--sharding", sharding, *resume)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(str(tmp_path)) == 1  # one process prints, and one keeps the record
    records = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert records == [2, 4]
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 2
    if command == "pretrain":
        assert weit.TemplateBank.from_pretrained(tmp_path / "run/bank").source is not None
    else:
        assert (tmp_path / "run/model/model.safetensors").is_file()


@pytest.mark.slow
def test_bad_input_ends_every_process(tmp_path: Path) -> None:
    words = ["weit", "train", "--out", tmp_path / "run", *scenarios.TINY, "--accumulate", "8"]
    done = module(*TORCHRUN, *words, timeout=60)
    assert done.returncode != 0
    assert "batch_size must be a multiple of processes × accumulate = 16, got 8" in done.stderr
    assert not (tmp_path / "run").exists()
