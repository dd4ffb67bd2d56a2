#!/bin/sh
# The machine's place on the LAN, as a unit that is there after each boot.
set -eu
# shellcheck source=vagrant/provision/lib.sh
. "$(dirname "$0")/lib.sh"

# What a former cluster has downloaded, if it was kept: see vagrant/cache.sh.
if [ -d /var/cache/lab/apt ]; then
    cp -n /var/cache/lab/apt/archives/*.deb /var/cache/apt/archives/
    cp -n /var/cache/lab/apt/lists/* /var/lib/apt/lists/
fi
apt_need iproute2 nftables python3 curl
install -m 755 "$SOURCE/vagrant/provision/lab-network" /usr/local/sbin/lab-network
install -m 755 "$SOURCE/vagrant/who.py" /usr/local/bin/who
# The client has no pods to hide.
put /etc/lab-network <<END
ADDRESS4=$ADDRESS4
ADDRESS6=$ADDRESS6
ROUTES="$ROUTES"
PODS4=${POD_CIDR4:+$PODS4}
PODS6=${POD_CIDR6:+$PODS6}
END
put /etc/systemd/system/lab-network.service <<'END'
[Unit]
Description=Addresses and routes of the lab
After=network-online.target networking.service
Wants=network-online.target
Before=kubelet.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/lab-network

[Install]
WantedBy=multi-user.target
END
systemctl daemon-reload
systemctl enable --quiet lab-network
systemctl restart lab-network
