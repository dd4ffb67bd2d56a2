"""The objects on docs/dsr.md: valid, and of one mind about tunnel and VIPs.

tests/cluster/test_dsr.py applies them to a cluster.
"""

import kubernetes.client
import pytest

from tests.support.page import manifests

ANNOTATION = "ipvsproxy.io/forwarding"


@pytest.fixture
def objects():
    return manifests("docs/dsr.md")[0]


def init_container(deployment):
    (found,) = deployment["spec"]["template"]["spec"]["initContainers"]
    return found


def test_they_are_what_the_api_knows(objects):
    for item, kind in zip(objects, ("V1Service", "V1Deployment"), strict=True):
        model = getattr(kubernetes.client, kind).model_validate(item)
        assert model.model_dump(by_alias=True, exclude_none=True) == item


def test_service_and_pods_have_the_same_tunnel_and_vips(objects):
    service, deployment = objects
    command, tunnel, vips = init_container(deployment)["args"]
    assert command == "dsr-endpoint"
    assert tunnel == f"--tunnel={service['metadata']['annotations'][ANNOTATION]}"
    assert vips == f"--vips={','.join(service['spec']['externalIPs'])}"


def test_a_service_with_vips_of_both_families_is_of_both(objects):
    """A Service of one family ignores the external IPs of the other one."""
    spec = objects[0]["spec"]
    assert {":" in ip for ip in spec["externalIPs"]} == {False, True}
    assert spec["ipFamilyPolicy"] == "PreferDualStack"


def test_the_ports_are_the_same_number(objects):
    service, deployment = objects
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    ports = {each["containerPort"] for each in container["ports"]}
    assert {each["port"] for each in service["spec"]["ports"]} == ports
    assert {each["targetPort"] for each in service["spec"]["ports"]} == ports
