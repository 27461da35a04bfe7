"""Weights & Biases. Its client sends lines from a process of its own, or stores them if offline."""

import io
import pathlib
import secrets
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from absl import logging

from aced.metrics import jsonl
from aced.metrics.shown import Line, Outcome, RunCard, numbers, pictures

_FINISH_SECONDS = 20.0  # for what its process still has to send
_FLUSH_SECONDS = 1.0  # until its process has stored what it received


class WeightsAndBiases:
    """A run in a project of Weights & Biases.

    The client's own environment variables and `wandb login` decide on the account, the entity and
    the mode: WANDB_MODE=offline stores the run in the folder `wandb` of the workdir, for
    `wandb sync`.
    """

    def __init__(self, card: RunCard):
        self._card = card
        self._step = self._stored = -1  # steps may not decrease

    def open(self, run_id: str | None) -> str:
        """As in `Service`."""
        import wandb  # takes seconds

        settings = wandb.Settings(
            console="off",
            silent=True,  # its lines would break the progress line
            finish_timeout=_FINISH_SECONDS,
            x_transaction_log_flush_interval=_FLUSH_SECONDS,
        )
        is_online = wandb.setup().settings.mode == "online"
        if is_online and not wandb.login(prompt=False):  # it would ask on the terminal
            raise PermissionError("there is no API key; wandb login, or set WANDB_MODE=offline")
        card, folder = self._card, self._card.folder
        self._run = wandb.init(
            project=card.project,
            name=card.name,
            id=run_id or secrets.token_hex(6),
            resume="allow" if is_online else None,
            dir=tempfile.gettempdir() if jsonl.is_remote(folder) else str(folder),
            config=dict(card.settings),
            allow_val_change=True,
            settings=settings,
        )
        if is_online:
            logging.info("Metrics are sent to Weights & Biases: %s", self._run.url)
        else:
            stored = pathlib.Path(self._run.dir).parent
            logging.info("Metrics are stored for Weights & Biases; to send: wandb sync %s", stored)
        return self._run.id

    def write(self, lines: Sequence[Line]) -> int:
        """As in `Service`."""
        import wandb
        from PIL import Image

        for line in lines:
            values: dict[str, Any] = dict(numbers(line))
            for name, picture in pictures(line).items():  # of earlier steps than the last line
                pixels = Image.open(io.BytesIO(picture.jpeg))
                values[name] = wandb.Image(pixels, caption=f"step {line['step']:,}")
            if line["step"] > self._step:  # the lines of a step are stored when the next one begins
                self._step, self._stored = line["step"], self._step
            self._run.log(values, step=self._step)
        time.sleep(2 * _FLUSH_SECONDS)
        return self._stored

    def close(self, outcome: Outcome) -> None:
        """As in `Service`."""
        if outcome == "stopped":
            self._run.mark_preempting()
        self._run.finish(exit_code=int(outcome != "finished"))
