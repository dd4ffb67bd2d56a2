#!/bin/sh
# The client has nothing of a cluster: network.sh gave it its addresses, routes to VIPs, and `who` to ask with.
set -eu
# shellcheck source=vagrant/provision/lib.sh
. "$(dirname "$0")/lib.sh"
say "ready: who ask ADDRESS PORT"
