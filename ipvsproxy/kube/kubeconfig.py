"""A kubeconfig file, checked before anything relies on it.

In: the path of a kubeconfig and perhaps another server's URL. Out: what its current context contains, as a
`Kubeconfig` from which `kube.connection` makes a connection. Everything that client-go takes is taken (its
tools/clientcmd: validation.go, client_config.go); what can never work is `KubeconfigError`, one sentence with
file, context and field. Contents of credentials never get into such a sentence.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import structlog
import yaml

from ipvsproxy.base import messages
from ipvsproxy.base.errors import plain
from ipvsproxy.config.yamltext import Malformed, first_document
from ipvsproxy.kube.exec_plugin import Plugin, read_plugin
from ipvsproxy.kube.section import KubeconfigError, Section
from ipvsproxy.kube.urls import checked_proxy, checked_server

__all__ = ["Kubeconfig", "KubeconfigError", "TokenFile", "read_kubeconfig"]

TOKEN_SECONDS = 60.0

log = structlog.get_logger()

Content = Path | bytes | None
"""A file, or what would be in it."""


class Kubeconfig(NamedTuple):
    """One context of a kubeconfig.

    `cluster` and `user` are what sentences about either begin with. `headers` go with every request: they ask the
    API server to act for another user. `proxy` is a URL, empty where the environment decides. `compress` means
    that the server may compress lists.
    """

    server: str
    cluster: str
    user: str
    authority: Content = None
    insecure: bool = False
    server_name: str = ""
    proxy: str = ""
    token: str = ""
    token_file: "TokenFile | None" = None
    login: tuple[str, str] | None = None
    certificate: Content = None
    key: Content = None
    plugin: Plugin | None = None
    headers: tuple[tuple[str, str], ...] = ()
    compress: bool = True


class TokenFile:
    """A bearer token that is replaced on disk from time to time (contract 1.10)."""

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.monotonic,
        *,
        instead: str = "",
        where: str = "token file",
    ) -> None:
        """Read the token, or take `instead`. Raises KubeconfigError when there is neither."""
        self.path = path
        self._clock = clock
        self._where = where
        self._token = instead
        try:
            self._token = self._read()
        except KubeconfigError:
            if not instead:
                raise
        self._read_at = clock()

    def token(self) -> str:
        """Return the token, at most TOKEN_SECONDS old; the last valid one if the file is unusable now."""
        if self._clock() - self._read_at >= TOKEN_SECONDS:
            try:
                self._token = self._read()
            except KubeconfigError as error:
                log.warning(messages.TOKEN_KEPT, err=str(error))
            self._read_at = self._clock()
        return self._token

    def _read(self) -> str:
        try:
            token = self.path.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise KubeconfigError(f"{self._where} {self.path}: {plain(error)}") from None
        if not token or not _is_token(token):
            raise KubeconfigError(f"{self._where} {self.path}: holds no token")
        return token


def read_kubeconfig(path: Path, master: str = "") -> Kubeconfig:
    """Return the current context of a kubeconfig, `master` replacing its server.

    Raises KubeconfigError.
    """
    file = Section(f"kubeconfig {path}", _tree(path), path.parent, ": ")
    declared = (file.text("apiVersion") or "v1", file.text("kind") or "Config")
    if declared != ("v1", "Config"):
        raise KubeconfigError(f"{file.where}: apiVersion {declared[0]!r}, kind {declared[1]!r}: not v1, Config")
    name = file.text("current-context")
    if not name and not master:
        raise KubeconfigError(f"{file.where}: current-context: missing")
    within = f"kubeconfig {path}: context {name!r}"
    context = _named(file, "contexts", name, within) if name else Section(within, None, path.parent)
    if context is None:
        raise KubeconfigError(f"kubeconfig {path}: contexts: none is named {name!r}")
    cluster = _cluster(file, context, within, master)
    user_name = context.text("user")
    user = _named(file, "users", user_name, within) if user_name else None
    if user_name and user is None:
        # client-go goes on without a user, too, and so does the API server's answer: forbidden.
        log.warning("Used no credentials, the user of the context is missing", file=str(path), user=user_name)
    return _read(cluster, user or Section(f"{within}: users", None, path.parent), master)


def _tree(path: Path) -> Any:
    where = f"kubeconfig {path}"
    try:
        found = first_document(path.read_bytes())
        tree = found.loader.construct_document(found.root) if found.root is not None else None
    except Malformed as error:
        raise KubeconfigError(f"{where}: {error}") from None
    except OSError as error:
        raise KubeconfigError(f"{where}: {plain(error)}") from None
    except (yaml.MarkedYAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise KubeconfigError(f"{where}: {line}a value has a tag that it does not fit") from None
    for other in found.ignored:
        log.warning("Ignored a document, only the first one of a file counts", file=str(path), document=str(other))
    if not isinstance(tree, Mapping | None):
        raise KubeconfigError(f"{where}: not a mapping")
    return tree


def _named(file: Section, field: str, name: str, within: str) -> Section | None:
    """Return what a list of named things has under a name; `contexts` hold a `context` and so on."""
    names: dict[str, Section] = {}
    for entry in file.sections(field):
        own = entry.text("name")
        if own in names:
            raise KubeconfigError(f"{file.where}: {field}: two are named {own!r}")
        names[own] = entry
    if name not in names:
        return None
    inner = names[name].section(field.removesuffix("s"))
    inner.where = f"{within}: {field}[{name}].{field.removesuffix('s')}"
    return inner


def _cluster(file: Section, context: Section, within: str, master: str) -> Section:
    name = context.text("cluster")
    cluster = _named(file, "clusters", name, within)
    if cluster is None and not master:
        raise KubeconfigError(f"{within}: clusters: none is named {name!r}")
    return cluster or Section(f"{within}: clusters[{name}].cluster", None, Path())


def _read(cluster: Section, user: Section, master: str) -> Kubeconfig:
    _check(user)
    insecure, authority = cluster.flag("insecure-skip-tls-verify"), cluster.content("certificate-authority")
    certificate, key = user.content("client-certificate"), user.content("client-key")
    if certificate and not key:
        raise user.wrong("client-key", "missing: a client certificate needs its key")
    if insecure and authority:
        raise cluster.wrong("insecure-skip-tls-verify", "cannot be combined with a certificate-authority")
    server = master or cluster.text("server")
    if not server:
        raise cluster.wrong("server", "missing")
    secure = bool(authority or certificate or insecure)
    config = Kubeconfig(
        server=checked_server(server, "--master" if master else f"{cluster.where}.server", secure=secure),
        cluster=cluster.where,
        user=user.where,
        authority=authority,
        insecure=insecure,
        server_name=cluster.word("tls-server-name"),
        proxy=checked_proxy(cluster.text("proxy-url"), f"{cluster.where}.proxy-url"),
        certificate=certificate if key else None,
        key=key if certificate else None,
        headers=tuple(_impersonation(user)),
        compress=not cluster.flag("disable-compression"),
    )
    config = _with_secret(config, user)
    has_method = config.token or config.token_file or config.login or config.certificate
    plugin = read_plugin(user, cluster, config.server, authority)
    return config if has_method else config._replace(plugin=plugin)


def _check(user: Section) -> None:
    """Refuse what client-go refuses, and what it once had."""
    if "auth-provider" in user:
        name = user.section("auth-provider").text("name")
        raise user.wrong("auth-provider", f"{name or 'it'} is not part of Kubernetes' clients any more; use exec")


def _with_secret(config: Kubeconfig, user: Section) -> Kubeconfig:
    """Add a token, a token file or a name with its password; a token file wins over a token."""
    token, name, password = user.word("token"), user.text("username"), user.text("password")
    if token and not _is_token(token):
        raise user.wrong("token", "has characters that no token has")
    if token and (name or password):
        raise user.wrong("token", "cannot be combined with username and password")
    path = user.path("tokenFile")
    if path:
        file = TokenFile(path, instead=token, where=f"{user.where}.tokenFile:")
        return config._replace(token_file=file)
    return config._replace(token=token, login=(name, password) if name or password else None)


def _is_token(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _impersonation(user: Section) -> list[tuple[str, str]]:
    """Return the headers for `as`, `as-uid`, `as-groups` and `as-user-extra`."""
    name, uid = user.word("as"), user.word("as-uid")
    groups = [("Impersonate-Group", _header(user, "as-groups", group)) for group in user.texts("as-groups")]
    extra = [
        (f"Impersonate-Extra-{quote(key.lower(), safe='')}", _header(user, "as-user-extra", value))
        for key, values in user.section("as-user-extra").items()
        for value in values
    ]
    if (uid or groups or extra) and not name:
        raise user.wrong("as", "missing: as-uid, as-groups and as-user-extra need it")
    named = [("Impersonate-User", name), ("Impersonate-Uid", uid)]
    return [(header, value) for header, value in named if value] + groups + extra


def _header(user: Section, field: str, text: str) -> str:
    return Section(user.where, {field: text}, Path()).word(field)
