"""How the processes of a run start, end and share a folder.

A distributed run's first process on a node starts the others from the run's resolved config.yaml, and Lightning finds
them as if torchrun or srun had started them. Lightning's own launchers do not suit: that of ``ddp`` repeats the command
line, where ``-m`` would begin the whole sweep again and the time in the run folder's name would differ; those of
``ddp_spawn`` and ``ddp_fork`` lose what callbacks and module have gathered when their processes end, and reach one node
only.
"""

from __future__ import annotations

import os
import platform
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
"""The environment variables that Lightning and this module set."""
SOON = 3.0
"""Seconds within which a process that has lost its parent ends."""
STARTED = "RULE_EXTRAPOLATION_STARTED"
"""Set in the processes that this module starts."""
GRACE = 30.0
"""Seconds that the first process gets to notice that another one has failed."""
WAIT = 5.0
"""Seconds that the other processes get to end after the first one has."""


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them."""

    rank: int = 0
    size: int = 1
    is_ddp: bool = False
    to_start: int = 0
    """Processes on this node that this one has to start."""


class InUse(ConfigError):
    """Another process is at work in a run's folder."""


@contextmanager
def lock(folder: Path, key: str = "run_dir") -> Iterator[None]:
    """Keep other processes out of a run's folder, which must exist. The system releases it however this process ends.

    A process may lock the same folder several times.

    Args:
        key: the setting that names the folder.

    Raises:
        InUse: another process holds it and has not released it within SOON seconds. A process that has lost its parent
            ends within that time.
    """
    from filelock import FileLock, Timeout

    file = folder / ".lock"
    held = FileLock(file, timeout=SOON, is_singleton=True)
    try:
        held.acquire()
    except Timeout as timeout:
        holder = ""
        with suppress(OSError, ValueError):
            holder = file.read_text()
        fix = f"{holder or 'another process'} is at work in it; wait until it has ended, or name another folder"
        raise InUse(key, folder, fix) from timeout
    try:
        with suppress(OSError):  # on a full disk
            file.write_text(f"process {os.getpid()} on {platform.node()}")
        yield
    finally:
        held.release()


def is_follower() -> bool:
    """Whether this process is not the first of its run, as torchrun or this module started it."""
    environment = os.environ
    if "RANK" in environment:
        return environment["RANK"] != "0"
    return any(environment.get(name, "0") != "0" for name in ("NODE_RANK", "LOCAL_RANK"))


def world_of(trainer: Trainer, cfg: DictConfig) -> World:
    """The processes of a run, by its trainer.

    Raises:
        ConfigError: a strategy other than Lightning's ddp, more processes than rows in a batch, or a run of a sweep
            with processes that were not started for it.
    """
    from lightning.pytorch.strategies import DDPStrategy
    from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

    strategy = trainer.strategy
    is_ddp = type(strategy) is DDPStrategy and not isinstance(strategy.launcher, _MultiProcessingLauncher)
    if trainer.world_size > 1 and not is_ddp:
        # Completions use the model's prefill and step, which strategies that shard weights do not see.
        raise ConfigError("trainer.strategy", cfg.trainer.get("strategy"), "several processes need ddp: trainer=ddp")
    if trainer.world_size > (rows := cfg.data.get("batch_size", trainer.world_size)):
        fix = f"its rows are divided over {trainer.world_size} processes; set as many or more, or fewer trainer.devices"
        raise ConfigError("data.batch_size", rows, fix)
    started = not is_ddp or strategy.cluster_environment.creates_processes_externally
    to_start = 0 if started else trainer.num_devices - 1
    if cfg.sweep is not None and trainer.world_size > to_start + 1 and STARTED not in os.environ:
        # Each process would decide for itself what is left of the sweep, and wait for others that decide otherwise.
        fix = "each of its runs starts its processes, on one machine: leave out trainer.num_nodes, torchrun and srun"
        raise ConfigError("sweep", cfg.sweep, fix)
    return World(trainer.global_rank, trainer.world_size, is_ddp, to_start)


@contextmanager
def processes(world: World, config: Path) -> Iterator[None]:
    """Run all processes of a run inside, started from its config.yaml, and restore the environment afterwards."""
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
    # Only the first process shows warnings. Ctrl-C reaches a session of its own through the first process alone.
    environment = {**os.environ, "LOCAL_RANK": str(local_rank), STARTED: "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "rule_extrapolation.cli.worker", str(config)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True)


def end(children: list[subprocess.Popen]) -> None:
    """Wait until they have printed their errors, and kill those that still run."""
    last = time.monotonic() + WAIT
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, last - time.monotonic()))
        child.kill()
        child.wait()
        child.stdin.close()


def watch(children: list[subprocess.Popen], ended: threading.Event) -> None:
    """Kill this process if another one has failed, for which it may otherwise wait forever on a GPU."""
    while not ended.wait(1.0):
        codes = [child.poll() for child in children]
        if any(codes) and not ended.wait(GRACE):
            print(f"error: a process of this run has failed (exit codes {codes})", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)


@cache
def end_with_parent() -> None:
    """End this process when its parent has ended: a new sweep would otherwise run at the same time."""
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
