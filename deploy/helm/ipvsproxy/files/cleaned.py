"""Wait until `ipvsproxy cleanup` has run on every node: the Job that Helm starts after an uninstall.

    cleaned.py KUBECONFIG NAMESPACE SECONDS

Ends with status 0 when every pod of the DaemonSet ipvsproxy-cleanup is ready, and with status 1, naming the nodes
that are not clean, when they are not after SECONDS. Asks the API server with the kubeconfig, because no
Service works any more.
"""

import sys
import time

from kubernetes.client import AppsV1Api, CoreV1Api
from kubernetes.client.exceptions import ApiException
from kubernetes.config import load_kube_config
from urllib3.exceptions import HTTPError

NAME = "ipvsproxy-cleanup"
PAUSE = 2.0
REQUEST_SECONDS = 10


def is_complete(namespace: str) -> bool:
    """Return whether the DaemonSet has a ready pod on each of its nodes. Raises ApiException, HTTPError."""
    found = AppsV1Api().read_namespaced_daemon_set(NAME, namespace, _request_timeout=REQUEST_SECONDS)
    status = found.status
    seen = (status.observed_generation or 0) >= found.metadata.generation
    print(f"{status.number_ready} of {status.desired_number_scheduled} nodes are clean", flush=True)
    return seen and status.number_ready >= status.desired_number_scheduled


def unclean(namespace: str) -> list[str]:
    """Return the names of nodes whose pod is not ready. Raises ApiException, HTTPError."""
    label = f"app.kubernetes.io/name={NAME}"
    pods = CoreV1Api().list_namespaced_pod(namespace, label_selector=label, _request_timeout=REQUEST_SECONDS)
    ready = ("Ready", "True")
    return sorted(
        str(pod.spec.node_name)
        for pod in pods.items
        if ready not in [(condition.type, condition.status) for condition in pod.status.conditions or []]
    )


def wait(namespace: str, seconds: float) -> int:
    """Ask until all nodes are clean or the time is over; return the exit status."""
    end = time.monotonic() + seconds
    while True:
        try:
            if is_complete(namespace):
                return 0
            if time.monotonic() >= end:
                print(f"Not clean: {', '.join(unclean(namespace)) or 'no pod was made'}.")
                break
        except (ApiException, HTTPError) as error:
            print(f"The API server did not answer: {error}", flush=True)
            if time.monotonic() >= end:
                break
        time.sleep(PAUSE)
    print("Run `ipvsproxy cleanup` on these nodes or reboot them: until then they keep what they have.")
    return 1


if __name__ == "__main__":
    load_kube_config(sys.argv[1])
    sys.exit(wait(sys.argv[2], float(sys.argv[3])))
