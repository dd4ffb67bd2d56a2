"""A kubeconfig file, checked before anything relies on it.

In: the path of a kubeconfig and perhaps another server's URL. Out: the file reduced to its current context,
with absolute paths, which `kube.connection` hands to the kubernetes package; and the token file, which that
package would read only once. What can never work is `Unusable`, in a sentence with file and field. Contents of
credentials never get into such a sentence.
"""

import base64
import binascii
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import structlog
import yaml

TOKEN_SECONDS = 60.0
CLUSTER_FILES = ("certificate-authority",)
USER_FILES = ("client-certificate", "client-key")

log = structlog.get_logger()


class Unusable(Exception):
    """A configuration that can never work, as a sentence for the operator."""


class Kubeconfig(NamedTuple):
    """One context of a kubeconfig; `tree` has the shape of the file."""

    tree: dict[str, Any]
    token_file: Path | None


class TokenFile:
    """A bearer token that is replaced on disk from time to time (contract 1.10)."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the token. Raises Unusable when there is none."""
        self._path = path
        self._clock = clock
        self._token = self._read()
        self._read_at = clock()

    def token(self) -> str:
        """Return the token, at most TOKEN_SECONDS old; the last good one if the file is of no use now."""
        if self._clock() - self._read_at >= TOKEN_SECONDS:
            try:
                self._token = self._read()
            except Unusable as error:
                log.warning("token file of no use; the last token stays", reason=str(error))
            self._read_at = self._clock()
        return self._token

    def _read(self) -> str:
        try:
            token = self._path.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Unusable(f"token file {self._path}: {_reason(error)}") from None
        if not token or any(character.isspace() for character in token):
            raise Unusable(f"token file {self._path}: holds no token")
        return token


def read_kubeconfig(path: Path, master: str = "") -> Kubeconfig:
    """Return the current context of a kubeconfig, `master` replacing its server.

    Raises Unusable.
    """
    tree = _parse(path)
    context_name = tree.get("current-context")
    if not context_name:
        raise Unusable(f"kubeconfig {path}: current-context: missing")
    context = _named(path, tree, "contexts", context_name)
    cluster_name, user_name = context.get("cluster"), context.get("user")
    where = f"kubeconfig {path}: clusters[{cluster_name}].cluster"
    cluster = dict(_named(path, tree, "clusters", cluster_name))
    cluster["server"] = _server(where, master or cluster.get("server"), cluster)
    _resolve(where, path.parent, cluster, CLUSTER_FILES)
    users = []
    token_file = None
    if user_name:
        user = dict(_named(path, tree, "users", user_name))
        token_file = _resolve_user(f"kubeconfig {path}: users[{user_name}].user", path.parent, user)
        users = [{"name": user_name, "user": user}]
    reduced = {
        "current-context": context_name,
        "contexts": [{"name": context_name, "context": context}],
        "clusters": [{"name": cluster_name, "cluster": cluster}],
        "users": users,
    }
    return Kubeconfig(reduced, token_file)


def with_scheme(server: str, *, secure: bool) -> str:
    """Return a URL; `host:port` alone is allowed, as in all Kubernetes clients."""
    return server if "://" in server else f"{'https' if secure else 'http'}://{server}"


def _parse(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_bytes())
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise Unusable(f"kubeconfig {path}: {line}{error.problem}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise Unusable(f"kubeconfig {path}: {_reason(error)}") from None
    if not isinstance(tree, dict):
        raise Unusable(f"kubeconfig {path}: not a mapping")
    return tree


def _named(path: Path, tree: dict[str, Any], field: str, name: object) -> dict[str, Any]:
    """Return what a list of named things has under a name; `contexts` hold a `context` and so on."""
    entries = tree.get(field)
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("name") == name:
            inner = entry.get(field.removesuffix("s"))
            if isinstance(inner, dict):
                return inner
    raise Unusable(f"kubeconfig {path}: {field}: none is named {name!r}")


def _server(where: str, server: object, cluster: dict[str, Any]) -> str:
    if not isinstance(server, str) or not server:
        raise Unusable(f"{where}.server: missing")
    secure = any(key.startswith("certificate-authority") for key in cluster)
    return with_scheme(server, secure=secure or bool(cluster.get("insecure-skip-tls-verify")))


def _resolve_user(where: str, folder: Path, user: dict[str, Any]) -> Path | None:
    """Make paths absolute; take the token file out, which wins over a token as in all Kubernetes clients."""
    _resolve(where, folder, user, USER_FILES)
    plugin = user.get("exec")
    if isinstance(plugin, dict) and "/" in str(plugin.get("command", "")):
        user["exec"] = {**plugin, "command": str(folder.absolute() / plugin["command"])}
    token_file = user.pop("tokenFile", None)
    if not token_file:
        return None
    user.pop("token", None)
    return folder.absolute() / str(token_file)


def _resolve(where: str, folder: Path, section: dict[str, Any], fields: tuple[str, ...]) -> None:
    """Make paths absolute and check that there is something to read; inline data wins over a path."""
    for field in fields:
        data = section.get(f"{field}-data")
        if data:
            _check_base64(f"{where}.{field}-data", data)
        elif section.get(field):
            file = folder.absolute() / str(section[field])
            section[field] = str(file)
            _check_readable(f"{where}.{field}", file)


def _check_base64(where: str, data: object) -> None:
    try:
        base64.b64decode("".join(str(data).split()), validate=True)
    except (binascii.Error, ValueError):
        raise Unusable(f"{where}: not base64") from None


def _check_readable(where: str, file: Path) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise Unusable(f"{where}: {file}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
