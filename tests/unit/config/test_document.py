from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ipvsproxy.config.document import KUBE_PROXY, OURS, ConfigFileError, decode, text, tree
from ipvsproxy.config.settle import settle

FIELD = Path(__file__).parents[2] / "field" / "cases"
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
        "line 7: KubeProxyConfiguration.ipvs.Scheduler: unknown field; did you mean ipvs.scheduler?",
        "line 8: KubeProxyConfiguration.ipvs.deep: unknown field",
    ]


def test_many_unknown_fields_are_not_all_compared_with_those_that_are_known():
    got = read("".join(f"metricsBindAddress{n}: x\n" for n in range(100))).complaints
    assert len(got) == 100
    assert sum("did you mean metricsBindAddress?" in words for words in got) == 20


@pytest.mark.parametrize("last", [{"ipvs.strictARP": True}, {}])
def test_of_a_section_given_twice_the_last_one_counts(last):
    """Not both together: what kube-proxy decodes is a map."""
    got = read(f"ipvs: {{scheduler: rr}}\nipvs: {'{strictARP: true}' if last else 'null'}\n")
    assert got.values == last
    assert got.complaints == ["line 4: KubeProxyConfiguration.ipvs: given twice, the last one counts"]


def test_everything_else_is_fatal_and_reported_at_once():
    with pytest.raises(ConfigFileError) as caught:
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
        (b"a: [", "line 1, column 5: did not find .*, at the end of the file"),
        (b"a: b: c", "line 1, column 5: mapping values are not allowed in this context, at ':'"),
        (b"a: 1\n\tb: 2", r"line 2, column 1: .* at '.t' \(tab\)"),
        (b"a: 1\nb: @c", r"line 2, column 4: .* at '@' \(commercial at\)"),
        (b"a: 1\r\nb: \0", r"line 2, column 4: control characters are not allowed, found '.x00'"),
        (b"a: 1\nb: \xe9", "line 2: byte 0xe9 is not UTF-8"),
        (b"a: &x [*x]", "nested more deeply than 100 levels"),
        (b"[" * 100_000, "line 1, column 1001: exceeded maximum nesting depth"),
        (HEAD.encode() + b"mode: !!timestamp x", "line 3: KubeProxyConfiguration.mode: has the tag"),
        (HEAD.encode() + b"ipvs: {<<: 3}", "line 3: KubeProxyConfiguration.ipvs.<<: expected a mapping"),
        (
            b"---\n---\n" + HEAD.encode(),
            r"not a KubeProxyConfiguration; line 3: document 2 \(.*\) is one, but only",
        ),
        (
            b"kind: ClusterConfiguration\n---\n" + HEAD.encode(),
            r"kind 'ClusterConfiguration': .* document 2 .* is one",
        ),
        (b"\xff\xfe\xff", "UTF-16"),
        (b"kind: KubeProxyConfiguration", "apiVersion ''"),
        (b"apiVersion: kubeproxy.config.k8s.io/v1\nkind: KubeProxyConfiguration", "v1', kind"),
        (HEAD.encode() + b"mode: !!python/name:os.system", "mode: could not determine a constructor"),
    ],
)
def test_what_is_no_configuration(data, words):
    with pytest.raises(ConfigFileError, match=words):
        decode(data, KUBE_PROXY)


SECOND = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("---\n", "", []), ("# a comment\n---\n", "", []), ("%YAML 1.1\n---\n", "", []), ("", "---\n", []),
        ("", "---\n---\n", []), ("", "...\n", []), ("", "---\n# nothing\n", []),
        ("", f"---\n{SECOND}", ["line 5: document 2 (kubeadm.k8s.io/v1beta4 ClusterConfiguration) is ignored"]),
        ("", "---\nx: [\n", ["line 6: document 2 is ignored"]),
        ("", "---\n---\n- 1\n", ["line 6: document 3 is ignored"]),
    ],
)  # fmt: skip
def test_the_first_document_counts(before, after, said):
    got = decode(f"{before}{HEAD}mode: ipvs\n{after}".encode(), KUBE_PROXY)
    assert got.values == {"mode": "ipvs"}
    assert [complaint.partition(":")[0] for complaint in got.complaints] == [
        line.partition(":")[0] for line in said
    ]
    assert all(complaint.startswith(line) for complaint, line in zip(got.complaints, said, strict=True))


