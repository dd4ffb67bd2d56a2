"""Addresses at which clouds answer questions of a machine: credentials, settings, time, names.

Only those that are not link-local: `plan.safety` refuses all of 169.254.0.0/16 and fe80::/10 anyway.
"""

from ipvsproxy.base.address import parse_ip

METADATA_SERVICES = {
    parse_ip(text): provider
    for text, provider in {
        # Whitepaper "IPv6 on AWS", supporting VPC services; EKS user guide, Pod Identity agent.
        "fd00:ec2::254": "AWS",
        "fd00:ec2::253": "AWS",
        "fd00:ec2::123": "AWS",
        "fd00:ec2::23": "AWS",
        # Azure, "What is IP address 168.63.129.16?": the wire server, DHCP, DNS and health probes.
        "168.63.129.16": "Azure",
        # Compute Engine, "Query VM metadata": machines with IPv6 alone.
        "fd20:ce::254": "Google Cloud",
        # cloud-init, data source AliYun.
        "100.100.100.200": "Alibaba Cloud",
        # Oracle Cloud Classic, instance metadata.
        "192.0.0.192": "Oracle Cloud",
        # oci-python-sdk, auth/signers/instance_principals_security_token_signer.py.
        "fd00:c1::a9fe:a9fe": "Oracle Cloud",
        # cloud-init, data source Scaleway.
        "fd00:42::42": "Scaleway",
        # cloud-init, data source Akamai.
        "fd00:a9fe:a9fe::1": "Akamai",
    }.items()
}
"""Provider by address."""
