"""A Debian to throw away, in which the provisioning scripts run as root: as far as a machine without VMs can go.

What is real: the Debian (debootstrap's, under an overlay), apt and the packages it installs, the tree at
/ipvsproxy, and with `alone` a network namespace without any link. What is not: the stubs below, which write
down how they were called. Nothing they stand for happens to this machine.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import textwrap

REPO = pathlib.Path(__file__).resolve().parents[2]
SUITE = "bookworm"
"""The Debian of the Vagrantfile's box."""
BASE = REPO / f".cache/image/base-{SUITE}"
VAGRANTFILE = REPO / "vagrant/Vagrantfile"
PROVISION = "/ipvsproxy/vagrant/provision"

_RECORD = '#!/bin/sh\nprintf "%s\\n" "${0##*/} $*" >>/var/log/calls\n'
STUBS = {
    "systemctl": "",
    "modprobe": "",
    "sysctl": "",
    "swapoff": "",
    "ctr": "",
    "kubectl": "",
    # The package repository of Kubernetes is not asked; the other nodes' files are.
    "curl": 'case "$*" in *k8s.io*|*docker.com*) while [ "$1" != --output ]; do shift; done; echo key >"$2" ;; '
    '*) exec /usr/bin/curl "$@" ;; esac\n',
    "kubeadm": 'case "$*" in\n'
    '"version -o short") echo v1.34.2 ;;\n'
    '"config images list"*) printf "%s\\n" registry.k8s.io/etcd:3.6.5-0 registry.k8s.io/pause:3.10.1 ;;\n'
    "init*) echo admin >/etc/kubernetes/admin.conf ;;\n"
    "join*) echo kubelet >/etc/kubernetes/kubelet.conf ;;\n"
    "esac\n",
}
# Packages of the repository that is not asked.
KUBERNETES = ("kubelet", "kubeadm", "kubectl")

# $1: the folder of the overlay's parts, $2: the project. The mounts end with the process.
_ENTER = f"""
root=$1/root
mount -t overlay -o "lowerdir={BASE},upperdir=$1/upper,workdir=$1/work" none "$root"
mkdir -p "$root/ipvsproxy" "$root/proc" "$root/sys"
mount -t overlay -o "lowerdir=$2,upperdir=$1/tree,workdir=$1/work2" none "$root/ipvsproxy"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
shift 2
exec chroot "$root" "$@"
"""
_NAMESPACES = ("--mount", "--propagation=private", "--pid", "--fork", "--kill-child")


def make_base() -> None:
    """Fetch the Debian that machines start from, unless it is there; takes a minute."""
    subprocess.run([REPO / "tools/image-root", "--base", SUITE], check=True)


class ScratchDebian:
    """One such Debian; what a script leaves in it is there for the next."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        for name in ("root", "upper", "work", "tree", "work2"):
            (folder / name).mkdir(parents=True)
        self._install_stubs()

    def _install_stubs(self) -> None:
        for name, behaviour in STUBS.items():
            self.write(f"usr/local/sbin/{name}", _RECORD + behaviour, 0o755)
        # Services of packages are not started, as in any chroot.
        self.write("usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)
        self.write("etc/fstab", "/dev/vda1 / ext4 defaults 0 1\n/dev/vda2 none swap sw 0 0\n")
        shutil.copy("/etc/resolv.conf", self.folder / "upper/etc/resolv.conf")
        self.install(*KUBERNETES)
        self.run("useradd --create-home vagrant")

    def install(self, *names: str) -> None:
        """Install empty packages: of repositories that are not asked."""
        for name in names:
            control = f"Package: {name}\nVersion: 1.34.2-1.1\nArchitecture: all\nMaintainer: x\nDescription: x\n"
            self.write(f"tmp/{name}/DEBIAN/control", control)
        self.run(f"for name in {' '.join(names)}; do dpkg-deb -b /tmp/$name; dpkg -i /tmp/$name.deb; done")

    def write(self, name: str, text: str, mode: int = 0o644) -> None:
        target = self.folder / "upper" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def read(self, name: str) -> str:
        return (self.folder / "upper" / name).read_text()

    def calls(self) -> list[str]:
        """What the stubs were told since the last look."""
        log = self.folder / "upper/var/log/calls"
        found = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return found

    def run(self, script: str, env: dict[str, str] | None = None, *, alone: bool = False) -> str:
        """Run a shell script in it and return what it printed; a failure shows everything."""
        enter = ["unshare", *_NAMESPACES, *(["--net"] if alone else []), "sh", "-euc", _ENTER, "sh"]
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        proxies = [f"{name}={value}" for name, value in os.environ.items() if name.lower().endswith("_proxy")]
        words = [f"{name}={value}" for name, value in (env or {}).items()]
        argv = [*enter, str(self.folder), str(REPO), "env", "-i", path, "HOME=/root", *proxies, *words]
        done = subprocess.run(
            [*argv, "sh", "-euc", textwrap.dedent(script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{script}\nstatus {done.returncode}\n{done.stdout}"
        return done.stdout


def asked_for(**settings: str) -> dict[str, list[dict]]:
    """What the Vagrantfile says, by machine; settings stand in the environment."""
    script = pathlib.Path(__file__).with_name("vagrantfile.rb")
    env = {"PATH": os.environ["PATH"], **settings}
    done = subprocess.run(["ruby", script, VAGRANTFILE], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def environment(machine: str, **settings: str) -> dict[str, str]:
    """The variables that a machine's scripts get."""
    scripts = [call["options"] for call in asked_for(**settings)[machine] if call["name"] == "provision"]
    return next(options["env"] for options in scripts if "env" in options)
