"""Makes a checkpoint folder of a StyleGAN2 that somebody published (rosinality's, pSp's or NVIDIA's layout).

    python scripts/convert_stylegan2.py stylegan2-ffhq-config-f.pt -o runs/ffhq1024 --name stylegan2.ffhq1024 \
        --licence "Nvidia Source Code License-NC"
    facezoo generate --model runs/ffhq1024 -o people/

The file must hold tensors only (safetensors, or a torch file); nothing in it is executed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from facezoo.errors import FacezooError
from facezoo.hub.manifest import write_checkpoint
from facezoo.methods.stylegan2.published import published_manifest, read_published


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="the published file")
    parser.add_argument("-o", "--output", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--name", required=True, help="stylegan2.TAG")
    parser.add_argument("--licence", required=True, help="under which the weights were published")
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint that is there")
    arguments = parser.parse_args(argv)
    try:
        network = read_published(arguments.file)
        manifest = write_checkpoint(
            arguments.output,
            published_manifest(network, arguments.file, arguments.name, arguments.licence),
            {"generator": network.state_dict()},
            overwrite=arguments.overwrite,
        )
    except FacezooError as error:
        print(f"facezoo: error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{arguments.output}: {manifest['name']}, {manifest['crop_size']} pixels")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
