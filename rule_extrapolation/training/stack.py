"""Several runs of one configuration trained together: their weights are stacked, and share each forward and backward
pass."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.func import functional_call

from rule_extrapolation.data.grammar_data import TensorBatches
from rule_extrapolation.training.callbacks.last_checkpoint import LastCheckpoint
from rule_extrapolation.training.decay import is_exempt
from rule_extrapolation.training.language_modeling import end_of_training, logs_this_step
from rule_extrapolation.training.module import RuleExtrapolation


class Member:
    """One run of a stack. Its callbacks take it for their Trainer, with the run's own metrics, loggers and checkpoints,
    and its own decision to stop."""

    def __init__(self, name: str, module: RuleExtrapolation, callbacks: list[Callback], loggers: list[Logger]):
        self.name, self.module, self.loggers = name, module, loggers
        # Lightning calls checkpoint callbacks last.
        self.callbacks = sorted(callbacks, key=lambda callback: isinstance(callback, Checkpoint))
        self.rng_state = torch.get_rng_state()
        self.trainer: Trainer | None = None
        self.should_stop = False
        self.progress: dict[str, Any] = {}
        """The state of Lightning's fit loop at the end of the member's training."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trainer, name)

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        return self.own(self.trainer.callback_metrics)

    def own(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """The member's metrics out of the stack's, under their usual names."""
        prefix = f"{self.name}/"
        return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}

    def save_checkpoint(self, path: str | Path, weights_only: bool | None = None) -> None:
        self.trainer.lightning_module.saving = self
        self.trainer.save_checkpoint(path, weights_only)


class Stack(LightningModule):
    """Train the members' models together. Each member's metrics are logged with its name in front.

    The members' parameters become views of the stacked ones, so that everything except the training step can treat a
    member as a run of its own.
    """

    def __init__(self, members: list[Member], data: list[Any]):
        super().__init__()
        self.members, self.data, self.task = members, data, members[0].module.task
        self.kept = list(range(len(members)))
        """The numbers of the members that still train, which are the rows to read of a batch."""
        self.names, first = zip(*members[0].module.model.named_parameters())
        stacked = [[dict(member.module.model.named_parameters())[name] for member in members] for name in self.names]
        self.weights = nn.ParameterList(torch.stack(parameters).detach() for parameters in stacked)
        for weight, parameter in zip(self.weights, first):
            weight.requires_grad_(parameter.requires_grad)
            weight._no_weight_decay = is_exempt(parameter)
        self.tie()

    def tie(self) -> None:
        """Make the members' parameters views of the stacked ones."""
        for i, member in enumerate(self.members):
            for weight, parameter in zip(self.weights, member.module.model.parameters()):
                parameter.data = weight.data[i]

    def train_dataloader(self) -> StackedBatches:
        return StackedBatches([data.train_dataloader() for data in self.data])

    def val_dataloader(self) -> StackedBatches:
        return StackedBatches([data.val_dataloader() for data in self.data])

    def configure_optimizers(self) -> dict[str, Any]:
        first = self.members[0].module
        optimizer = first.make_optimizer(self.weights)
        return {"optimizer": optimizer, "lr_scheduler": first.make_scheduler(optimizer)}

    def forward(self, tokens: Tensor) -> Tensor:
        """(members, B, T) long -> (members, B, num_tokens, T) logits."""
        model = self.members[0].module.model
        weights = dict(zip(self.names, self.weights))
        return torch.vmap(lambda weights, tokens: functional_call(model, weights, (tokens,)))(weights, tokens)

    def train(self, mode: bool = True) -> Stack:
        for member in self.members:
            member.module.train(mode)
        return super().train(mode)

    def on_fit_start(self) -> None:
        for member in self.members:
            member.module.to(self.device)
        self.tie()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        batch = batch[self.kept]
        losses = self.members[0].module.losses_of(self(batch[..., :-1]), batch[..., 1:])
        objective = losses.pop("objective")
        if logs_this_step(self.trainer):
            for i, member in enumerate(self.members):
                self.log_dict({f"{member.name}/Train/{name}": loss[i] for name, loss in losses.items()})
        return objective.sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        batch = batch[self.kept]
        for member, logits, targets in zip(self.members, self(batch[..., :-1]), batch[..., 1:]):
            for name, (value, count) in member.module.evaluate_batch(logits, targets).items():
                self.log(f"{member.name}/Val/{name}", value, batch_size=count)
                # For the progress bar, which shows the means over the members.
                self.log(f"Val/{name}", value, batch_size=count)

    def on_validation_epoch_end(self) -> None:
        for member in self.members:
            member.module.complete_prompts("Val")
            self.log_dict({f"{member.name}/{name}": v for name, v in member.module.prompt_accuracies.items()})
        accuracies = [member.module.prompt_accuracies for member in self.members]
        names = set.intersection(*map(set, accuracies))
        self.log_dict({name: sum(each[name] for each in accuracies) / len(accuracies) for name in names})

    def drop(self, leaving: list[Member]) -> None:
        """Continue without these members, which keep their current weights."""
        staying = [i for i, member in enumerate(self.members) if member not in leaving]
        [optimizer] = self.trainer.optimizers
        state = optimizer.state
        for weight in self.weights:
            state[weight] = {
                name: value[staying] if value.shape == weight.shape else value for name, value in state[weight].items()
            }
            gradient = None if weight.grad is None else weight.grad[staying]
            weight.data, weight.grad = weight.data[staying], None
            weight.grad = gradient
        self.members, self.kept = [self.members[i] for i in staying], [self.kept[i] for i in staying]
        self.tie()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Turn the stack's checkpoint into one of the member that is saving."""
        member = self.saving
        i = self.members.index(member)

        def own(value: Any, weight: Tensor) -> Any:
            return value[i].clone() if isinstance(value, Tensor) and value.shape == weight.shape else value

        checkpoint["state_dict"] = {name: value.clone() for name, value in member.module.state_dict().items()}
        if "optimizer_states" not in checkpoint:  # weights only
            return
        [optimizer] = checkpoint["optimizer_states"]
        [stacked] = self.trainer.optimizers
        weights = [weight for group in stacked.param_groups for weight in group["params"]]
        state = {
            k: {name: own(value, weights[k]) for name, value in values.items()}
            for k, values in optimizer["state"].items()
        }
        checkpoint["optimizer_states"] = [{**optimizer, "state": state}]
        states = {callback.state_key: callback.state_dict() for callback in member.callbacks}
        checkpoint["callbacks"] = {key: state for key, state in states.items() if state}
        member.module.on_save_checkpoint(checkpoint)
        checkpoint["rng_state"] = member.rng_state


