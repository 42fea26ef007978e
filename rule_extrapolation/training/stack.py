"""Several runs of one configuration trained as one: their weights stacked, one forward and backward pass for all."""

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
from rule_extrapolation.training.language_modeling import end_of_training, logs_this_step
from rule_extrapolation.training.module import RuleExtrapolation


class Member:
    """One run of a stack, and the Trainer as its callbacks should see it: with its own metrics, loggers, checkpoints
    and end."""

    def __init__(self, name: str, module: RuleExtrapolation, callbacks: list[Callback], loggers: list[Logger]):
        self.name, self.module, self.loggers = name, module, loggers
        # Lightning's order.
        self.callbacks = sorted(callbacks, key=lambda callback: isinstance(callback, Checkpoint))
        self.rng_state = torch.get_rng_state()
        self.trainer: Trainer | None = None
        self.should_stop = False
        self.progress: dict[str, Any] = {}
        """The state of Lightning's fit loop when the member's training had come to its end."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trainer, name)

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        return self.own(self.trainer.callback_metrics)

    def own(self, metrics: dict[str, Any]) -> dict[str, Any]:
        prefix = f"{self.name}/"
        return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}

    def save_checkpoint(self, path: str | Path, weights_only: bool | None = None) -> None:
        self.trainer.lightning_module.saving = self
        self.trainer.save_checkpoint(path, weights_only)


class Stack(LightningModule):
    """Trains the members' models at once; each member's figures are logged with its name in front.

    The members' parameters become views of the stacked ones, so that everything but the training step itself sees
    them train as ever.
    """

    def __init__(self, members: list[Member], data: list[Any]):
        super().__init__()
        self.members, self.data = members, data
        self.kept = list(range(len(members)))
        """Whose rows of a batch are read: those of the members that still train."""
        self.names, parameters = zip(*members[0].module.model.named_parameters())
        stacked = [[dict(member.module.model.named_parameters())[name] for member in members] for name in self.names]
        self.weights = nn.ParameterList(torch.stack([*of_members]).detach() for of_members in stacked)
        for weight, parameter in zip(self.weights, parameters):
            weight.requires_grad_(parameter.requires_grad)
        self.tie()

    def tie(self) -> None:
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
                # Means over the members are there to be seen on the progress bar.
                self.log(f"Val/{name}", value, batch_size=count)

    def on_validation_epoch_end(self) -> None:
        for member in self.members:
            member.module.complete_prompts("Val")
            self.log_dict({f"{member.name}/{name}": v for name, v in member.module.prompt_accuracies.items()})
        accuracies = [member.module.prompt_accuracies for member in self.members]
        names = set.intersection(*map(set, accuracies))
        self.log_dict({name: sum(of_member[name] for of_member in accuracies) / len(accuracies) for name in names})

    def drop(self, leaving: list[Member]) -> None:
        """Go on without these members. They keep the weights that they have."""
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
        self.members, self.kept = [[of[i] for i in staying] for of in (self.members, self.kept)]
        self.tie()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint of the stack one of the member that saves."""
        member = self.saving
        i = self.members.index(member)

        def own(value: Any, weight: Tensor) -> Any:
            return value[i].clone() if isinstance(value, Tensor) and value.shape == weight.shape else value

        checkpoint["state_dict"] = {name: value.clone() for name, value in member.module.state_dict().items()}
        if "optimizer_states" not in checkpoint:  # weights only
            return
        [optimizer] = checkpoint["optimizer_states"]
        state = {
            k: {name: own(value, self.weights[k]) for name, value in of_weight.items()}
            for k, of_weight in optimizer["state"].items()
        }
        checkpoint["optimizer_states"] = [{**optimizer, "state": state}]
        states = {callback.state_key: callback.state_dict() for callback in member.callbacks}
        checkpoint["callbacks"] = {key: state for key, state in states.items() if state}
        member.module.on_save_checkpoint(checkpoint)
        checkpoint["rng_state"] = member.rng_state


class StackedBatches:
    """Batches of several runs side by side: (runs, B, T)."""

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
    """Gives each member's figures to its loggers."""

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
        """The loggers have them."""

    def save(self) -> None:
        for member in self.members:
            for logger in member.loggers:
                logger.save()


class MemberCallbacks(Checkpoint):
    """Calls the callbacks of the members that still train, and lets a member go when one of them stops it.

    It is a Checkpoint so that Lightning adds none.
    """

    def __init__(self, members: list[Member]):
        self.training, self.everyone = list(members), list(members)

    def forward(self, hook: str, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        ends = hook in ("on_fit_end", "on_exception", "teardown")
        # Backwards, since each one's handler of Ctrl-C was set over that of the one before.
        members = self.everyone[::-1] if ends else self.training
        if hook.startswith(("on_train_batch", "on_validation")):
            self.share_interrupt()
        interrupt = None
        for member in members:
            member.trainer = trainer
            try:
                for callback in member.callbacks:
                    getattr(callback, hook)(member, member.module, *args, **kwargs)
            except KeyboardInterrupt as stop:  # when the others have saved their checkpoints too
                interrupt = stop
        if interrupt:
            raise interrupt
        if hook in ("on_train_batch_start", "on_validation_end", "on_train_epoch_end"):
            self.let_go(trainer)
        if hook == "on_fit_end":
            for member in self.training:
                member.progress = deepcopy(trainer.fit_loop.state_dict())

    def share_interrupt(self) -> None:
        """Ctrl-C reaches the handler that was set last: one member's."""
        last = [callback for m in self.everyone for callback in m.callbacks if isinstance(callback, LastCheckpoint)]
        if any(callback.interrupted for callback in last):
            for callback in last:
                callback.interrupted = True

    def let_go(self, trainer: Trainer) -> None:
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
