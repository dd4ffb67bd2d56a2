"""A real cluster on this machine: kube-apiserver, kubelets, containerd, pods, and our proxy (docs/cluster.md).

python -m tests.cluster up --kube DIR       bring it up
python -m tests.cluster kubectl ARG...      kubectl as its administrator
python -m tests.cluster node NODE ARG...    a command on a node
python -m tests.cluster outside ARG...      a command on this machine, in the cluster's network
python -m tests.cluster reboot NODE         end a node as a power failure does, and start it again
python -m tests.cluster down                away with it
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys

from tests.cluster import arguments, binaries, lifecycle, nodes, programs
from tests.cluster.kubectl import Kubectl
from tests.cluster.place import Cluster


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=(__doc__ or "").splitlines()[0])
    arguments.add_name(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    arguments.add(commands.add_parser("up", help="bring a cluster up"))
    commands.add_parser("down", help="end it and forget it")
    commands.add_parser("load", help="bring changed images to the nodes")
    commands.add_parser("kubectl", help="run kubectl")
    commands.add_parser("outside", help="run a command in its network")
    commands.add_parser("node", help="run a command on a node").add_argument("node")
    commands.add_parser("reboot", help="start a node again").add_argument("node")
    own, words = split(argv)
    options = parser.parse_args(own)
    options.words = words
    return options


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Our own words, and those of the command that is to be run."""
    for at, word in enumerate(argv):
        if word in FOREIGN_AFTER:
            end = at + FOREIGN_AFTER[word]
            return argv[:end], argv[end:]
    return argv, []


# After how many words, from itself on, another command's begin.
FOREIGN_AFTER = {"kubectl": 1, "outside": 1, "node": 2}


def main(argv: list[str]) -> int:
    options = parse(argv)
    try:
        return COMMANDS[options.command](options)
    except (binaries.BinaryMissing, programs.Failed, ValueError) as error:
        print(error, file=sys.stderr)
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(map(str, error.cmd))}: {error.stderr or f'status {error.returncode}'}", file=sys.stderr)
    return 1


def up(options: argparse.Namespace) -> int:
    if not options.kube:
        print(binaries.NO_KUBE)
        return 0
    kube = binaries.open_folder(options.kube)
    cluster = Cluster(options.name, options.nodes, options.plugins)
    lifecycle.prepare()
    lifecycle.up(cluster, kube, options.proxy, options.mode)
    print(f"kubectl: {sys.executable} -m tests.cluster --name {cluster.name} kubectl get nodes")
    return 0


def down(options: argparse.Namespace) -> int:
    lifecycle.down(Cluster(options.name))
    return 0


def load(options: argparse.Namespace) -> int:
    lifecycle.load(*lifecycle.remembered(options.name))
    return 0


def kubectl(options: argparse.Namespace) -> int:
    cluster, kube = lifecycle.remembered(options.name)
    return subprocess.run(Kubectl(cluster, kube).argv(*options.words), check=False).returncode


def outside(options: argparse.Namespace) -> int:
    cluster, _ = lifecycle.remembered(options.name)
    return subprocess.run(cluster.inside(*options.words), check=False).returncode


def node(options: argparse.Namespace) -> int:
    cluster, _ = lifecycle.remembered(options.name)
    done = nodes.run(cluster, cluster.node(options.node), *options.words, seconds=600)
    print(done.stdout, end="")
    return done.returncode


def reboot(options: argparse.Namespace) -> int:
    cluster, kube = lifecycle.remembered(options.name)
    each = cluster.node(options.node)
    programs.stop(cluster, each.name, signal.SIGKILL)
    nodes.boot(cluster, kube, each)
    return 0


COMMANDS = {each.__name__: each for each in (up, load, down, kubectl, outside, node, reboot)}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
