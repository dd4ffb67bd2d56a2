"""Names and numbers that several parts of the program share: of its objects in the kernel, of protocols.

The nft scripts state some of them as well; tests/unit/ruleset/test_schema.py compares.
"""

TABLE = "ipvsproxy"
"""Our nftables tables, in the families inet, arp, ip and ip6. Never `kube-proxy`: Calico's Felix takes that name
for kube-proxy's nftables mode."""
VIP_LINK = "kube-ipvs0"
"""The dummy link that holds the VIPs: kube-proxy's name, by which Calico recognises the IPVS mode."""
NAT_PRIORITY = -110
"""The hook priority of our nat chains, before the usual -100 (NF_IP_PRI_NAT_DST)."""
MASQUERADE_BIT = 14
"""The bit of the packet mark for replies, unless `iptables.masqueradeBit` names another: kube-proxy's default."""
REPLIES_COMMENT = "ipvsproxy replies"
"""Begins the comment of our rule in another program's FORWARD chain; the mark follows."""
DNS_PORT = 53
GUE_PORT = 6080
"""Where pods take packets in GUE (IANA's number)."""
DIRECT_LINKS = {4: "ipvsproxy4", 6: "ipvsproxy6"}
"""The links in a pod at which tunnels of direct server return end, by family."""
