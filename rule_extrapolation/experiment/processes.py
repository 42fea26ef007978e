"""One run in several processes: what starts them, and which of them speaks for all.

The first process on a node starts the others itself, with the run's resolved config.yaml, and Lightning finds them
there as if torchrun or srun had started them. Lightning's own launchers do not suit: that of ``ddp`` repeats the
command line, in which ``-m`` begins the whole sweep again, the time in a run folder's name is another one and a program
that calls ours stands for ours; those of ``ddp_spawn`` and ``ddp_fork`` leave what callbacks and module have gathered
in processes that are gone, and reach one node only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from rule_extrapolation.core.errors import ConfigError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS")
"""What Lightning and this module set."""
SOON = 3.0
"""Seconds within which a process that has lost its parent ends."""
STARTED = "RULE_EXTRAPOLATION_STARTED"
"""Set in the processes that this module has started."""
GRACE = 30.0
"""Seconds that the first process has to notice that another one has failed."""
WAIT = 5.0
"""Seconds that the others have behind its end."""


@dataclass(frozen=True)
class World:
    """A run's processes, seen from one of them."""

    rank: int = 0
    size: int = 1
    is_ddp: bool = False
    to_start: int = 0
    """Processes on this node that nobody else starts."""


class InUse(RuntimeError):
    """Another process is at work in a run's folder."""


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder. The system releases it however this process ends.

    Raises:
        InUse: another process holds it, and has not released it within SOON seconds, in which one ends that has lost
            its parent.
    """
    from filelock import FileLock, Timeout

    held = FileLock(folder / ".lock", timeout=SOON)
    try:
        held.acquire()
    except Timeout as timeout:
        raise InUse(folder) from timeout
    try:
        yield
    finally:
        held.release()


def is_follower() -> bool:
    """Whether torchrun, or whoever has started this process, has made it another one than the first of its run."""
    environment = os.environ
    if "RANK" in environment:
        return environment["RANK"] != "0"
    return any(environment.get(name, "0") != "0" for name in ("NODE_RANK", "LOCAL_RANK"))


def world_of(trainer: Trainer, cfg: DictConfig) -> World:
    """
    Raises:
        ConfigError: a strategy that is not Lightning's ddp, more processes than rows in a batch, or a sweep's run with
            processes that were not started for it.
    """
    from lightning.pytorch.strategies import DDPStrategy
    from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

    strategy = trainer.strategy
    is_ddp = type(strategy) is DDPStrategy and not isinstance(strategy.launcher, _MultiProcessingLauncher)
    if trainer.world_size > 1 and not is_ddp:
        # Completions go through the model's prefill and step, behind the back of what shards weights.
        raise ConfigError("trainer.strategy", cfg.trainer.get("strategy"), "several processes take ddp, as trainer=ddp")
    if trainer.world_size > (rows := cfg.data.get("batch_size", trainer.world_size)):
        fix = f"its rows are divided over {trainer.world_size} processes; set as many or more, or fewer trainer.devices"
        raise ConfigError("data.batch_size", rows, fix)
    started = not is_ddp or strategy.cluster_environment.creates_processes_externally
    to_start = 0 if started else trainer.num_devices - 1
    if cfg.sweep is not None and trainer.world_size > to_start + 1 and STARTED not in os.environ:
        # Each would decide for itself what of the sweep is left to do, and wait for others that decide otherwise.
        fix = "each of its runs starts its processes, on one machine: leave out trainer.num_nodes, torchrun and srun"
        raise ConfigError("sweep", cfg.sweep, fix)
    return World(trainer.global_rank, trainer.world_size, is_ddp, to_start)


@contextmanager
def processes(world: World, config: Path) -> Iterator[None]:
    """Have all of the run's processes at work, from its config.yaml; none is left, nor a trace of them in this one."""
    if not world.is_ddp:
        yield
        return
    import torch
    from lightning.fabric.plugins.environments.lightning import find_free_network_port

    before, threads = {name: os.environ.get(name) for name in VARIABLES}, torch.get_num_threads()
    children: list[subprocess.Popen] = []
    ended = threading.Event()
    if world.to_start:
        for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": find_free_network_port()}.items():
            os.environ.setdefault(name, str(value))
        os.environ["LOCAL_RANK"] = "0"
        share = max(1, threads // (1 + world.to_start))
        os.environ["OMP_NUM_THREADS"] = str(share)
        torch.set_num_threads(share)
        children += [start(config, local_rank) for local_rank in range(1, world.to_start + 1)]
        threading.Thread(target=watch, args=(children, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        end(children)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        torch.set_num_threads(threads)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def start(config: Path, local_rank: int) -> subprocess.Popen:
    # Warnings are the first process's to give. In a session of its own, Ctrl-C reaches it through the first one alone.
    environment = {**os.environ, "LOCAL_RANK": str(local_rank), STARTED: "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "rule_extrapolation.cli.worker", str(config)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True)


def end(children: list[subprocess.Popen]) -> None:
    """Wait for them, to say what they failed of too, and end those that go on."""
    last = time.monotonic() + WAIT
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, last - time.monotonic()))
        child.kill()
        child.wait()
        child.stdin.close()


def watch(children: list[subprocess.Popen], ended: threading.Event) -> None:
    """End this process if another one has failed and it waits for that one still, as it may on a GPU, for ever."""
    while not ended.wait(1.0):
        codes = [child.poll() for child in children]
        if any(codes) and not ended.wait(GRACE):
            print(f"error: a process of this run has failed (exit codes {codes})", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)


@cache
def end_with_parent() -> None:
    """Once in a process: without whoever started it, it would go on beside the one that takes its runs over."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(SOON / 4)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_with_standard_input() -> None:
    """End this process once its standard input is closed, which only the process that started it holds open."""

    def watch() -> None:
        os.read(sys.stdin.fileno(), 1)
        time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
