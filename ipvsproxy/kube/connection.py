"""A connection to the Kubernetes API: what was configured, made into the kubernetes package's ApiClient.

In: a kubeconfig, `--master`, or the pod's service account. Out: an `ApiClient`, or `Unusable` when it can never
work. The package does configuration, credentials, TLS, proxies and URLs; its models and generated methods are
left alone, since importing them alone costs 22 MB and half a second. Nothing secret may reach the log.
"""

import ssl
from pathlib import Path
from typing import Any

import structlog

from ipvsproxy.kube.kubeconfig import TokenFile, Unusable, read_kubeconfig, with_scheme

# Keepalive finds a dead peer in a minute; read timeouts one that answers probes and nothing else.
KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES = 30, 10, 3
BEARER = "BearerToken"  # the package's name for the Authorization header

log = structlog.get_logger()


def build(kubeconfig: Path | None, master: str) -> Any:
    """Return an ApiClient for what was configured. Raises Unusable."""
    from kubernetes.client import ApiClient, Configuration

    configuration = Configuration()
    if kubeconfig is not None:
        where = f"kubeconfig {kubeconfig}"
        _use_kubeconfig(configuration, kubeconfig, master)
    elif master:
        where = "--master"
        configuration.host = with_scheme(master, secure=False)
    else:
        where = "in-cluster configuration"
        _use_service_account(configuration)
    _use_transport_settings(configuration)
    _check_certificates(configuration, where)
    api = ApiClient(configuration)
    api.user_agent = "ipvsproxy"
    return api


def _use_kubeconfig(configuration: Any, path: Path, master: str) -> None:
    from kubernetes.config import ConfigException, load_kube_config_from_dict

    tree, token_file = read_kubeconfig(path, master)
    try:
        load_kube_config_from_dict(tree, client_configuration=configuration, persist_config=False)
    except (ConfigException, OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        # Not the text of anything but a ConfigException: it might quote what it stumbled over.
        reason = error if isinstance(error, ConfigException) else type(error).__name__
        raise Unusable(f"kubeconfig {path}: {reason}") from None
    if token_file:
        _use_token_file(configuration, token_file)


def _use_service_account(configuration: Any) -> None:
    from kubernetes.config import ConfigException, load_incluster_config
    from kubernetes.config.incluster_config import SERVICE_TOKEN_FILENAME

    try:
        load_incluster_config(client_configuration=configuration)
    except (ConfigException, OSError) as error:
        raise Unusable(f"no kubeconfig and no --master, and the in-cluster configuration: {error}") from None
    _use_token_file(configuration, Path(SERVICE_TOKEN_FILENAME))


def _use_token_file(configuration: Any, path: Path) -> None:
    file = TokenFile(path)

    def renew(configuration: Any) -> None:
        configuration.api_key[BEARER] = f"Bearer {file.token()}"

    renew(configuration)
    configuration.refresh_api_key_hook = renew


def _use_transport_settings(configuration: Any) -> None:
    import urllib3
    from kubernetes.utils.keepalive import tcp_keepalive_socket_options

    # urllib3's own retries come at once, and sleep as long as a Retry-After says: pacing is the reflector's.
    configuration.retries = False
    configuration.socket_options = tcp_keepalive_socket_options(
        KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES
    )
    if not configuration.verify_ssl:
        log.warning("the certificate of the API server is not checked", field="insecure-skip-tls-verify")
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)


def _check_certificates(configuration: Any, where: str) -> None:
    """Load what TLS will need: a file of the wrong content would otherwise look like a server that is away."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    field = "certificate-authority"
    try:
        if configuration.ssl_ca_cert:
            context.load_verify_locations(configuration.ssl_ca_cert)
        field = "client-certificate, client-key"
        if configuration.cert_file:
            context.load_cert_chain(configuration.cert_file, configuration.key_file, password=_no_password)
    except (OSError, ValueError) as error:
        raise Unusable(f"{where}: {field}: {error}") from None


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # the default would ask on the terminal
