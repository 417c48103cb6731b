"""Builds the CPU image, runs it as compose.yaml says, and asks it. `make docker-check` runs this.

It takes Linux, root and podman. Images and containers live in a temporary folder, and go with it. Where no registry of
images can be reached, `--debian` makes a stand-in for the base image from Debian's packages, with debootstrap.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detr_export import Predictor

HERE = Path(__file__).parent
DOCKERFILE, COMPOSE_FILE = HERE / "cpu.Dockerfile", HERE / "compose.yaml"
IMAGE, CONTAINER, ADDRESS = "detr-export:cpu", "detr-export_serve_1", "http://127.0.0.1:8000"
GRACE, PATIENCE = 30, 60  # seconds: `--grace` in compose.yaml; how long the server may take to start
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
# What the process in the container may not be, have, or write.
INSIDE = """
import importlib.util, os, shutil
assert os.getuid() == 10001, os.getuid()
assert not [name for name in ("torch", "onnx", "transformers") if importlib.util.find_spec(name)]
assert not [name for name in ("cc", "gcc", "ld", "make") if shutil.which(name)]
assert not [name for name in ("/", "/opt/detr-export/bin", "/models", "/data") if os.access(name, os.W_OK)]
status = dict(line.split(":", 1) for line in open("/proc/1/status"))
assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, status
assert int(status["NoNewPrivs"]) == 1, status
"""


@dataclass(frozen=True)
class Containers:
    """podman and podman-compose, with images in a folder of their own."""

    folder: Path
    compose: Path  # the program podman-compose
    models: Path  # the folder that compose.yaml mounts

    @property
    def program(self) -> Path:
        return self.folder / "podman"

    def __enter__(self) -> Containers:
        podman = shutil.which("podman")
        if podman is None:
            raise FileNotFoundError("podman is not installed; on Debian: apt-get install podman crun")
        places = f"--root {self.folder}/images --runroot {self.folder}/run --cgroup-manager cgroupfs"
        self.program.write_text(f'#!/bin/sh\nexec {podman} {places} "$@"\n')
        self.program.chmod(0o755)
        # crun refuses a machine that has both kinds of cgroups. `make` gave this process mounts of its own.
        subprocess.run(["umount", "-l", "/sys/fs/cgroup/unified"], stderr=subprocess.DEVNULL, check=False)
        return self

    def __exit__(self, *_: object) -> None:
        self.up_or_down("down", "--timeout", "0")
        self.run("rmi", "--all", "--force")
        subprocess.run(["umount", "-l", self.folder / "images/overlay"], stderr=subprocess.DEVNULL, check=False)

    def run(self, *arguments: str) -> str:
        """What podman printed."""
        return run(str(self.program), *arguments)

    def up_or_down(self, *arguments: str) -> None:
        """Runs podman-compose with compose.yaml."""
        limits = [f"--podman-run-args={limit}" for limit in rlimits()]
        os.environ["MODELS"] = str(self.models)
        run(str(self.compose), "--podman-path", str(self.program), *limits, "--file", str(COMPOSE_FILE), *arguments)


def run(*command: str) -> str:
    """What a program printed; all of it is shown if it failed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout


def rlimits() -> list[str]:
    """Lower than podman's own, which not every root may have."""
    hard = {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))[1] for name in ("nofile", "nproc")}
    return [f"--ulimit={name}={min(limit, 4096)}" for name, limit in hard.items() if limit != resource.RLIM_INFINITY]


@contextmanager
def step(name: str) -> Iterator[None]:
    """Says how long the block took."""
    began = time.monotonic()
    yield
    print(f"{time.monotonic() - began:6.1f} s  {name}", flush=True)


def make_base(containers: Containers) -> None:
    """A stand-in for the base image: the same release of Debian, with Debian's Python and pip."""
    name = re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(), re.MULTILINE)[-1]
    release = name.rpartition("-")[2]
    root = containers.folder / "root"
    packages = "--include=python3-venv,python3-pip,ca-certificates"
    run("debootstrap", "--variant=minbase", packages, release, str(root))
    archive = containers.folder / "root.tar"
    run("tar", "--directory", str(root), "--create", "--file", str(archive), ".")
    containers.run("import", str(archive), f"docker.io/library/{name}")
    shutil.rmtree(root)
    archive.unlink()


def build(containers: Containers) -> None:
    """The image, with the package index of this machine."""
    index = [f"--build-arg={name}" for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL") if name in os.environ]
    trusted = [f"--volume={CERTIFICATES}:{CERTIFICATES}:ro"] if Path(CERTIFICATES).exists() else []
    common = ["--format=docker", "--network=host", *rlimits(), *trusted, *index]
    containers.run("build", *common, f"--file={DOCKERFILE}", f"--tag={IMAGE}", str(HERE.parent))


def wait_until_healthy() -> None:
    """Returns when `/health` answers with 200."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(f"{ADDRESS}/health", timeout=5):
                return
        except OSError:
            if time.monotonic() > end:
                raise
        time.sleep(0.2)


def ask(body: bytes) -> tuple[int, Any]:
    """Status and document of a prediction."""
    request = urllib.request.Request(f"{ADDRESS}/predict", body, {"Content-Type": "image/jpeg"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, json.load(refused)


def check(containers: Containers, model: Path, picture: Path) -> None:
    """Starts the server, looks at it from inside and outside, and stops it."""
    with Predictor.load(model) as predictor:
        expected = json.loads(json.dumps(predictor.detect(picture).to_dict()))
    assert expected["detections"], f"{picture} has nothing to find"
    with step("compose up, until it is healthy"):
        containers.up_or_down("up", "--detach", "--no-build")
        wait_until_healthy()
    with step("look inside"):
        containers.run("exec", CONTAINER, "python3", "-c", INSIDE)
        containers.run("healthcheck", "run", CONTAINER)
    with step("ask"):
        answer = ask(picture.read_bytes())
        assert answer == (200, expected), (answer, expected)
        assert ask(b"no picture")[0] == 400
    with step("SIGTERM"):
        began = time.monotonic()
        containers.run("stop", "--time", str(2 * GRACE), CONTAINER)
        assert time.monotonic() - began < GRACE, "it took longer than --grace"
        code = containers.run("inspect", "--format", "{{.State.ExitCode}}", CONTAINER).strip()
        assert code == "0", f"exit code {code}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="an ONNX file with the name model.onnx")
    parser.add_argument("picture", type=Path, help="a JPEG file")
    parser.add_argument("--compose", type=Path, required=True, help="the program podman-compose")
    parser.add_argument("--debian", action="store_true", help="make the base image from Debian's packages")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="detr-export-docker-", dir="/var/tmp") as folder,
        Containers(Path(folder), options.compose, options.model.resolve().parent) as containers,
    ):
        if options.debian:
            with step("base image, from Debian's packages"):
                make_base(containers)
        with step("build"):
            build(containers)
        check(containers, options.model, options.picture)
        size = int(containers.run("image", "inspect", "--format", "{{.Size}}", IMAGE))
        print(f"{IMAGE} has {size / 1e6:.0f} MB, and answers with the numbers of Predictor")


if __name__ == "__main__":
    try:
        main()
    except (AssertionError, OSError, RuntimeError) as error:
        sys.exit(f"docker-check failed: {error}")
