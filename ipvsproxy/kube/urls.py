"""URLs of API servers and proxies, checked as Go's net/url and net/http take them.

The environment's proxies follow golang.org/x/net/http/httpproxy, which all Kubernetes components use: HTTPS_PROXY
and HTTP_PROXY by the scheme of the server, NO_PROXY, and never a proxy to this host itself.
"""

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from ipvsproxy.kube.section import KubeconfigError

PROXIES = ("http", "https", "socks5", "socks5h")
DEFAULT_PORTS = {"http": 80, "https": 443}
NOT_IN_URL = re.compile(r"[\x00-\x20\x7f\\^`{}|<>\"]")
HOST = re.compile(r"[\w.:%~-]+")


def checked_server(server: str, where: str, *, secure: bool) -> str:
    """Return the URL of an API server without a slash at its end; `host:port` alone is allowed, as in client-go.

    Raises KubeconfigError.
    """
    url = server.strip()
    if "://" not in url:
        url = f"{'https' if secure else 'http'}://{url}"
    parts = _split(url, where)
    if parts.scheme not in DEFAULT_PORTS:
        raise KubeconfigError(f"{where}: the scheme {parts.scheme} is not supported; use https")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def checked_proxy(proxy: str, where: str) -> str:
    """Return the URL of a proxy, empty for none. Raises KubeconfigError.

    socks5 is given as socks5h: in Go both let the proxy resolve names.
    """
    url = proxy.strip()
    if not url:
        return ""
    if "://" not in url:
        raise KubeconfigError(f"{where}: has no scheme; use http://, https:// or socks5://")
    parts = _split(url, where)
    if parts.scheme not in PROXIES:
        raise KubeconfigError(f"{where}: the scheme {parts.scheme} is not supported; use http, https or socks5")
    return f"{'socks5h' if parts.scheme == 'socks5' else parts.scheme}://{parts.netloc}"


def proxy_of(server: str, environment: Mapping[str, str]) -> str:
    """Return the proxy that the environment has for a server, empty for none. Raises KubeconfigError."""
    parts = urlsplit(server)
    upper = f"{parts.scheme.upper()}_PROXY"
    name = next((name for name in (upper, upper.lower()) if environment.get(name)), "")
    if not name or _is_direct(parts, environment.get("NO_PROXY") or environment.get("no_proxy") or ""):
        return ""
    value = environment[name].strip()
    return checked_proxy(value if "://" in value else f"http://{value}", name)


def _is_direct(server: SplitResult, no_proxy: str) -> bool:
    host = (server.hostname or "").rstrip(".")
    address = _address(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    port = server.port or DEFAULT_PORTS[server.scheme]
    entries = filter(None, (entry.strip().lower() for entry in no_proxy.split(",")))
    return any(_matches(entry, host, address, port) for entry in entries)


IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def _matches(entry: str, host: str, address: IpAddress | None, port: int) -> bool:
    """Tell whether an entry of NO_PROXY is about a host: *, a range, or an IP or domain, perhaps with a port."""
    if entry == "*":
        return True
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    name, wanted = _without_port(entry)
    if wanted and wanted != str(port):
        return False
    if _address(name) is not None:
        return address == _address(name)
    name = name.removeprefix("*")
    return host.endswith(name) if name.startswith(".") else host == name or host.endswith(f".{name}")


def _without_port(entry: str) -> tuple[str, str]:
    """Split off a port; an IPv6 address has one only behind brackets."""
    bracketed = re.fullmatch(r"\[([^]]*)\](?::(\d+))?", entry)
    if bracketed:
        return bracketed[1], bracketed[2] or ""
    name, _, port = entry.rpartition(":")
    return (name, port) if port.isdigit() and ":" not in name and name else (entry, "")


def _address(text: str) -> IpAddress | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _split(url: str, where: str) -> SplitResult:
    """Return the parts of a URL with a host. Raises KubeconfigError without quoting it: it may hold a password."""
    if NOT_IN_URL.search(url):
        raise KubeconfigError(f"{where}: has a character that no URL has")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise KubeconfigError(f"{where}: is not a URL such as https://192.0.2.1:6443") from None
    if not host or not HOST.fullmatch(host) or port == 0:
        raise KubeconfigError(f"{where}: is not a URL such as https://192.0.2.1:6443")
    return parts._replace(scheme=parts.scheme.lower())
