import pytest

from ipvsproxy.config.check import other_mode, problems, unknown_gates
from ipvsproxy.config.commandline import parse
from ipvsproxy.config.settle import settle


def found(*arguments):
    return list(problems(settle(parse(arguments).values, {})))


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--iptables-masquerade-bit=32", "within the range [0, 31]"),
        ("--ipvs-tcp-timeout=-1s", "'-1s': must be greater than or equal to 0"),
        ("--ipvs-tcpfin-timeout=-1s", "greater than or equal to 0"),
        ("--ipvs-udp-timeout=-1s", "greater than or equal to 0"),
        ("--ipvs-exclude-cidrs=10.0.0.0/8,nonsense", "entry 1 must be a valid CIDR"),
        ("--oom-score-adj=1001", "within the range"),
        ("--conntrack-max-per-core=-1", "greater than or equal to 0"),
        ("--conntrack-min=-1", "greater than or equal to 0"),
        ("--conntrack-tcp-timeout-established=-1s", "greater than or equal to 0"),
        ("--conntrack-tcp-timeout-close-wait=-1s", "greater than or equal to 0"),
        ("--conntrack-udp-timeout=-1s", "greater than or equal to 0"),
        ("--conntrack-udp-timeout-stream=-1s", "greater than or equal to 0"),
        ("--proxy-mode=userspace", "'iptables', 'ipvs', 'nftables'"),
        ("--kube-api-burst=-1", "greater than or equal to 0"),
        ("--config-sync-period=0s", "greater than 0"),
        ("--ipvs-sync-period=0s", "greater than 0"),
        ("--ipvs-min-sync-period=31s", "not be greater than syncPeriod, 30s"),
        ("--ipvs-min-sync-period=-1s", "greater than or equal to 0"),
        ("--bind-address=node", "not a valid textual representation"),
        ("--healthz-bind-address=localhost:1", "'localhost' is not a valid IP"),
        ("--healthz-bind-address=:10256", "'' is not a valid IP"),
        ("--healthz-bind-address=1.2.3.4:0", "'0' is not a valid port"),
        ("--healthz-bind-address=1.2.3.4:65536", "'65536' is not a valid port"),
        ("--healthz-bind-address=1.2.3.4:" + "1" * 5000, "is not a valid port"),
        ("--ipvs-scheduler=" + "x" * 16, "must be the name of an IPVS scheduler"),
        ("--ipvs-scheduler=../rr", "must be the name of an IPVS scheduler"),
        ("--metrics-bind-address=nonsense", "must be IP:port"),
        ("--metrics-bind-address=fd00::1:x", "must be IP:port"),
        ("--nodeport-addresses=primary,10.0.0.0/8", "cannot use both"),
        ("--nodeport-addresses=1.2.3.4", "must be a valid CIDR"),
        ("--show-hidden-metrics-for-version=1.34", "'1.35'"),
        ("--detect-local-mode=Guess", "'NodeCIDR'"),
        ("--cluster-cidr=10.0.0.0/8,10.1.0.0/16", "one of each IP family"),
        ("--cluster-cidr=10.0.0.0/8,fd00::/8,fd01::/16", "one of each IP family"),
        ("--cluster-cidr=10.0.0.0/33", "'10.0.0.0/33' is not a valid CIDR"),
        ("--cluster-cidr=", "'' is not a valid CIDR"),
        ("--logging-format=xml", "'json'"),
        ("--log-flush-frequency=0s", "greater than 0"),
        ("--log-json-split-stream", "LoggingAlphaOptions"),
        ("--log-text-info-buffer-size=1Ki", "LoggingAlphaOptions"),
        ("--feature-gates=PreferSameTrafficDistribution=false", "locked to true"),
        ("--version=1.2", "such as v1.36.2"),
        ("--hostname-override= ", "must not be blank"),
        ("--vip-mode=magic", "'route'"),
        ("--data-path=magic", "'auto'"),
        ("--drain-timeout=-1s", "invalid value '-1s': must be greater than or equal to 0"),
        ("--service-metrics=some", "invalid value 'some': must be off, all or a number of Services above 0"),
        (
            "--service-defaults=sheduler=mh",
            "'sheduler=mh': no annotation of a Service has this name; the nearest is scheduler",
        ),
        (
            "--service-defaults=scheduler=mh;same-zone-weight=many",
            "'same-zone-weight=many': is not a number from 1 to 1000",
        ),
        (
            "--service-defaults=share-with=blue",
            "'share-with=blue': has no default: its value is about one Service",
        ),
        ("--tenant-label=two words", "is not the name of a label"),
        ("--tenant-label=ipvsproxy.io/tenant", "local pods cannot be recognised"),
        ("--cluster-dns=kube-dns", "must be namespace/name of a Service"),
        ("--tenant-refusal=ask", "'drop'"),
        ("--service-metrics=0", "invalid value '0': must be off, all or a number of Services above 0"),
    ],
)
def test_one_problem_with_its_flag(argument, words):
    lines = found(argument)
    assert len(lines) == 1
    assert lines[0].startswith(argument.partition("=")[0] + ": ")
    assert words in lines[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cluster-cidr=10.0.0.0/8,fd00::/8"],
        ["--cluster-cidr=nonsense", "--detect-local-mode=NodeCIDR"],
        ["--show-hidden-metrics-for-version=1.35"],
        ["--feature-gates=LoggingAlphaOptions=true", "--log-json-split-stream"],
        ["--feature-gates=NobodyKnowsThis=true,PreferSameTrafficDistribution=true"],
        ["--ipvs-sync-period=500ms", "--ipvs-min-sync-period=500ms"],
        ["--bind-address=::ffff:1.2.3.4"],
        ["--nodeport-addresses=primary"],
        ["--nodeport-addresses=primary,localhost"],
        ["--nodeport-addresses=all,localhost"],
        ["--nodeport-addresses=localhost,192.0.2.0/24"],
        ["--healthz-bind-address=[::]:10256"],
        ["--proxy-mode=ipvs"],
        ["--metrics-port=0"],
    ],
)
def test_what_is_fine(arguments):
    assert found(*arguments) == []


