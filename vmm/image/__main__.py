"""Build guest images, look at one, or remove those that newer ones have replaced.

python -m vmm.image build [--directory DIR] [--debug] [--refresh]
python -m vmm.image verify MANIFEST
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from common.errors import SandboxdError
from vmm.image import build, manifest
from vmm.image.manifest import GuestImage
from vmm.image.root import Agent


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    options = _parser().parse_args(argv)
    try:
        if options.command == "verify":
            manifest.load(options.manifest).verify()
            return 0
        if options.command == "show":
            _show(manifest.load(options.manifest))
            return 0
        if options.command == "prune":
            for path in manifest.prune(options.directory):
                print(path)
            return 0
        agent = build.AGENT if options.agent is None else _program(options.agent.resolve())
        kernel = build.KERNELS[options.kernel]
        plan = build.Plan(options.directory.resolve(), kernel, agent, options.debug, options.refresh)
        print(asyncio.run(build.build(plan)))
        return 0
    except KeyboardInterrupt:
        return 130
    except SandboxdError as error:
        print(f"guest image: {error}", file=sys.stderr)
        return 1


def _show(image: GuestImage) -> None:
    """Print what a hypervisor is given, a word and its value on each line."""
    for word, value in (
        ("kernel", image.kernel),
        ("ramdisk", image.ramdisk),
        ("root", image.root),
        ("arguments", image.command_line()),
    ):
        if value is not None:
            print(word, value)


def _program(file: Path) -> Agent:
    return Agent(file.stem, file.parent, (file.name,))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vmm.image", description="Build, check and remove guest images."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    builder = commands.add_parser("build", help="build an image and print its manifest's path")
    builder.add_argument(
        "--kernel", choices=build.KERNELS, default="cloud", help="which kernel (default: cloud)"
    )
    builder.add_argument("--agent", type=Path, help="run this Python file in place of the agent")
    builder.add_argument("--debug", action="store_true", help="with a shell on the console")
    builder.add_argument(
        "--refresh", action="store_true", help="fetch packages again, in their newest versions"
    )
    for name, meaning in (
        ("show", "print what a hypervisor is given of an image"),
        ("verify", "compare an image's files with its manifest"),
    ):
        commands.add_parser(name, help=meaning).add_argument("manifest", type=Path)
    pruner = commands.add_parser("prune", help="remove what no newest image needs, and print it")
    default = Path(manifest.DEFAULT_PATH).parent
    for command in (builder, pruner):
        command.add_argument(
            "--directory", type=Path, default=default, help=f"where images are (default: {default})"
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
