from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that finds its best file again when a run is resumed in another folder.

    The best file is copied when a run is resumed, but the paths in a checkpoint are those of the folder that it was
    written in.
    """

    @cached_property
    def state_key(self) -> str:
        return super().state_key  # Lightning asks for it at each hook, and would format it each time

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        path = Path(self.dirpath, f"{self.filename}.ckpt")
        if path.is_file():
            paths = dict.fromkeys(("best_model_path", "kth_best_model_path"), str(path))
            best = {str(path): state_dict["best_model_score"]}
            super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})