@pytest.mark.parametrize("name", ["01-config-ends-with-dashes.yaml", "01-config-second-document.yaml"])
def test_files_of_other_people_are_read(name):
    got = decode((FIELD / name).read_bytes(), KUBE_PROXY)
    assert got.values == {"mode": "ipvs", "clusterCIDR": ["10.71.0.0/16"]}
    assert len(got.complaints) == ("second" in name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_every_encoding_of_unicode(encoding):
    assert decode(f"{HEAD}mode: ipvs\n".encode(encoding), KUBE_PROXY).values == {"mode": "ipvs"}


def test_json_with_what_yaml_does_not_know():
    data = b'{\n\t"kind": "KubeProxyConfiguration",\t"apiVersion": "kubeproxy.config.k8s.io/v1alpha1",'
    got = decode(data + b'"hostnameOverride": "\\ud83d\\ude00\\/"}', KUBE_PROXY)
    assert got.values == {"hostnameOverride": "😀/"}


def test_half_of_a_surrogate_pair_is_refused_as_yaml_does():
    data = b'{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",'
    with pytest.raises(ConfigFileError, match=r"line 1.*Unicode"):
        decode(data + b'"hostnameOverride": "\\ud83d"}', KUBE_PROXY)


def test_merged_mappings_and_aliases():
    got = read("iptables: &a {syncPeriod: 1s, minSyncPeriod: 1s}\nipvs:\n  <<: *a\n  minSyncPeriod: 2s\n")
    assert got.complaints == []
    assert (got.values["ipvs.syncPeriod"], got.values["ipvs.minSyncPeriod"]) == (10**9, 2 * 10**9)


def test_aliases_that_expand_without_end_are_refused_at_once():
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    with pytest.raises(ConfigFileError, match="aliases make the document much larger"):
        read("\n".join(lines))


# What Go's decoder of KubeProxyConfiguration takes for each kind of field, and what it then has.
@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ("enableProfiling: y", "enableProfiling", True), ("enableProfiling: Off", "enableProfiling", False),
        ("oomScoreAdj: -0x10", "oomScoreAdj", -16), ("oomScoreAdj: 010", "oomScoreAdj", 8),
        ("oomScoreAdj: 1e2", "oomScoreAdj", 100), ("oomScoreAdj: 5.0", "oomScoreAdj", 5),
        ("oomScoreAdj: 1_0", "oomScoreAdj", 10), ("clientConnection: {qps: 1e3}", "clientConnection.qps", 1000),
        ("clientConnection: {qps: 7}", "clientConnection.qps", 7),
        ("bindAddress: 2001:10:20:30:40:50:1:2", "bindAddress", "2001:10:20:30:40:50:1:2"),
        ("hostnameOverride: 2024-01-02", "hostnameOverride", "2024-01-02"),
        ("hostnameOverride: =", "hostnameOverride", "="),
        ("logging: {flushFrequency: 5000000000}", "logging.flushFrequency", 5 * 10**9),
        ("logging: {flushFrequency: 5s}", "logging.flushFrequency", 5 * 10**9),
        ("logging: {options: {json: {infoBufferSize: 0}}}", "logging.options.json.infoBufferSize", "0"),
        ("logging: {options: {json: {infoBufferSize: ' 0Ki '}}}", "logging.options.json.infoBufferSize", "0"),
        ("logging: {options: {json: {infoBufferSize: 64Ki}}}", "logging.options.json.infoBufferSize", "64Ki"),
        ("logging: {vmodule: [{filePattern: a}]}", "logging.vmodule", [{"filePattern": "a", "verbosity": 0}]),
        ("logging: {vmodule: [{filePattern: a, verbosity: 2, x: y}]}", "logging.vmodule",
         [{"filePattern": "a", "verbosity": 2}]),
        ("featureGates: {A: true, B: null}", "featureGates", {"A": True, "B": False}),
        ("nodePortAddresses: []", "nodePortAddresses", []),
        ("nodePortAddresses:\n- 10.0.0.0/8", "nodePortAddresses", ["10.0.0.0/8"]),
        ("ipvs: {syncPeriod: 1m30.5s}", "ipvs.syncPeriod", 90_500_000_000),
    ],
)  # fmt: skip
def test_a_value_is_what_kube_proxy_has(body, field, value):
    got = read(body)
    assert got.complaints == []
    assert got.values == {field: value}


@pytest.mark.parametrize(
    "section", ["clientConnection", "logging", "detectLocal", "iptables", "ipvs", "nftables", "winkernel",
                "conntrack", "featureGates", "nodePortAddresses", "mode", "configSyncPeriod"],
)  # fmt: skip
@pytest.mark.parametrize("nothing", ["", "null", "~", "Null"])
def test_nothing_is_nothing_everywhere(section, nothing):
    assert read(f"{section}: {nothing}\n").values == {}


@pytest.mark.parametrize(
    "body",
    ["mode: 7", "mode: [ipvs]", "enableProfiling: 'true'", "oomScoreAdj: '5'", "oomScoreAdj: 1.5",
     "configSyncPeriod: 30",
     "configSyncPeriod: ''", "configSyncPeriod: 1d", "featureGates: A=true", "featureGates: {A: 'true'}",
     "nodePortAddresses: 10.0.0.0/8", "clientConnection: {qps: .nan}", "clientConnection: {qps: '5'}",
     "oomScoreAdj: 99999999999", "logging: {vmodule: [{filePattern: 'a=b'}]}", "conntrack: []", "ipvs: x"],
)  # fmt: skip
def test_what_kube_proxy_refuses_is_refused_with_line_and_field(body):
    with pytest.raises(ConfigFileError, match=r"^line 3: KubeProxyConfiguration\.[A-Za-z.]+: "):
        read(body)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_give_anything_but_an_answer(data):
    for content in (data, HEAD.encode() + data):
        with suppress(ConfigFileError):
            decode(content, KUBE_PROXY)


def test_our_own_form():
    got = decode(
        b"apiVersion: ipvsproxy.io/v1alpha1\nkind: IPVSProxyConfiguration\nvipMode: route\nmode: x\n", OURS
    )
    assert got.values == {"vipMode": "route"}
    assert got.complaints == ["line 4: IPVSProxyConfiguration.mode: unknown field"]


def test_what_is_written_reads_the_same():
    settled = settle(
        {"conntrack.min": 7, "clusterCIDR": ["10.0.0.0/8"], "featureGates": {"A": True},
         "ipvs.excludeCIDRs": ["::/0"],
         "hostnameOverride": "y", "portRange": "1e3", "ipvs.scheduler": "010",
         "logging.vmodule": [{"filePattern": "a", "verbosity": 3}]}, {},
    )  # fmt: skip
    written = text(settled.values)
    again = decode(written.encode(), KUBE_PROXY)
    assert again.complaints == []
    assert again.values == {name: settled.values[name] for name in KUBE_PROXY.fields}
    assert yaml.safe_load(written) == tree(settled.values)
    assert "&id" not in written
