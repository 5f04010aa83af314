"""MLflow: the server that MLFLOW_TRACKING_URI names; without one, the file mlflow.db beside the runs."""

import io
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from toco_lab.config import Config
from toco_lab.runs.run_dir import RunDir

EXPERIMENT = "toco_lab"  # unless the variable MLFLOW_EXPERIMENT_NAME names another


class MLflow:
    """See `Tracker`. It uses no active run: what a script of yours logs beside it stays apart."""

    def start(self, run: RunDir, cfg: Config, record: Mapping[str, Any]) -> dict[str, Any]:
        """See `Tracker`. A run that is not there any more, or is on another server, is opened anew."""
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        folder = run.path.resolve().parent
        address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
        self._client, self._id = MlflowClient(tracking_uri=address), ""
        if "id" in record:
            try:
                self._id = self._client.get_run(record["id"]).info.run_id
                self._client.update_run(self._id, status="RUNNING")
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        if not self._id:
            self._id = self._new_run(run, cfg)
        local = f"mlflow ui --backend-store-uri {address}"
        return {"id": self._id, "where": local if "://" not in address or address.startswith("sqlite") else address}

    def _new_run(self, run: RunDir, cfg: Config) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        if found is None:
            here = None if "MLFLOW_TRACKING_URI" in os.environ else run.path.resolve().with_name("mlartifacts").as_uri()
            experiment = self._client.create_experiment(name, artifact_location=here)
        else:
            experiment = found.experiment_id
        tags = {"folder": str(run.path), "group": run.path.resolve().parent.name}
        new_id = self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
        params = [Param(name, str(value)) for name, value in asdict(cfg).items()]
        for first in range(0, len(params), 100):  # as many as MLflow takes at a time
            self._client.log_batch(new_id, params=params[first : first + 100])
        return new_id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def curve(self, name: str, points: Mapping[int, float]) -> None:
        """See `Tracker`. The layer stands on the axis of steps."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(f"{name}_per_layer", value, now, layer) for layer, value in points.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def picture(self, step: int, name: str, png: bytes) -> None:
        """See `Tracker`."""
        from PIL import Image

        self._client.log_image(self._id, Image.open(io.BytesIO(png)), f"pictures/{name}_{step:08d}.png")

    def table(self, name: str, frame: pd.DataFrame) -> None:
        """See `Tracker`."""
        self._client.log_text(self._id, frame.to_csv(index=False), f"tables/{name}.csv")

    def close(self, *, done: bool) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._id, "FINISHED" if done else "KILLED")


new = MLflow
