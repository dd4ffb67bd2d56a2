"""Run by test_image.py inside the image: import all there is, and ask a server by a kubeconfig of each kind.

    in_image.py FOLDER

Prints JSON: what each of the folder's kubeconfig-NAME.conf came to, and the packages of the environment of which
nothing was imported.
"""

import importlib
import json
import pathlib
import pkgutil
import sys
from importlib.metadata import Distribution, distributions

import ipvsproxy
import nft
from ipvsproxy.exchange.inbox import Kind
from ipvsproxy.kube.api import RequestFailed
from ipvsproxy.kube.client import ClientLimits, KubeClient

HOME = "/opt/ipvsproxy/"


def import_all() -> None:
    for package in (ipvsproxy, nft):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith("__main__"):
                importlib.import_module(found.name)


def asked(kubeconfig: pathlib.Path) -> str:
    client = KubeClient(kubeconfig, "", "node1", ClientLimits(connect=5, read=5))
    client.connect()
    try:
        with_answer = client.list(Kind.SERVICE, 500, "", "")
        return f"{with_answer.status} {with_answer.read().decode()}"
    except RequestFailed as error:
        return error.reason
    finally:
        client.close()


def is_imported(package: Distribution) -> bool:
    """Return whether one of its files is that of a module."""
    files = {str(package.locate_file(file)) for file in package.files or ()}
    return any(getattr(module, "__file__", None) in files for module in list(sys.modules.values()))


def main() -> None:
    import_all()
    answers = {
        path.stem.partition("-")[2]: asked(path) for path in pathlib.Path(sys.argv[1]).glob("kubeconfig-*.conf")
    }
    idle = [
        found.name
        for found in distributions(path=[at for at in sys.path if at.startswith(HOME)])
        if not is_imported(found)
    ]
    print(json.dumps({"answers": answers, "idle": idle}))


main()