class StackedBatches:
    """The batches of several runs, stacked to (runs, B, T)."""

    def __init__(self, loaders: list[TensorBatches]):
        self.loaders = loaders

    def __len__(self) -> int:
        return len(self.loaders[0])

    def __iter__(self) -> Iterator[Tensor]:
        return map(torch.stack, zip(*self.loaders))

    def state_dict(self) -> dict[str, int]:
        return self.loaders[0].state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        for loader in self.loaders:
            loader.load_state_dict(state)


class MemberLoggers(Logger):
    """Pass each member's metrics to its loggers."""

    name = version = None

    def __init__(self, members: list[Member]):
        super().__init__()
        self.members = members

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        common = {name: value for name, value in metrics.items() if "/" not in name}
        for member in self.members:
            if own := member.own(metrics):
                for logger in member.loggers:
                    logger.log_metrics({**own, **common}, step)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The members' loggers already have them."""

    def save(self) -> None:
        for member in self.members:
            for logger in member.loggers:
                logger.save()


class MemberCallbacks(Checkpoint):
    """Call the callbacks of the members that still train, and drop a member from the stack once a callback stops it.

    This is a Checkpoint so that Lightning does not add one.
    """

    def __init__(self, members: list[Member]):
        self.training, self.everyone = list(members), list(members)

    def forward(self, hook: str, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        ends = hook in ("on_fit_end", "on_exception", "teardown")
        # In reverse, since each member's SIGINT handler has replaced that of the member before.
        members = self.everyone[::-1] if ends else self.training
        if hook.startswith(("on_train_batch", "on_validation")):
            self.share_interrupt()
        interrupt = None
        for member in members:
            member.trainer = trainer
            try:
                for callback in member.callbacks:
                    getattr(callback, hook)(member, member.module, *args, **kwargs)
            except KeyboardInterrupt as stop:
                interrupt = stop  # raised below, once the other members have saved their checkpoints too
        if interrupt:
            raise interrupt
        if hook in ("on_train_batch_start", "on_validation_end", "on_train_epoch_end"):
            self.drop_stopped(trainer)
        if hook == "on_fit_end":
            for member in self.training:
                member.progress = deepcopy(trainer.fit_loop.state_dict())

    def share_interrupt(self) -> None:
        """Tell all members of a Ctrl-C, which reaches only the handler that was set last."""
        callbacks = [callback for member in self.everyone for callback in member.callbacks]
        checkpoints = [callback for callback in callbacks if isinstance(callback, LastCheckpoint)]
        if any(callback.interrupted for callback in checkpoints):
            for callback in checkpoints:
                callback.interrupted = True

    def drop_stopped(self, trainer: Trainer) -> None:
        """End the training of the members that their callbacks have stopped."""
        leaving = [member for member in self.training if member.should_stop]
        for member in leaving:
            for hook in ("on_train_epoch_end", "on_train_end"):
                for callback in member.callbacks:
                    getattr(callback, hook)(member, member.module)
            member.progress = end_of_training(trainer, trainer.current_epoch)
        self.training = [member for member in self.training if not member.should_stop]
        if leaving and self.training:
            trainer.lightning_module.drop(leaving)
        trainer.should_stop |= not self.training


def forwarding(hook: str) -> Any:
    def forward(self: MemberCallbacks, trainer: Trainer, module: Stack, *args: Any, **kwargs: Any) -> None:
        self.forward(hook, trainer, *args, **kwargs)

    return forward


for hook in vars(Callback):
    if (hook.startswith("on_") and "checkpoint" not in hook) or hook in ("setup", "teardown"):
        setattr(MemberCallbacks, hook, forwarding(hook))
