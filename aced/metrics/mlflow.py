"""MLflow. Its client waits for the server, so it is called for several lines at a time."""

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from aced.metrics.shown import Line, Outcome, RunCard, numbers, pictures

# The limits of a request to a server.
_METRICS, _PARAMS, _KEY, _VALUE = 1000, 100, 250, 6000
_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MLflow:
    """A run in an experiment of MLflow, where MLFLOW_TRACKING_URI is: a server, or a database."""

    def __init__(self, card: RunCard):
        self._card = card
        self._run_id: str | None = None
        self._has_params = True

    def open(self, run_id: str | None) -> str:
        """As in `Service`."""
        from mlflow import MlflowClient  # takes seconds

        self._client = client = MlflowClient()
        run_id = run_id or self._run_id  # of a call that failed after it had created a run
        if run_id is None:
            project = self._card.project
            found = client.get_experiment_by_name(project)
            experiment = found.experiment_id if found else client.create_experiment(project)
            run = client.create_run(experiment, run_name=self._card.name)
            self._has_params = False
        else:
            client.update_run(run_id, status="RUNNING")
            run = client.get_run(run_id)
        self._run_id, self._start = run.info.run_id, run.info.start_time
        if not self._has_params:
            self._log_params()
            self._has_params = True
        logging.info("Metrics are sent to MLflow: %s, run %s", client.tracking_uri, self._run_id)
        return self._run_id

    def _log_params(self) -> None:
        """Logs the settings, which MLflow does not let change later; warns of those it refuses."""
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        params = [Param(key, value) for key, value in params_of(self._card.settings).items()]
        for part in _pieces(params, _PARAMS):
            try:
                self._client.log_batch(self._run_id, params=part)
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":  # no network, for example
                    raise
                logging.warning("MLflow has refused %d settings: %s", len(part), error)

    def write(self, lines: Sequence[Line]) -> int:
        """As in `Service`."""
        from mlflow.entities import Metric
        from PIL import Image

        metrics = []
        for line in lines:
            # A line that is sent again has the same time, by which MLflow recognises it.
            time = self._start + round(1000 * line.get("wall/seconds", 0.0))
            metrics += [
                Metric(_key(name), value, time, line["step"])
                for name, value in numbers(line).items()
            ]
        for part in _pieces(metrics, _METRICS):
            self._client.log_batch(self._run_id, metrics=part)
        for line in lines:
            for name, picture in pictures(line).items():
                pixels = Image.open(io.BytesIO(picture.jpeg))
                self._client.log_image(self._run_id, pixels, key=_key(name), step=line["step"])
        return max(line["step"] for line in lines)

    def close(self, outcome: Outcome) -> None:
        """As in `Service`."""
        self._client.set_terminated(self._run_id, _STATUS[outcome])


def params_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """The settings as MLflow accepts them; names and values beyond its limits are cut."""
    texts = {_key(k): v if isinstance(v, str) else json.dumps(v) for k, v in settings.items()}
    return {key: text[:_VALUE] for key, text in texts.items()}


def _key(name: str) -> str:
    """A name with the characters and the length that MLflow accepts."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:_KEY]


def _pieces(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
