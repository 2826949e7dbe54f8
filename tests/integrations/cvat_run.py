"""What the test of CVAT runs in cvat-sdk's environment: cvat-cli's commands, one after another, in one process.

Arguments: URL of the server, ids of task and function, supports, supports of a class that the task lacks, a bundle,
and a folder for supports from the task.
"""

from __future__ import annotations

import logging
import os
import sys

from cvat_cli.__main__ import main
from cvat_sdk import make_client
from cvat_sdk.auto_annotation import BadFunctionError

from fss_models.errors import FssError
from pipelines.integrations.cvat_supports import write_supports

MODULE = "pipelines.integrations.cvat"


def parameters(**given: str) -> list[str]:
    """The function's part of a command line, such as `-p threshold=float:0.6`."""
    return ["--function-module", MODULE, *(word for name, value in {**given, "device": "str:cpu"}.items()
                                           for word in ("-p", f"{name}={value}"))]


def run(url: str, task: str, function: str, supports: str, other: str, bundle: str,
        written: str) -> None:
    """Run the commands; lines of this file's own begin with `--`."""
    plain = {"supports": f"str:{supports}", "bundle": f"str:{bundle}"}
    full = {**plain, "attributes": "bool:true", "instances": "str:pieces"}
    annotate = ["task", "auto-annotate", task]
    for name, command in {
        "masks": [*annotate, *parameters(**plain)],
        "threshold": [*annotate, "--conf-threshold", "1", *parameters(**plain)],
        "polygons": [*annotate, "--conv-mask-to-poly", *parameters(**plain, threshold="float:0.6")],
        "calibrated": [*annotate, *parameters(**{**full, "bundle": "str:shipped"})],
        "create": ["function", "create-native", "balls", *parameters(**full)],
        "agent": ["function", "run-agent", function, "--burst", *parameters(**full)],
        "other": [*annotate, *parameters(**{**plain, "supports": f"str:{other}"})],
        "mistake": [*annotate, *parameters(**plain, url="str:http://127.0.0.1:9")],
    }.items():
        logging.getLogger("cvat_cli.__main__").handlers.clear()
        try:
            print("--", name, main(["--server-host", url, *command]), flush=True)
        except (BadFunctionError, FssError) as error:
            print("--", name, error, flush=True)
    with make_client(url, access_token=os.environ["CVAT_ACCESS_TOKEN"]) as client:
        print("-- supports", write_supports(client, int(task), written), flush=True)


if __name__ == "__main__":  # an agent's worker imports this file again
    run(*sys.argv[1:])
