"""Ask the API server through its Service, as every pod does, and the proxy of this node for its health.

    answers.py CA NODE HEALTH_PORT

For `helm test`: status 0 when both answered, 1 with a sentence for each that did not.
"""

import os
import ssl
import sys
import urllib.error
import urllib.request

SECONDS = 10


def ask(url: str, context: ssl.SSLContext | None = None) -> int:
    """Return the HTTP status of an answer, whatever it is. Raises OSError when there is none."""
    try:
        with urllib.request.urlopen(url, timeout=SECONDS, context=context) as answer:  # noqa: S310  # http and https
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def place(host: str, port: str) -> str:
    """Return host and port as a URL has them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def main(authority: str, node: str, health_port: str) -> int:
    """Ask both, print what they answered, and return the exit status."""
    service = place(os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"])
    wrong = 0
    # Who may ask for the version does not matter here: 401 and 403 came through the Service as well.
    for url, context, accepted in (
        (f"https://{service}/version", ssl.create_default_context(cafile=authority), range(200, 500)),
        (f"http://{place(node, health_port)}/healthz", None, (200,)),
    ):
        try:
            status = ask(url, context)
        except OSError as error:
            wrong, result = 1, f"did not answer: {error}"
        else:
            wrong, result = wrong or int(status not in accepted), f"answered {status}"
        print(f"{url} {result}")
    return wrong


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
