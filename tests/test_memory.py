"""Many runs in one process: what a run has used is free again when it has ended."""

import gc
import json
import subprocess
import sys

import pytest
from conftest import environment
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig

TINY = [
    "logger=csv", "grammar=L1", "model=mingru", "model.embedding_dim=4", "model.hidden_dim=4", "trainer.max_steps=2",
    "data.max_length=8", "data.num_train=8", "data.num_val=8", "data.num_test=8", "data.batch_size=8",
    "decoding.max_new_tokens=4", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false",
]  # fmt: skip

# The first runs import modules and fill caches. Memory that is freed stays with the process, so that it levels off.
MANY_RUNS = """
import json, os, shutil, sys
import rule_extrapolation

def used():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd"))

runs, first = int(sys.argv[1]), int(sys.argv[2])
for number in range(runs):
    rule_extrapolation.train("run", *sys.argv[3:], f"seed={number}", quiet=True)
    shutil.rmtree("run")
    if number + 1 == first:
        before = used()
print(json.dumps([before, used()]))
"""


def growth(folder, runs, first):
    """The megabytes and the open files that runs in one process have added since the first ones."""
    command = [sys.executable, "-c", MANY_RUNS, str(runs), str(first), *TINY]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=True)
    (memory, files), (more_memory, more_files) = json.loads(done.stdout)
    return more_memory - memory, more_files - files


@pytest.mark.slow
@pytest.mark.parametrize("runs, first", [(30, 20), (200, 20)])
def test_runs_in_one_process_use_what_one_uses(tmp_path, record_property, runs, first):
    memory, files = growth(tmp_path, runs, first)
    record_property("note", f"{memory:+.1f} MB and {files:+d} open files from run {first} to run {runs}")
    assert memory <= 10 and files <= 0


class CountsObjects(Callback):
    """Notes how many of the objects are alive that one run has several of, when a run begins to train."""

    counts = []

    def on_fit_start(self, *_) -> None:
        gc.collect()
        types = [type(item) for item in gc.get_objects()]
        self.counts.append(
            [sum(issubclass(cls, kind) for cls in types) for kind in (DictConfig, Trainer, LightningModule)]
        )


def test_a_sweep_keeps_nothing_of_the_runs_that_have_ended(cli, monkeypatch):
    monkeypatch.setattr(CountsObjects, "counts", [])
    counts = "+callbacks.counts._target_=test_memory.CountsObjects"
    assert cli("-m", *TINY, "seed=0,1,2", "sweep=x", counts)[0] == 0
    _, second, third = CountsObjects.counts
    assert second == third
