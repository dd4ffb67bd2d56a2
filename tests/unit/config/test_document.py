import pytest
import yaml

from ipvsproxy.config.document import KUBE_PROXY, OURS, Unusable, decode, text, tree
from ipvsproxy.config.settle import settle

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


def read(body, form=KUBE_PROXY):
    return decode((HEAD + body).encode(), form)


def test_values_by_field():
    got = read(
        "conntrack: {min: 5, tcpCloseWaitTimeout: 0s}\nclusterCIDR: 10.0.0.0/8,fd00::/8\nipvs:\n  strictARP: yes\n"
    )
    assert got.complaints == []
    assert got.values == {
        "conntrack.min": 5, "conntrack.tcpCloseWaitTimeout": 0, "clusterCIDR": ["10.0.0.0/8", "fd00::/8"],
        "ipvs.strictARP": True,
    }  # fmt: skip


def test_null_is_absent():
    assert read("conntrack: null\nipvs: {excludeCIDRs: null}\noomScoreAdj: ~\n").values == {}


def test_json_is_yaml():
    data = b'{"kind": "KubeProxyConfiguration", "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "mode": "ipvs"}'
    assert decode(data, KUBE_PROXY).values == {"mode": "ipvs"}


def test_what_only_a_strict_reader_minds():
    got = read("nope: 1\nipvs:\n  scheduler: rr\n  scheduler: mh\n  Scheduler: lc\n  deep: {er: 1}\n")
    assert got.values == {"ipvs.scheduler": "mh"}
    assert got.complaints == [
        "line 3: KubeProxyConfiguration.nope: unknown field",
        "line 6: KubeProxyConfiguration.ipvs.scheduler: given twice, the last one counts",
        "line 7: KubeProxyConfiguration.ipvs.Scheduler: unknown field",
        "line 8: KubeProxyConfiguration.ipvs.deep: unknown field",
    ]


def test_a_section_given_twice_is_one():
    got = read("ipvs: {scheduler: rr}\nipvs: {strictARP: true}\n")
    assert got.values == {"ipvs.scheduler": "rr", "ipvs.strictARP": True}
    assert len(got.complaints) == 1


def test_everything_else_is_fatal_and_said_at_once():
    with pytest.raises(Unusable) as caught:
        read("conntrack: {min: five}\nipvs: 3\nmode: 7\nconfigSyncPeriod: 30\nx: 1\n")
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == [
        "KubeProxyConfiguration.conntrack.min", "KubeProxyConfiguration.ipvs", "KubeProxyConfiguration.mode",
        "KubeProxyConfiguration.configSyncPeriod",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a KubeProxyConfiguration"),
        (b"- a", "not a KubeProxyConfiguration"),
        (b"a: [", "line 2: did not find"),
        (b"a: b: c", "line 1: mapping values"),
        (b"\xff\xfe\xff", "UTF-16"),
        (b"kind: KubeProxyConfiguration", "apiVersion ''"),
        (b"apiVersion: kubeproxy.config.k8s.io/v1\nkind: KubeProxyConfiguration", "v1', kind"),
        (HEAD.encode() + b"---\nx: 1", "document"),
        (HEAD.encode() + b"mode: !!python/name:os.system", "mode: could not determine a constructor"),
    ],
)
def test_what_is_no_configuration(data, words):
    with pytest.raises(Unusable, match=words):
        decode(data, KUBE_PROXY)


def test_our_own_form():
    got = decode(
        b"apiVersion: ipvsproxy.io/v1alpha1\nkind: IPVSProxyConfiguration\nvipMode: route\nmode: x\n", OURS
    )
    assert got.values == {"vipMode": "route"}
    assert got.complaints == ["line 4: IPVSProxyConfiguration.mode: unknown field"]


def test_what_is_written_reads_the_same():
    settings = settle(
        {"conntrack.min": 7, "clusterCIDR": ["10.0.0.0/8"], "featureGates": {"A": True},
         "ipvs.excludeCIDRs": ["::/0"], "logging.vmodule": [{"filePattern": "a", "verbosity": 3}]}, {},
    )  # fmt: skip
    written = text(settings.values)
    again = decode(written.encode(), KUBE_PROXY)
    assert again.complaints == []
    assert again.values == {name: settings.values[name] for name in KUBE_PROXY.fields}
    assert yaml.safe_load(written) == tree(settings.values)
    assert "&id" not in written
