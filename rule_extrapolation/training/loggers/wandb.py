"""Weights & Biases runs that no missing key, network or server can stop or hold up: they go offline and say so."""

from __future__ import annotations

import os
import shutil
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import WandbLogger

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.runs.identity import flatten

if TYPE_CHECKING:
    import wandb

# Where wandb.init does not end at its timeout it gives up 10 s later: with the probe, 30 s in all.
PROBE_SECONDS = 8.0
INIT_SECONDS = 12.0
FINISH_SECONDS = 120.0


class WandbRun(WandbLogger):
    """A WandbLogger for one run, which stays open from one Trainer call to the next until it is closed."""

    def log_table(self, key: str, *args: Any, **kwargs: Any) -> None:
        """Log a table; one that the server or the disk does not take is left out, and named on one line."""
        import wandb

        try:
            super().log_table(key, *args, **kwargs)
        except (wandb.errors.Error, OSError) as error:
            print(f"W&B: table {key} is left out: {_first_line(error)}", flush=True)

    def close(self, exit_code: int = 0) -> None:
        """End the run, as failed unless `exit_code` is 0; an upload that takes over FINISH_SECONDS is cut off."""
        folder = Path(self.experiment.dir).parent
        try:
            self.experiment.finish(exit_code=exit_code)
        except TimeoutError:
            print(f"W&B: the upload is not complete (go on with: wandb sync {folder})", flush=True)


def wandb_logger(
    save_dir: str,
    name: str,
    config: dict[str, Any],
    project: str,
    entity: str | None = None,
    group: str | None = None,
    tags: list[str] | None = None,
    offline: bool = False,
    run_tags: Mapping[str, str] | None = None,
) -> WandbRun:
    """Start a W&B run with the nested `config`, its files in `save_dir`/wandb, and print one line on where it logs.

    It goes on with the run that was there before, if there is one: a run folder has one W&B run.

    What `run_tags` names, such as {"language": "aNbN"}, is a tag, before `tags`, and an entry of the config, for runs
    to be found and grouped by. Unlike model.name and grammar.name, no sweep over model= and grammar= takes such a key.

    Under `wandb agent` it is the agent's run, whose project, id and settings of the sweep are the agent's to say; the
    rest of `config` has dotted keys then, as the sweep's settings have, and the default group is the sweep.

    It logs offline if `offline` or WANDB_MODE says so, if there is no API key, and if the server is unreachable or
    turns the run down (a revoked key, say); `wandb sync` uploads it later. WANDB_MODE=disabled logs nothing.
    Raises ConfigError if wandb is not installed or a setting is not valid.
    """
    # Read on import. Error reports are off because, just where the server is the problem, they write to stderr and
    # hold up the end of the process for 20 s.
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
    except ImportError as error:
        raise ConfigError("logger", "wandb", "needs the package: pip install wandb; or use logger=csv") from error
    run_tags = dict(run_tags or {})
    about = {"name": name, "config": {**config, **run_tags}, "project": project, "entity": entity, "group": group}
    about["tags"] = [*dict.fromkeys([*run_tags.values(), *(tags or ())])]
    try:
        run, where = _start(offline, os.path.abspath(save_dir), about)
    except (wandb.errors.UsageError, ValueError) as error:
        raise ConfigError("logger", "wandb", " ".join(str(error).split()).partition(" [type=")[0]) from error
    print(f"W&B: {where}", flush=True)
    # Lightning sets this x axis only for runs that it starts itself.
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbRun(save_dir=save_dir, project=project, name=name, experiment=run)


def _start(offline: bool, save_dir: str, about: dict[str, Any]) -> tuple[wandb.Run, str]:
    """A new run, and what to tell the user about it."""
    import wandb

    settings = wandb.setup().settings
    if settings.mode == "disabled":
        return _init("disabled", save_dir, about), "disabled by WANDB_MODE"
    problem = "offline=true" if offline else why_offline(settings)
    if problem is None:
        try:
            run = _init("online", save_dir, about)
            return run, f"logging to {run.url}"
        except Exception as error:
            problem = f"{settings.base_url} fails: {_first_line(error)}"
    run = _init("offline", save_dir, about)
    return run, f"{problem}, logging offline (upload with: wandb sync {Path(run.dir).parent})"


def _init(mode: str, save_dir: str, about: dict[str, Any]) -> wandb.Run:
    import wandb

    settings = wandb.Settings(
        console="off", init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS, finish_timeout_raises=True
    )
    # A run of its own even where another one is open, or WANDB_RUN_ID is set; unless an agent has set it.
    agent = wandb.setup().settings
    before = sorted(Path(save_dir, "wandb").glob("*run-*-*"))
    ids = [folder.name.rpartition("-")[2] for folder in before]
    run_id = (agent.sweep_id and agent.run_id) or (ids[-1] if ids else uuid.uuid4().hex[:8])
    if agent.sweep_id:
        # A sweep's `model: lstm` would otherwise replace the nested settings of the group.
        about = {**about, "config": flatten(about["config"]), "group": about["group"] or agent.sweep_id}
    options = {"id": run_id, "resume": "allow" if run_id in ids else None, "mode": mode, "reinit": "create_new"}
    try:
        return wandb.init(**about, **options, dir=save_dir, settings=settings)
    except Exception:
        # `wandb sync --sync-all` would upload what is left of it as an empty run.
        for folder in Path(save_dir, "wandb").glob(f"*run-*-{run_id}"):
            if folder not in before:
                shutil.rmtree(folder, ignore_errors=True)
        raise


def why_offline(settings: wandb.Settings) -> str | None:
    """Why a run cannot log online, or None if it may."""
    import wandb

    if settings.mode in ("offline", "dryrun"):
        return f"WANDB_MODE={settings.mode}"
    try:
        if not wandb.login(prompt=False, verify=False):
            return "no API key"
    except wandb.errors.AuthenticationError as error:
        return _first_line(error).rstrip(".")
    proxies = {scheme: url for scheme, url in (("http", settings.http_proxy), ("https", settings.https_proxy)) if url}
    return None if _answers(settings.base_url, proxies) else f"{settings.base_url} is unreachable"


def _answers(url: str, proxies: dict[str, str]) -> bool:
    """Whether anything answers an HTTP request, with whatever status, within PROBE_SECONDS."""
    import requests  # comes with wandb

    answered = threading.Event()

    def ask() -> None:
        try:
            requests.head(url, timeout=PROBE_SECONDS, proxies=proxies, allow_redirects=False)
        except requests.exceptions.SSLError:
            pass  # a server, and wandb has settings of its own for certificates
        except requests.RequestException:
            return
        answered.set()

    # A thread, since no timeout bounds a DNS query.
    probe = threading.Thread(target=ask, daemon=True)
    probe.start()
    probe.join(PROBE_SECONDS)
    return answered.is_set()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or repr(error)


def close_run(logger: WandbRun, results: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Give the run its summary and a table of completions for each prompt set, and end it."""
    for name in dict.fromkeys(row["prompt_set"] for row in rows):
        of_set = [list(row.values()) for row in rows if row["prompt_set"] == name]
        logger.log_table(f"completions/{name}", columns=list(rows[0]), data=of_set)
    logger.experiment.summary.update({**results.get("test", {}), **{k: v for k, v in results.items() if k != "test"}})
    logger.close(exit_code=0 if results["status"] == "finished" else 1)
