"""A connection to the Kubernetes API: what was configured, made into the kubernetes package's ApiClient.

In: a kubeconfig, `--master`, or a pod's account. Out: an `ApiConnection`, or `KubeconfigError` when there
can never be one. The package is imported late, since it takes a third of a second. Nothing secret may reach the
log.
"""

import base64
import os
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import structlog

from ipvsproxy.base import messages
from ipvsproxy.base.errors import plain
from ipvsproxy.kube.answer_frame import Answer
from ipvsproxy.kube.api import RequestFailed
from ipvsproxy.kube.exec_plugin import Credential, Plugin, PluginFailed
from ipvsproxy.kube.kubeconfig import Content, Kubeconfig, TokenFile, read_kubeconfig
from ipvsproxy.kube.section import KubeconfigError
from ipvsproxy.kube.urls import checked_server, proxy_of

# Keepalive finds a dead peer in a minute; read timeouts one that answers probes and nothing else.
KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES = 30, 10, 3
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
AUTHORITY = "ca.crt"
NO_CLUSTER = "no kubeconfig and no --master, and the in-cluster configuration"

log = structlog.get_logger()


class ApiConnection:
    """An ApiClient, and what identifies the client to the server. May be used by several threads."""

    def __init__(
        self,
        api: Any,
        authorization: Callable[[], str],
        headers: Sequence[tuple[str, str]] = (),
        *,
        compress: bool = True,
    ) -> None:
        self.api = api
        self.compress = compress
        self._authorization = authorization
        self._headers = headers

    @property
    def url(self) -> str:
        """The URL of the API server."""
        return str(self.api.configuration.host)

    def signed(self, headers: Mapping[str, str]) -> Any:
        """Return the headers of a request with those that name who asks. Raises RequestFailed if none can tell."""
        from urllib3 import HTTPHeaderDict

        found = HTTPHeaderDict(headers)
        for name, value in self._headers:
            found.add(name, value)
        authorization = self._authorization()
        if authorization:
            found["Authorization"] = authorization
        return found


class _Memory:
    """A file that is on no disk, for libraries that want a path; gone with this object."""

    def __init__(self, content: bytes) -> None:
        self._file = os.memfd_create("ipvsproxy")
        self.path = f"/proc/self/fd/{self._file}"
        view = memoryview(content)
        while view:
            view = view[os.write(self._file, view) :]

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self._file)


def build(kubeconfig: Path | None, master: str) -> ApiConnection:
    """Return a connection for what was configured; no server is asked yet. Raises KubeconfigError."""
    config = _configured(kubeconfig, master)
    if kubeconfig is None and not master and config.authority is None:
        log.warning("Used the host's certificate authorities, the pod has none", file=str(ACCOUNT / AUTHORITY))
    api = _client(config)
    connection = ApiConnection(api, _authorization(config, api), config.headers, compress=config.compress)
    if config.plugin:
        _try(connection)
    return connection


def check(kubeconfig: Path | None, master: str) -> None:
    """Read all files that a connection needs, and keep nothing. Raises KubeconfigError.

    A kubeconfig that comes through a pipe can be read once only, which is not for this.
    """
    if kubeconfig is None or kubeconfig.is_file() or not kubeconfig.exists():
        _use_certificates(SimpleNamespace(), _configured(kubeconfig, master))


def _configured(kubeconfig: Path | None, master: str) -> Kubeconfig:
    if kubeconfig is not None:
        return read_kubeconfig(kubeconfig, master)
    if master:
        return Kubeconfig(checked_server(master, "--master", secure=False), "--master", "--master")
    return _service_account()


def _service() -> tuple[str, str]:
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
    return host, port


def in_cluster() -> bool:
    """Whether the environment is that of a pod, which contains where the API server is."""
    return all(_service())


def _service_account() -> Kubeconfig:
    """Return what a pod knows of its cluster, as client-go's rest.InClusterConfig finds it."""
    host, port = _service()
    if not in_cluster():
        raise KubeconfigError(f"{NO_CLUSTER}: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set")
    where = "in-cluster configuration"
    name = f"[{host}]" if ":" in host else host
    authority = ACCOUNT / AUTHORITY
    return Kubeconfig(
        checked_server(f"https://{name}:{port}", f"{where}: KUBERNETES_SERVICE_HOST", secure=True),
        where,
        where,
        authority=authority if os.access(authority, os.R_OK) else None,
        token_file=TokenFile(ACCOUNT / "token", where=f"{NO_CLUSTER}: token file"),
    )


def _client(config: Kubeconfig) -> Any:
    from kubernetes.client import ApiClient, Configuration
    from urllib3.exceptions import HTTPError

    configuration = Configuration(host=config.server)
    configuration.verify_ssl = not config.insecure
    configuration.tls_server_name = config.server_name or None
    _use_proxy(configuration, config.proxy or proxy_of(config.server, os.environ))
    _use_transport_settings(configuration)
    _use_certificates(configuration, config)
    try:
        api = ApiClient(configuration)
    except (HTTPError, OSError, ValueError) as error:
        raise KubeconfigError(f"{config.cluster}: {plain(error)}") from None
    _adapt(api.rest_client, configuration)
    api.user_agent = "ipvsproxy"
    return api


def _try(connection: ApiConnection) -> None:
    """Ask the program at once: what it reports as wrong should be seen at the start. Each request asks again."""
    try:
        connection.signed({})
    except RequestFailed as error:
        log.warning("Got no credential, will retry with each request", err=error.reason)


def _use_proxy(configuration: Any, proxy: str) -> None:
    """Set the proxy, and leave nothing for the package to decide: NO_PROXY has been honored."""
    configuration.proxy = proxy or None
    configuration.no_proxy = ""
    parts = urlsplit(proxy)
    if parts.username is not None and parts.scheme.startswith("http"):
        login = _basic(unquote(parts.username), unquote(parts.password or ""))
        configuration.proxy_headers = {"Proxy-Authorization": login}