def test_all_problems_at_once():
    assert len(found("--conntrack-min=-1", "--oom-score-adj=5000", "--bind-address=x", "--v=1")) == 3


@pytest.mark.parametrize(
    ("mode", "flag"), [("BridgeInterface", "--pod-bridge-interface"),
                       ("InterfaceNamePrefix", "--pod-interface-name-prefix")]
)  # fmt: skip
def test_a_detector_needs_its_interface(mode, flag):
    assert found(f"--detect-local-mode={mode}")[0].startswith(f"{flag}: ")
    assert found(f"--detect-local-mode={mode}", f"{flag}=x") == []


@pytest.mark.parametrize("name", ['x"; flush ruleset; "', "a b", "eth*", "x" * 16, "a/b", "a\nb", "\u0435th0"])
@pytest.mark.parametrize("flag", ["--pod-bridge-interface", "--pod-interface-name-prefix"])
def test_hostile_names_of_interfaces_do_not_get_past_the_settings(flag, name):
    assert f"{flag}: " in found(f"{flag}={name}")[0]
    assert found(f"{flag}=cali-0_x.1") == []


def test_vmodule_is_for_text():
    assert "--vmodule" in found("--vmodule=a=1", "--logging-format=json")[0]


def test_manifests_need_no_cluster():
    assert found("--manifests=m", "--kubeconfig=k") == ["--manifests: cannot be combined with --kubeconfig"]
    assert found("--manifests=m", "--master=k") == ["--manifests: cannot be combined with --master"]


def test_a_problem_of_a_file_names_the_field(tmp_path):
    path = tmp_path / "c"
    path.write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nconntrack: {min: -1}\n"
    )
    assert found(f"--config={path}") == [
        f"{path}: KubeProxyConfiguration.conntrack.min: invalid value '-1': must be greater than or equal to 0"
    ]


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_other_modes_need_a_word(mode):
    settings = settle({"mode": mode}, {})
    assert list(problems(settings)) == []
    assert other_mode(settings).startswith(f"--proxy-mode is {mode}, and ")
    assert other_mode(settle({"mode": mode, "replaceProxyMode": True}, {})) == ""


def test_gates_without_effect_are_known():
    assert unknown_gates(settle({"featureGates": {"B": True, "A": False, "ComponentFlagz": True}}, {})) == [
        "A",
        "B",
    ]
