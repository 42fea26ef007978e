"""Weights & Biases runs that log offline, and say so, if a key, a network or a server is missing."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import WandbLogger

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.runs.identity import flatten

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

# A server that hangs costs a run 30 s at most: at the start the probe and wandb.init, which may exceed its timeout by
# 10 s, or at the end the tables and the upload.
PROBE_SECONDS = 6.0
INIT_SECONDS = 12.0
TABLES_SECONDS = 6.0
FINISH_SECONDS = 20.0


class WandbRun(WandbLogger):
    """A WandbLogger for one run, which stays open over several calls of the Trainer until it is closed.

    If W&B fails, as when its process dies, logging is given up, and a line says so. Training goes on.
    """

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        with self._given_up_on_failure():
            super().log_hyperparams(*args, **kwargs)

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        with self._given_up_on_failure():
            super().log_metrics(*args, **kwargs)

    def log_summary(self, values: dict[str, Any]) -> None:
        with self._given_up_on_failure():
            self.experiment.summary.update(values)

    def log_tables(self, tables: dict[str, list[dict[str, Any]]]) -> None:
        """Log each list of rows as a table. If the server or the disk fails, or after TABLES_SECONDS, those that are
        left are omitted, and a line says so."""
        import wandb

        left, errors = list(tables), []

        def log_all() -> None:
            try:
                for name, rows in tables.items():
                    table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
                    self.experiment.log({name: table})
                    left.remove(name)
            except Exception as error:
                errors.append(error)

        # In a thread, since W&B asks the server about each table, and waits for 19 s.
        thread = threading.Thread(target=log_all, daemon=True)
        thread.start()
        thread.join(None if self.experiment.offline else TABLES_SECONDS)
        if left:
            reason = _first_line(errors[0]) if errors else "the server does not answer"
            log.warning("W&B: without the tables %s: %s", ", ".join(left), reason)

    def close(self, exit_code: int = 0) -> None:
        """End the run, as failed unless ``exit_code`` is 0. An upload is given up after FINISH_SECONDS."""
        folder = Path(self.experiment.dir).parent
        with self._given_up_on_failure():
            try:
                self.experiment.finish(exit_code=exit_code)
            except TimeoutError:
                log.warning("W&B: the upload is not complete (complete it with: wandb sync %s)", folder)

    @contextmanager
    def _given_up_on_failure(self) -> Iterator[None]:
        """Continue with a W&B run that logs nothing if this one raises an error."""
        try:
            yield
        except Exception as error:
            import wandb

            log.warning("W&B: logging is given up, only metrics.csv goes on: %s", _first_line(error))
            if not isinstance(error, wandb.errors.Error | ValueError | TypeError):  # W&B's process has failed
                _end_session()
            self._experiment = _nothing(self.version)


def _nothing(run_id: str | None = None) -> wandb.Run:
    """A run that logs nothing."""
    import wandb

    return wandb.init(id=run_id, mode="disabled", reinit="create_new")


def _end_session() -> None:
    """Forget a W&B process that has ended, so that the next run starts another one."""
    import wandb

    with suppress(Exception, SystemExit):  # the exit status of a process that was killed
        wandb.teardown()
    os.environ.pop("WANDB_SERVICE", None)


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
    """Start a W&B run, and report in one line where it logs.

    A run folder has one W&B run: if ``save_dir`` has one already, it is continued.

    The run is logged offline if ``offline`` or WANDB_MODE says so, if there is no API key, or if the server is
    unreachable or rejects the run (because the key was revoked, for example). `wandb sync` uploads it later.
    WANDB_MODE=disabled logs nothing.

    Under `wandb agent`, the agent determines the run's project, its id and the settings of the sweep. The rest of
    ``config`` then gets dotted keys, like the sweep's settings, and the default group is the sweep.

    Args:
        save_dir: the folder that gets the run's files, in wandb/.
        config: the nested configuration.
        run_tags: items such as {"language": "aNbN"} to find and group runs by. Each value becomes a tag, before
            ``tags``, and each item an entry of the config. Its keys must not be those that a sweep sets, as model and
            grammar are.

    Raises:
        ConfigError: wandb is not installed, or a setting is not valid.
    """
    wandb = _import_wandb()
    run_tags = dict(run_tags or {})
    about = {"name": name, "config": {**config, **run_tags}, "project": project, "entity": entity, "group": group}
    about["tags"] = [*dict.fromkeys([*run_tags.values(), *(tags or ())])]
    try:
        run, where = _started(offline, os.path.abspath(save_dir), about)
    except (wandb.errors.UsageError, ValueError) as error:
        raise ConfigError("logger", "wandb", " ".join(str(error).split()).partition(" [type=")[0]) from error
    log.info("W&B: %s", where)
    # Lightning sets this x axis only for runs that it starts.
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbRun(save_dir=save_dir, project=project, name=name, experiment=run)


def _import_wandb() -> ModuleType:
    # wandb reads these on import. Error reports are off because, when the server is the problem, they write to stderr
    # and delay the end of the process by 20 s.
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
    except ImportError as error:
        raise ConfigError("logger", "wandb", "needs the package: pip install wandb; or use logger=csv") from error
    return wandb


def check_settings(
    project: str, entity: str | None = None, group: str | None = None, tags: list[str] | None = None, **others: Any
) -> None:
    """Check these arguments of ``wandb_logger``, and W&B's settings in the environment.

    Raises:
        ConfigError: wandb is not installed, or refuses a setting.
    """
    wandb = _import_wandb()
    names = {"project": "logger.project", "entity": "logger.entity", "run_group": "logger.group"}
    names |= {"run_tags": "logger.tags", "base_url": "WANDB_BASE_URL", "mode": "WANDB_MODE"}
    given = {"project": project, "entity": entity, "run_group": group, "run_tags": tags}
    given |= {"base_url": os.environ.get("WANDB_BASE_URL"), "mode": os.environ.get("WANDB_MODE")}
    if not project:
        raise ConfigError("logger.project", project, "must be the name of a W&B project")
    for key, value in given.items():
        if value is None:
            continue
        try:
            wandb.Settings(**{key: value})
        except wandb.errors.UsageError as refused:
            raise ConfigError(names[key], value, str(refused)) from refused
        except ValueError as refused:  # pydantic's, with several lines
            [error, *_] = refused.errors()
            raise ConfigError(names[key], value, error["msg"].removeprefix("Value error, ")) from refused


wandb_logger.check_settings = check_settings


def _started(offline: bool, save_dir: str, about: dict[str, Any]) -> tuple[wandb.Run, str]:
    """Start a run, or one that logs nothing if W&B's process fails. Returns it, and what to tell the user about it."""
    import wandb

    for retry in (True, False):
        try:
            return _start(offline, save_dir, about)
        except (wandb.errors.UsageError, ValueError):
            raise
        except Exception as error:
            # That of an earlier run, or one that a parent process has left the address of, may have ended since.
            _end_session()
            if not retry:
                return _nothing(), f"its process fails, only metrics.csv is written: {_first_line(error)}"