def _use_transport_settings(configuration: Any) -> None:
    import urllib3
    from kubernetes.utils.keepalive import tcp_keepalive_socket_options

    # urllib3's own retries come at once, and sleep as long as a Retry-After asks: pacing is the reflector's.
    configuration.retries = False
    configuration.socket_options = tcp_keepalive_socket_options(
        KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES
    )
    if not configuration.verify_ssl:
        log.warning(messages.CERTIFICATE_UNVERIFIED, field="insecure-skip-tls-verify")
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)


def _use_certificates(configuration: Any, config: Kubeconfig) -> None:
    """Set files of TLS, and load them: one of the wrong content would look like a server that is away."""
    kept = [_file(content) for content in (config.authority, config.certificate, config.key)]
    authority, certificate, key = (str(getattr(file, "path", file)) if file else None for file in kept)
    configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file = authority, certificate, key
    configuration.kept = kept  # files in memory live as long as those who may open them
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authority:
        _load(
            f"{config.cluster}.certificate-authority{_named(config.authority)}",
            lambda: context.load_verify_locations(authority),
        )
    if certificate:
        where = f"{config.user}.client-certificate, client-key{_named(config.certificate)}"
        _load(where, lambda: context.load_cert_chain(certificate, key, password=_no_password))


def _adapt(rest_client: Any, configuration: Any) -> None:
    """Give a client of the package what it lacks."""
    _bound_frames(rest_client.pool_manager)
    _trust_as_go(rest_client, configuration)


def _bound_frames(manager: Any) -> None:
    """Have what comes beside the content of all answers bounded."""
    pools: dict[str, Any] = dict(manager.pool_classes_by_scheme)
    for scheme, pool in pools.items():
        answering = type("Connection", (pool.ConnectionCls,), {"response_class": Answer})
        pools[scheme] = type("Pool", (pool,), {"ConnectionCls": answering})
    manager.pool_classes_by_scheme = pools


def _trust_as_go(rest_client: Any, configuration: Any) -> None:
    """Have it trust the authorities that client-go trusts, under every version of Python.

    Go's crypto/x509 takes each certificate of the file as an anchor, an intermediate one as well, and asks an
    anchor for no extension. Python 3.13 asks for those of RFC 5280 by default (VERIFY_X509_STRICT), which
    authorities made by openssl or by older installers lack; before 3.13 it accepts only self-signed anchors.
    """
    manager = rest_client.pool_manager
    pool: Any = manager.pool_classes_by_scheme["https"]

    def connect(connection: Any) -> None:
        # One for each connection: urllib3 loads the files into it, which OpenSSL allows no two threads at a time.
        connection.ssl_context = _context(configuration)
        pool.ConnectionCls.connect(connection)

    trusting = type("Connection", (pool.ConnectionCls,), {"connect": connect})
    classes = {"https": type("Pool", (pool,), {"ConnectionCls": trusting})}
    manager.pool_classes_by_scheme = {**manager.pool_classes_by_scheme, **classes}


def _context(configuration: Any) -> ssl.SSLContext:
    from urllib3.util.ssl_ import create_urllib3_context

    context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED if configuration.verify_ssl else ssl.CERT_NONE)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if not configuration.ssl_ca_cert:
        context.load_default_certs()
    return context


def _file(content: Content) -> Path | _Memory | None:
    return _Memory(content) if isinstance(content, bytes) else content


def _named(content: Content) -> str:
    return f": {content}" if isinstance(content, Path) else ""


def _load(where: str, load: Callable[[], None]) -> None:
    try:
        load()
    except ssl.SSLError as error:
        known = (error.reason or "").replace("_", " ").lower()
        words = known or "no certificate or key in PEM can be read"
        raise KubeconfigError(f"{where}: {words}") from None
    except (OSError, ValueError) as error:
        raise KubeconfigError(f"{where}: {plain(error)}") from None


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # the default would ask on the terminal


def _authorization(config: Kubeconfig, api: Any) -> Callable[[], str]:
    """Return what gives the Authorization header of the moment, empty for none. That raises RequestFailed."""
    if config.plugin:
        return _Renewal(config, config.plugin, api).authorization
    if config.token_file:
        file = config.token_file
        return lambda: f"Bearer {file.token()}"
    if config.login:
        basic = _basic(*config.login)
        return lambda: basic
    return lambda: f"Bearer {config.token}" if config.token else ""


def _basic(name: str, password: str) -> str:
    """Return a header of RFC 7617, in UTF-8."""
    return f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"


class _Renewal:
    """What a program gives: a token, or a certificate, with which new connections have to be made."""

    def __init__(self, config: Kubeconfig, plugin: Plugin, api: Any) -> None:
        self._config = config
        self._plugin = plugin
        self._api = api
        self._lock = threading.Lock()
        self._certificate = b""

    def authorization(self) -> str:
        """Return the header of the moment, empty where a certificate is enough. Raises RequestFailed."""
        with self._lock:
            try:
                found = self._plugin.credential()
                if found.certificate != self._certificate:
                    self._use(found)
            except (PluginFailed, KubeconfigError) as error:
                raise RequestFailed(str(error)) from None
        return f"Bearer {found.token}" if found.token else ""

    def _use(self, found: Credential) -> None:
        from kubernetes.client.rest import RESTClientObject

        configuration = self._api.configuration
        new = self._config._replace(certificate=found.certificate or None, key=found.key or None)
        _use_certificates(configuration, new)
        self._certificate, self._api.rest_client = found.certificate, RESTClientObject(configuration)
        _adapt(self._api.rest_client, configuration)
