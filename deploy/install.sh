#!/bin/sh
# Everything the image holds, in one place: the Dockerfile runs this, and tools/image-root runs it in a root made by
# debootstrap, where the tests then start the proxy. Needs root and a Debian that is not used for anything else.
#
#     install.sh WHEEL LOCK
#
# WHEEL is ipvsproxy's own, LOCK pins everything it depends on by hash. pip's environment variables are honoured.
# ARCHIVE and SECURITY are URLs of Debian's archive and of its security archive, to take packages from in place of the
# base's own: those of a snapshot make a build that can be repeated. Beside this script lies sbom.py.
set -eu
wheel=$1
lock=$2
here=$(dirname "$0")
made=$(mktemp -d)
home=/opt/ipvsproxy
export DEBIAN_FRONTEND=noninteractive PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

apt() { apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 "$@"; }

# Snapshots keep the day on which their lists ended. The image keeps its own sources.
if [ -n "${ARCHIVE:-}" ]; then
    # shellcheck source=/dev/null
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -e "$keys" ] || keys=${keys%.gpg}.pgp
    for source in "$ARCHIVE $suite" ${SECURITY:+"$SECURITY $suite-security"}; do
        echo "deb [check-valid-until=no signed-by=$keys] $source main"
    done >"$made/sources.list"
    apt() {
        apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 -o Dir::Etc::SourceList="$made/sources.list" \
            -o Dir::Etc::SourceParts=- "$@"
    }
fi

apt update
# nftables.py is not on PyPI; kmod is there for `modprobe` in the container that may load modules.
apt install python3 python3-nftables libnftables1 kmod
# Only for the length of this script.
apt install python3-venv

# The environment sees the distribution's packages, since the nftables binding is one of them. pip compiles byte code now,
# which a read-only root would otherwise cost at every start. No source packages: nothing here can run a compiler.
python3 -m venv --system-site-packages "$home"
# The lock is all that is needed, and less than packages ask for: it leaves out what no module imports (pyproject.toml).
"$home/bin/pip" install --quiet --no-cache-dir --only-binary :all: --no-deps --require-hashes \
    --report "$made/locked" -r "$lock"
"$home/bin/pip" install --quiet --no-cache-dir --no-index --no-deps --report "$made/own" "$wheel"
# The asyncio twin of the client: half of its size, imported by no module here.
rm -rf "$home"/lib/python3*/site-packages/kubernetes/aio

# The name tells the program how to read its command line, so that kube-proxy's DaemonSet works as it is.
for name in ipvsproxy kube-proxy; do
    ln -sf "$home/bin/ipvsproxy" "/usr/local/bin/$name"
done

"$home/bin/pip" uninstall --quiet -y pip setuptools
find "$home/bin" ! -type d ! -name 'python*' ! -name ipvsproxy -delete
# A package that Python merely suggests counts as needed otherwise.
apt purge --auto-remove -o APT::AutoRemove::SuggestsImportant=false -o APT::AutoRemove::RecommendsImportant=false \
    python3-venv
apt clean
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log

# What it is made of, for those who compare it with advisories.
dpkg-query --show --showformat "$(sed -n 's/^FORMAT = "\(.*\)"$/\1/p' "$here/sbom.py")" |
    python3 -B "$here/sbom.py" "$made/locked" "$made/own" >"$home/sbom.cdx.json"
rm -r "$made"

# An image that cannot do this is not worth having.
"$home/bin/python" -c 'import nftables; nftables.Nftables()'
ipvsproxy version