def _start(offline: bool, save_dir: str, about: dict[str, Any]) -> tuple[wandb.Run, str]:
    """Start a run. Returns it, and what to tell the user about it."""
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
    # The run gets an id of its own even if another run is open or WANDB_RUN_ID is set, unless an agent has set it.
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
        # `wandb sync --sync-all` would upload the remains as an empty run.
        for folder in Path(save_dir, "wandb").glob(f"*run-*-{run_id}"):
            if folder not in before:
                shutil.rmtree(folder, ignore_errors=True)
        raise


def why_offline(settings: wandb.Settings) -> str | None:
    """Why a run cannot log online, or None if it can."""
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
    """Whether the server answers an HTTP request within PROBE_SECONDS, with any status."""
    import requests  # comes with wandb

    answered = threading.Event()

    def ask() -> None:
        try:
            requests.head(url, timeout=PROBE_SECONDS, proxies=proxies, allow_redirects=False)
        except requests.exceptions.SSLError:
            pass  # the server has answered, and wandb has its own settings for certificates
        except requests.RequestException:
            return
        answered.set()

    # In a thread, since no timeout bounds a DNS query.
    probe = threading.Thread(target=ask, daemon=True)
    probe.start()
    probe.join(PROBE_SECONDS)
    return answered.is_set()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or repr(error)


def close_run(logger: WandbRun, results: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Give the run its summary and a table of completions for each prompt set, and end it."""
    sets = dict.fromkeys(row["prompt_set"] for row in rows)
    logger.log_tables({f"completions/{name}": [row for row in rows if row["prompt_set"] == name] for name in sets})
    logger.log_summary({**results.get("test", {}), **{k: v for k, v in results.items() if k != "test"}})
    logger.close(exit_code=0 if results["status"] == "finished" else 1)
