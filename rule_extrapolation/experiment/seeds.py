"""Several seeds of one configuration (seeds=8). Each gets the run folder that it would have alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ProgressBar
from omegaconf import DictConfig, OmegaConf
from torch import nn

from rule_extrapolation.config.depth_and_width import set_depth_and_width
from rule_extrapolation.core.errors import RunsFailed
from rule_extrapolation.core.threads import cores, threads_limited, threads_per_job
from rule_extrapolation.experiment.assembling import Experiment, assemble
from rule_extrapolation.experiment.libraries import set_up_libraries
from rule_extrapolation.experiment.run import Run, build_trainer, started, test, training_threads
from rule_extrapolation.experiment.sweep import status
from rule_extrapolation.ops.allocator import keep_freed_memory
from rule_extrapolation.reporting.console import plain_console
from rule_extrapolation.reporting.messages import messages_printed
from rule_extrapolation.reporting.terminal import describe_run, print_seeds
from rule_extrapolation.runs.checkpoints import last_checkpoint
from rule_extrapolation.runs.run_folder import DONE, read_results
from rule_extrapolation.training.stack import Member, MemberCallbacks, MemberLoggers, Stack

INTERRUPTED = 130
"""The exit code of a run after Ctrl-C."""
ERROR_LINES = 20
"""Lines of output that are shown of a run that fails."""
SINGLE = {"devices": 1, "gradient_clip_val": None, "min_steps": None, "min_epochs": None, "accumulate_grad_batches": 1}
"""Settings of the Trainer, and the values with which several seeds can be trained together."""
ELEMENTWISE = ("torch.optim.AdamW", "torch.optim.Adam", "torch.optim.SGD")


def run_seeds(cfg: DictConfig) -> None:
    """Train ``seeds`` runs, from ``seed`` on, each in a folder within the run folder, and print their results.

    If the configuration allows it, one forward and backward pass serves all of them. Otherwise they run in parallel,
    each in its own process.

    Raises:
        RunsFailed: runs in their own processes failed; the others have ended.
    """
    cfg = set_depth_and_width(cfg)
    folder, seeds = Path(cfg.run_dir), range(cfg.seed, cfg.seed + cfg.seeds)
    configs = [OmegaConf.merge(cfg, {"seed": s, "seeds": None, "run_dir": str(folder / f"seed{s}")}) for s in seeds]
    set_up_libraries()
    experiment = assemble(configs[0], device="meta")
    task, reason = experiment.module.task, reason_not_to_stack(cfg, experiment)
    left = [config for config in configs if cfg.sweep is None or status(Path(config.run_dir)) not in DONE]
    if reason is None and any(last_checkpoint(Path(config.run_dir)).is_file() for config in left):
        reason = "each resumes from its own checkpoint"
    if reason is None:
        run_stacked(left)
    else:
        print(f"Seeds {seeds[0]} to {seeds[-1]} in parallel, each in its own process: {reason}", flush=True)
        run_in_processes(left)
    results = [read_results(Path(config.run_dir)) for config in configs]
    print_seeds(plain_console(), task, results, folder)


def reason_not_to_stack(cfg: DictConfig, experiment: Experiment) -> str | None:
    """Why the seeds cannot be trained in one pass, or None if they can."""
    module, trainer = experiment.module, cfg.trainer
    if not module.model.supports_vmap:
        return f"{cfg.model.name} gains nothing from training them as one"
    if any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in module.model.modules()):
        return "each draws its own dropout"
    if module.not_stackable_reason is not None:
        return module.not_stackable_reason
    if module.ood is not None:
        return f"training={cfg.training.name}"
    for callback in experiment.callbacks:
        if not works_in_stack(callback):
            return f"{type(callback).__name__} may need a Trainer and gradients of its own"
    if cfg.optimizer._target_ not in ELEMENTWISE:
        return f"{cfg.optimizer._target_} may look at several weights together"
    for key, single in SINGLE.items():
        if trainer.get(key, single) != single:
            return f"trainer.{key}={trainer[key]}"
    return None


def works_in_stack(callback: Callback) -> bool:
    """Whether a callback does among stacked runs what it does in a run of its own.

    Ours do, except for what users derive from them. A callback of a user's says so by an attribute ``works_in_stack``.
    """
    cls = type(callback)
    ours = cls.__module__.startswith("rule_extrapolation.") or cls is LearningRateMonitor
    return ours or isinstance(callback, ProgressBar) or getattr(callback, "works_in_stack", False)


def run_stacked(configs: list[DictConfig]) -> None:
    """Train all of them in one Trainer, and test each alone."""
    with messages_printed(), ExitStack() as stack:
        runs: list[Run] = []
        members = []
        for config in configs:
            write_hydra(config)
            runs.append(stack.enter_context(started(config)))
            experiment = runs[-1].experiment
            callbacks = [callback for callback in experiment.callbacks if not isinstance(callback, ProgressBar)]
            runs[-1].prepare()
            members.append(Member(str(config.seed), experiment.module, callbacks, runs[-1].loggers))
        first, last = configs[0].seed, configs[-1].seed
        print(f"{describe_run(runs[0].results, runs[0].task)}, seeds {first} to {last} together", flush=True)
        bars = [callback for callback in runs[0].experiment.callbacks if isinstance(callback, ProgressBar)]
        trainer = build_trainer(configs[0], MemberLoggers(members), [MemberCallbacks(members), *bars])
        keep_freed_memory()
        beginning = time.perf_counter()
        with threads_limited(training_threads(runs[0].experiment, len(runs))):
            trainer.fit(Stack(members, [run.experiment.data for run in runs]))
        for run in runs:
            run.results["seconds"]["fit"] = time.perf_counter() - beginning
        for run, member in zip(runs, members):
            trainer = build_trainer(run.cfg, run.loggers, run.experiment.callbacks)
            trainer.fit_loop.load_state_dict(member.progress)  # the test is logged at this step and epoch
            test(run, trainer)


def write_hydra(config: DictConfig) -> None:
    """Write the .hydra folder that the run would have alone."""
    folder = Path(config.run_dir) / ".hydra"
    folder.mkdir(parents=True, exist_ok=True)
    hydra = OmegaConf.create({"hydra": HydraConfig.get()})
    OmegaConf.set_readonly(hydra.hydra, False)
    task = own_overrides(config)
    OmegaConf.update(hydra, "hydra.overrides.task", task)
    OmegaConf.update(hydra, "hydra.job.override_dirname", ",".join(task))
    OmegaConf.update(hydra, "hydra.run.dir", config.run_dir)
    OmegaConf.update(hydra, "hydra.runtime.output_dir", config.run_dir)
    unresolved = OmegaConf.merge(config, {"run_dir": "${hydra:runtime.output_dir}"})
    for name, content in {"config": unresolved, "hydra": hydra, "overrides": OmegaConf.create(task)}.items():
        OmegaConf.save(content, folder / f"{name}.yaml")


def own_overrides(config: DictConfig) -> list[str]:
    """The command line that makes this run alone, without its folder."""
    given = HydraConfig.get().overrides.task
    others = [o for o in given if o.lstrip("+").partition("=")[0] not in ("seed", "seeds", "run_dir", "threads")]
    return [*others, f"seed={config.seed}"]


def run_in_processes(configs: list[DictConfig]) -> None:
    """Run each in its own process, as many at a time as there are cores or threads."""
    threads = configs[0].threads or threads_per_job(HydraConfig.get().launcher) or cores()
    at_once = min(threads, len(configs))
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, threads // at_once)), "PYTHONUNBUFFERED": "1"}
    sources = HydraConfig.get().runtime.config_sources
    flags = [f"--config-dir={source.path}" for source in sources if source.provider == "command-line"]
    flags += [f"--config-name={HydraConfig.get().job.config_name}"]
    processes: list[subprocess.Popen] = []
    interrupted = threading.Event()

    def interrupt(*_: Any) -> None:
        interrupted.set()
        print("\nStopping each run after its batch; press Ctrl-C again to stop immediately.", flush=True)
        for process in processes:
            process.send_signal(signal.SIGINT)

    def run_one(config: DictConfig) -> int:
        if interrupted.is_set():
            return INTERRUPTED
        command = [sys.executable, "-m", "rule_extrapolation.runner", *flags, *own_overrides(config)]
        command += ["hydra.mode=RUN", f"hydra.run.dir={config.run_dir}"]
        # Ctrl-C reaches a session of its own through this process alone. A second signal would stop it without a
        # checkpoint.
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        latest: deque[str] = deque(maxlen=ERROR_LINES)
        with subprocess.Popen(command, env=environment, **options) as process:
            processes.append(process)
            for line in process.stdout:
                latest.append(line)
                if line.startswith(("step", "W&B")):  # one table of all seeds follows at the end
                    print(f"seed {config.seed}  {line}", end="", flush=True)
        if process.returncode not in (0, INTERRUPTED):
            print("".join(f"seed {config.seed}  {line}" for line in latest), end="", file=sys.stderr, flush=True)
        return process.returncode

    handled = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.signal(number, interrupt) for number in handled}
    try:
        with ThreadPoolExecutor(at_once) as pool:
            codes = list(pool.map(run_one, configs))
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if interrupted.is_set():
        raise KeyboardInterrupt
    if failed := [str(config.seed) for config, code in zip(configs, codes) if code]:
        raise RunsFailed(f"the runs of these seeds failed: {', '.join(failed)}; see their run folders' results.json")
