"""Sends the entries of a tracking spool to MLflow, and notes what MLflow does not take."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import posixpath
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipelines.base.storage import Store

log = logging.getLogger(__name__)
KEY, PARENT = "fss.run", "mlflow.parentRunId"
REFUSED = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE")
LONGEST = 250  # characters of a name
METRICS, TAGS = 1000, 100  # at most in one request
Entry = dict[str, Any]
T = TypeVar("T")


def metric_names(names: Sequence[str]) -> list[str]:
    """Names as MLflow takes them, each once: other characters become `_`, and a name that two would share gets a hash.

    MLflow takes letters, digits, `_-.:/` and spaces, no path that is not normal (`a//b`, `../a`), and 250 characters.
    """
    found: list[str] = []
    for name in names:
        clean = re.sub(r"[^\w\-./: ]", "_", name)
        if clean != posixpath.normpath(clean) or clean.startswith((".", "/")):
            clean = "/".join(part.strip(".") or "_" for part in clean.split("/") if part) or "_"
        if len(clean) > LONGEST or clean in found:
            clean = f"{clean[:LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        found.append(clean)
    return found


class Sender:
    """Sends entries to MLflow. Every operation can be repeated without harm."""

    def __init__(self, uri: str, experiment: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the spool is the retry
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        self.uri, self.experiment = uri, experiment
        self._client: Any = None
        self._experiment_id, self._takes_files = "", True
        self._runs: dict[str, str] = {}
        self._sent: dict[tuple[str, str], set[int]] = {}
        self._notes: list[str] = []
        self._lost: list[str] = []

    @property
    def client(self) -> Any:
        """The connected MLflow client. The experiment is created on the first use.

        A deleted experiment keeps its name in MLflow and takes no runs: entries go to one with the next free name.
        """
        if self._client is None:
            from mlflow.tracking import MlflowClient

            client = MlflowClient(self.uri)
            name, number = self.experiment, 1
            while (found := client.get_experiment_by_name(name)) and found.lifecycle_stage != "active":
                number += 1
                name = f"{self.experiment}-{number}"
            if number > 1:
                self._note(f"the experiment {self.experiment!r} was deleted in MLflow; runs are in {name!r}")
            self._experiment_id = found.experiment_id if found else client.create_experiment(
                name, artifact_location=self._artifacts or None)
            where = found.artifact_location if found else self._artifacts
            self._takes_files = not self._artifacts or str(where).startswith(self._artifacts)
            self._client = client
        return self._client

    @property
    def _artifacts(self) -> str:
        """URI for artifacts: beside a SQLite file (MLflow's default is the working folder); "" with a server."""
        if not self.uri.startswith("sqlite:///"):
            return ""
        return (Path(self.uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()

    def told(self) -> list[str]:
        """Lines for people: where runs went instead, and how many entries were lost, with the first reason."""
        lost = [f"MLflow did not take {len(self._lost)} entries, the first: {self._lost[0]}"] if self._lost else []
        return [*self._notes, *lost]

    def deliver(self, entry: Entry) -> None:
        """Send an entry. One that MLflow will never accept is noted and skipped, so that it does not block the rest.

        Raises what MLflow raises for anything else, such as a server that is away.
        """
        try:
            self._send(entry)
        except ImportError as error:  # such as boto3, for a server whose clients write artifacts to a bucket themselves
            self._lose(entry, error)
        except Exception as error:
            if not _is_refusal(error):
                raise
            self._lose(entry, error)

    def _lose(self, entry: Entry, error: Exception) -> None:
        reason = " ".join(str(error).split())[:200]
        log.warning("an entry was not sent (%s %s): %s", entry["op"], entry.get("key", ""), reason)
        self._lost.append(f"{entry['op']} of {entry.get('key', '')}: {reason}")

    def _note(self, line: str) -> None:
        if line not in self._notes:
            log.warning("%s", line)
            self._notes.append(line)

    def _send(self, entry: Entry) -> None:
        """Send an entry, and once more if its experiment or its run was deleted in MLflow meanwhile."""
        send = getattr(self, f"_{entry['op']}")
        try:
            send(entry)
        except Exception as error:
            if not _is_refusal(error) or not self._is_gone(entry.get("key", "")):
                raise
            send(entry)

    def _is_gone(self, key: str) -> bool:
        """Whether the experiment or the run of an entry was deleted; it is forgotten then, and made anew."""
        if self.client.get_experiment(self._experiment_id).lifecycle_stage != "active":
            self._client = None
            self._runs.clear()
            return True
        run_id = self._runs.get(key, "")
        if not run_id or self.client.get_run(run_id).info.lifecycle_stage == "active":
            return False
        self._note(f"the run {key!r} was deleted in MLflow; the rest of it is in a new run of this name")
        del self._runs[key]
        return True

    def find(self, key: str) -> str:
        """MLflow's run id of the run with the name `key`, "" where there is none."""
        if key not in self._runs:
            client = self.client
            found = client.search_runs([self._experiment_id], _equal(f"tags.`{KEY}`", key))
            same = [run for run in found if run.data.tags[KEY] == key]
            if not same:
                return ""
            self._runs[key] = same[0].info.run_id
        return self._runs[key]

    def _run_id(self, key: str, time_ms: int) -> str:
        """MLflow's run id of the run with the name `key`, which is created where it is missing."""
        if not (run_id := self.find(key)):
            run = self.client.create_run(self._experiment_id, start_time=time_ms, run_name=key,
                                         tags={KEY: key, "mlflow.runName": key})
            run_id = self._runs[key] = run.info.run_id
        return run_id

    def _run(self, entry: Entry) -> None:
        from mlflow.entities import Param

        run_id, tags = self._run_id(entry["key"], entry["t"]), dict(entry["tags"])
        if entry["parent"] and (parent := self.find(entry["parent"])):
            tags[PARENT] = parent
        known = self.client.get_run(run_id).data.params
        given = dict(zip(metric_names(list(entry["params"])), entry["params"].values(), strict=True))
        self.client.log_batch(run_id, tags=_tags(tags))
        for params in _pieces([Param(k, v) for k, v in given.items() if k not in known], TAGS):
            self.client.log_batch(run_id, params=params)
        self.client.update_run(run_id, status="RUNNING")

    def _metrics(self, entry: Entry) -> None:
        from mlflow.entities import Metric

        run_id, step = self._run_id(entry["key"], entry["t"]), entry["step"]
        new = {k: v for k, v in entry["values"].items() if step not in self._known(run_id, k)}
        for batch in _pieces([Metric(k, float(v), entry["t"], step) for k, v in new.items()], METRICS):
            self.client.log_batch(run_id, metrics=batch)
            for metric in batch:
                self._sent[run_id, metric.key].add(step)

    def _known(self, run_id: str, name: str) -> set[int]:
        """Steps that MLflow already has of a metric of a run."""
        if (run_id, name) not in self._sent:
            history = self.client.get_metric_history(run_id, name)
            self._sent[run_id, name] = {m.step for m in history}
        return self._sent[run_id, name]

    def _tags(self, entry: Entry) -> None:
        self.client.log_batch(self._run_id(entry["key"], entry["t"]), tags=_tags(entry["values"]))

    def _end(self, entry: Entry) -> None:
        if entry["status"] == "KILLED" and not self.find(entry["key"]):
            return  # an earlier command left the run open, and its experiment is gone
        self.client.set_terminated(self._run_id(entry["key"], entry["t"]), entry["status"], end_time=entry["t"])

    def _artifact(self, entry: Entry) -> None:
        run_id, source = self._run_id(entry["key"], entry["t"]), Store(entry["url"])
        if not self._takes_files or not source.exists():
            log.warning("not attached to run %s: %s", entry["key"], entry["url"])
            return
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / source.name
            file.write_bytes(source.read_bytes())
            self.client.log_artifact(run_id, str(file))

    def _register(self, entry: Entry) -> None:
        version = self._version(entry, source=entry["source"])
        if version is None:
            version = self.client.create_model_version(entry["model"], source=entry["source"], tags=_texts(entry),
                                                       run_id=self.find(entry["key"]) or None)
        self.client.set_registered_model_alias(entry["model"], entry["alias"], version.version)

    def _version(self, entry: Entry, source: str = "") -> Any:
        """The version of an entry's model with its tags (and `source`), None for none; the model is made."""
        client, name = self.client, entry["model"]
        if not any(m.name == name for m in client.search_registered_models(_equal("name", name))):
            client.create_registered_model(name)
        same = (v for v in client.search_model_versions(_equal("name", name))
                if v.name == name and v.tags == _texts(entry) and source in ("", v.source))
        return next(same, None)

    def _model(self, entry: Entry) -> None:
        """Log a model, then register it. What a kill left of a model that was not registered is used again."""
        run_id, version = self._run_id(entry["key"], entry["t"]), self._version(entry)
        if version is None and not self._takes_files:
            log.warning("the model %s is not logged: MLflow keeps no files here", entry["model"])
            return
        if version is None:
            logged = self._logged(entry, run_id)
            version = self.client.create_model_version(entry["model"], source=logged.artifact_location, run_id=run_id,
                                                       tags=_texts(entry), model_id=logged.model_id)
        self.client.set_registered_model_alias(entry["model"], entry["alias"], version.version)

    def _logged(self, entry: Entry, run_id: str) -> Any:
        """The logged model of an entry, with its files."""
        known = self.client.search_logged_models([self._experiment_id], _equal("source_run_id", run_id))
        model = next((m for m in known if m.tags.items() >= _texts(entry).items()), None)
        model = model or self.client.create_logged_model(
            self._experiment_id, name=entry["model"], source_run_id=run_id, tags=_texts(entry), model_type="pyfunc")
        with tempfile.TemporaryDirectory() as place:
            write_pyfunc(Path(place) / "model", entry, model_id=model.model_id, run_id=run_id)
            self.client.log_model_artifacts(model.model_id, str(Path(place) / "model"))
        return self.client.finalize_logged_model(model.model_id, "READY")


def write_pyfunc(folder: Path, entry: Mapping[str, Any], **ids: Any) -> None:
    """Write a model of the flavour pyfunc, with an entry's `loader`, `data` and `signature`, into a new folder."""
    import mlflow

    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow wants an example of the input: photos in every model
        data = Path(place) / "bundle.json"
        data.write_text(json.dumps(entry["data"], indent=1))
        mlflow.pyfunc.save_model(
            folder, loader_module=entry["loader"], data_path=str(data), pip_requirements=["fss"],
            signature=mlflow.models.ModelSignature.from_dict(entry["signature"]),
            mlflow_model=mlflow.models.Model(**ids))


def _texts(entry: Entry) -> dict[str, str]:
    return {k: str(v) for k, v in entry["tags"].items()}


def _is_refusal(error: Exception) -> bool:
    """Whether an error comes from the entry itself and would come again."""
    return getattr(error, "error_code", "") in REFUSED or isinstance(error, TypeError | ValueError)


def _equal(column: str, text: str) -> str:
    """An MLflow filter for one text. Quotes, which have no escape, match anything: callers compare again."""
    return f"{column} = '{text}'" if "'" not in text else f"{column} LIKE '{text.replace(chr(39), '_')}'"


def _pieces(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Parts of at most `size` values."""
    return (values[first : first + size] for first in range(0, len(values), size))


def _tags(values: Mapping[str, Any]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(k, str(v)[:5000]) for k, v in values.items()]
