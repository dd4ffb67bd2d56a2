from pathlib import Path

import pytest

from ipvsproxy.config import ALL_SERVICES, ConntrackSettings, DetectLocalMode, IpvsTimeouts, Listen, VipMode
from ipvsproxy.config.advice import family_advice
from ipvsproxy.config.assemble import config as assembled
from ipvsproxy.config.check import other_mode, problems
from ipvsproxy.config.commandline import parse
from ipvsproxy.config.document import ConfigFileError, text
from ipvsproxy.config.settle import settle

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
OURS = "apiVersion: ipvsproxy.io/v1alpha1\nkind: IPVSProxyConfiguration\n"
KUBEADM = Path(__file__).with_name("kubeadm-config.conf")


def settings(*arguments, **environment):
    return settle(parse(arguments).values, environment)


def config(*arguments, **environment):
    settled = settings(*arguments, **environment)
    assert list(problems(settled)) == []
    assert other_mode(settled) == ""
    return assembled(settled, "Host")


@pytest.fixture
def file(tmp_path):
    def write(body, head=HEAD, name="config.conf"):
        path = tmp_path / name
        path.write_text(head + body)
        return path

    return write


def test_kubeadm_starts_it_unchanged():
    made = config(f"--config={KUBEADM}", "--hostname-override=Node-1 ")
    assert made.node_name == "node-1"
    assert made.kubeconfig == Path("/var/lib/kube-proxy/kubeconfig.conf")
    assert made.cluster_cidrs == ("10.244.0.0/16", "fd00:10:244::/56")
    assert made.detect_local_mode is DetectLocalMode.CLUSTER_CIDR
    assert (made.scheduler, made.sync_period, made.min_sync_period) == ("rr", 30.0, 0.0)
    assert (made.masquerade_all, made.masquerade_bit, made.nodeport_addresses) == (False, 14, ())
    assert (made.conntrack.max_per_core, made.conntrack.min) == (32768, 131072)
    assert (made.conntrack.tcp_established, made.conntrack.tcp_close_wait) == (86400, 3600)
    assert made.oom_score_adj == -999
    assert (str(made.healthz_bind_address), str(made.metrics_bind_address)) == ("0.0.0.0:10256", "127.0.0.1:10249")
    assert settings(f"--config={KUBEADM}").notes == []


def test_flags_alone():
    made = config()
    assert (made.node_name, made.scheduler, made.vip_mode) == ("host", "rr", VipMode.AUTO)
    assert made.document["kind"] == "KubeProxyConfiguration"
    assert dict(made.flags)["oom-score-adj"] == "-999"


def test_the_least_pause_has_two_defaults(file):
    assert config().min_sync_period == 1
    assert config("--ipvs-min-sync-period=0s").min_sync_period == 0
    assert config(f"--config={file('')}").min_sync_period == 0
    assert config(f"--config={file('ipvs: {minSyncPeriod: 2s, syncPeriod: 1m}')}").min_sync_period == 2
    sections = "iptables: {minSyncPeriod: 9s, syncPeriod: 9s}"
    assert config(f"--config={file(sections)}").sync_period == 30
    assert config("--iptables-sync-period=9s", "--iptables-min-sync-period=9s").sync_period == 30


def test_masquerading_comes_from_the_iptables_section(file):
    made = config(f"--config={file('nftables: {masqueradeAll: true, masqueradeBit: 3}')}")
    assert (made.masquerade_all, made.masquerade_bit) == (False, 14)
    made = config(f"--config={file('iptables: {masqueradeAll: true, masqueradeBit: 0}')}")
    assert (made.masquerade_all, made.masquerade_bit, made.masquerade_mark) == (True, 0, 1)


def test_a_zero_means_the_default_unless_null_does(file):
    zeros = "configSyncPeriod: 0s\nclientConnection: {qps: 0}\nipvs: {syncPeriod: 0s}\n"
    nullable = (
        "oomScoreAdj: 0\nconntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}\n"
    )
    made = config(f"--config={file(zeros + nullable)}")
    assert (made.document["clientConnection"]["qps"], made.sync_period) == (5, 30)
    assert made.oom_score_adj == 0
    assert made.conntrack == ConntrackSettings(max_per_core=0, min=0, tcp_established=0, tcp_close_wait=0)


def test_beside_a_file_most_flags_do_not_count(file):
    body = "hostnameOverride: a\nlogging: {verbosity: 1, vmodule: [{filePattern: f, verbosity: 1}]}\n"
    settled = settings(
        f"--config={file(body)}", "--hostname-override=b", "-v=3", "--vmodule=g=2", "--master=u",
        "--ipvs-scheduler=mh", "--oom-score-adj=1", "--manifests=m",
    )  # fmt: skip
    assert settled.values["ipvs.scheduler"] == ""
    assert [settled.values[key] for key in ("hostnameOverride", "logging.verbosity", "--master", "manifests")] == [
        "b", 3, "u", "m",
    ]  # fmt: skip
    assert [item["filePattern"] for item in settled.values["logging.vmodule"]] == ["g", "f"]
    assert any("--ipvs-scheduler, --oom-score-adj: ignored" in note for note in settled.notes)


@pytest.mark.parametrize(
    ("arguments", "healthz", "metrics"),
    [
        ([], "0.0.0.0:10256", "127.0.0.1:10249"),
        (["--bind-address=::"], "[::]:10256", "[::1]:10249"),
        (["--healthz-bind-address=10.0.0.1"], "10.0.0.1:10256", "127.0.0.1:10249"),
        (["--healthz-bind-address=fd00::1"], "[fd00::1]:10256", "127.0.0.1:10249"),
        (["--healthz-bind-address=[fd00::1]:9"], "[fd00::1]:9", "127.0.0.1:10249"),
        (["--healthz-port=1", "--metrics-port=2"], "0.0.0.0:1", "127.0.0.1:2"),
        (["--healthz-port=0", "--metrics-port=0"], "None", "None"),
        (["--healthz-bind-address=", "--metrics-bind-address="], "None", "None"),
        (["--healthz-port=1", "--write-config-to=x"], "0.0.0.0:10256", "127.0.0.1:10249"),
    ],
)
def test_where_servers_listen(arguments, healthz, metrics):
    made = config(*arguments)
    assert (str(made.healthz_bind_address), str(made.metrics_bind_address)) == (healthz, metrics)


def test_where_servers_listen_by_a_file(file):
    body = "bindAddress: '::'\nmetricsBindAddress: 10.0.0.1\n"
    made = config(f"--config={file(body)}", "--healthz-port=1")
    assert made.bind_address == bytes(16)
    assert (made.healthz_bind_address, made.metrics_bind_address) == (
        Listen(bytes(16), 10256), Listen(bytes((10, 0, 0, 1)), 10249),
    )  # fmt: skip


def test_our_own_settings_come_from_three_places(file):
    extra = file("vipMode: route\n", OURS, "extra.yaml")
    assert config(f"--extra-config={extra}").vip_mode is VipMode.ROUTE
    assert config(IPVSPROXY_EXTRA_CONFIG=str(extra)).vip_mode is VipMode.ROUTE
    assert config(f"--extra-config={extra}", IPVSPROXY_VIP_MODE="address").vip_mode is VipMode.ADDRESS
    assert config("--vip-mode=auto", IPVSPROXY_VIP_MODE="address").vip_mode is VipMode.AUTO
    assert config("--drain-timeout=1h30m").drain_timeout == 5400
    assert config().drain_timeout == 0
    assert config().service_metrics == 0
    assert config("--service-metrics=all").service_metrics == ALL_SERVICES
    assert config("--service-metrics=25").service_metrics == 25
    made = config(f"--config={KUBEADM}", f"--extra-config={extra}")
    assert made.vip_mode is VipMode.ROUTE
    assert [path for path, _ in made.files] == [KUBEADM, extra]


@pytest.mark.parametrize(
    ("given", "ranges", "families"),
    [
        ("", (), set()),
        ("primary", ("primary",), set()),
        ("0.0.0.0/0", ("0.0.0.0/0",), set()),
        ("primary,localhost", ("primary", "127.0.0.0/8", "::1/128"), {4, 6}),
        ("all", ("0.0.0.0/0", "::/0"), set()),
        ("127.0.0.1/32", ("127.0.0.1/32",), {4}),
        ("192.0.2.0/24,::1/128", ("192.0.2.0/24", "::1/128"), {6}),
    ],
)
def test_where_nodeports_answer(given, ranges, families):
    made = config(f"--nodeport-addresses={given}")
    assert (made.nodeport_addresses, made.localhost_families) == (ranges, families)


def test_defaults_of_services_by_name(file):
    extra = file("serviceDefaults: {scheduler: mh, same-zone-weight: 10, one-packet: true}\n", OURS, "extra.yaml")
    wanted = (("scheduler", "mh"), ("same-zone-weight", "10"), ("one-packet", "true"))
    assert config(f"--extra-config={extra}").service_defaults == wanted
    given = "--service-defaults=affinity-netmask=24,64; scheduler=sh"
    assert config(given).service_defaults == (("affinity-netmask", "24,64"), ("scheduler", "sh"))
    assert config(given, "--service-defaults=scheduler=mh").service_defaults[1] == ("scheduler", "mh")
    assert config().service_defaults == ()


def test_a_setting_that_was_renamed_is_read_by_its_old_names(file):
    extra = file("quietARP: false\n", OURS, "extra.yaml")
    for given in (
        settings("--quiet-arp=false"),
        settings(IPVSPROXY_QUIET_ARP="false"),
        settings(f"--extra-config={extra}"),
    ):
        assert given.values["suppressVIPARP"] is False
    assert settings(IPVSPROXY_QUIET_ARP="false").notes == [
        "IPVSPROXY_QUIET_ARP: deprecated, use IPVSPROXY_SUPPRESS_VIP_ARP"
    ]
    assert settings(f"--extra-config={extra}").notes == [
        f"{extra}: line 3: IPVSProxyConfiguration.quietARP: deprecated, use suppressVIPARP"
    ]


@pytest.mark.parametrize(
    "body", ["quietARP: false\nsuppressVIPARP: true\n", "suppressVIPARP: true\nquietARP: false\n"]
)
def test_of_two_names_of_a_setting_the_new_one_wins(file, body):
    extra = file(body, OURS, "extra.yaml")
    assert settings(f"--extra-config={extra}").values["suppressVIPARP"] is True
    both = {"IPVSPROXY_QUIET_ARP": "false", "IPVSPROXY_SUPPRESS_VIP_ARP": "true"}
    assert settings(**both).values["suppressVIPARP"] is True


def test_what_has_no_effect_is_reported(file):
    assert any("--iptables-sync-period" in note for note in settings("--iptables-sync-period=1s").notes)
    notes = settings(f"--config={file('winkernel: {enableDSR: true}')}").notes
    assert any("KubeProxyConfiguration.winkernel.enableDSR: accepted" in note for note in notes)
    assert any("--healthz-port: deprecated" in note for note in settings("--healthz-port=1").notes)


def test_a_file_that_cannot_be_used_is_named(file, tmp_path):
    with pytest.raises(ConfigFileError, match=r"away: No such file"):
        settings(f"--config={tmp_path / 'away'}")
    with pytest.raises(ConfigFileError, match=r"config.conf: line 3: KubeProxyConfiguration.mode"):
        settings(f"--config={file('mode: 1')}")
    with pytest.raises(ConfigFileError, match=r"extra.yaml: .* not ipvsproxy.io"):
        settings(f"--extra-config={file('', HEAD, 'extra.yaml')}")


def test_what_is_written_means_the_same(file):
    flags = [
        "--cluster-cidr=10.0.0.0/8", "--ipvs-scheduler=mh", "--ipvs-tcp-timeout=90s", "--masquerade-all",
        "--conntrack-max-per-core=0", "--nodeport-addresses=primary", "--feature-gates=ComponentFlagz=false",
        "--healthz-bind-address=[::]:1", "--kube-api-qps=2.5",
    ]  # fmt: skip
    first = settings(*flags)
    path = file(text(first.values), "")
    assert assembled(first, "n") == assembled(settings(f"--config={path}"), "n")


def test_feature_gates():
    made = config("--feature-gates=AllowServiceExternalIPs=false,ComponentStatusz=false,SomethingElse=true")
    assert (made.allow_external_ips, made.serve_flagz, made.serve_statusz) == (False, True, False)


def test_a_claimed_version():
    assert config("--version=v1.34.0-rc.1").kubernetes_version == "v1.34.0-rc.1"
    assert config().kubernetes_version == "v1.36.2"


@pytest.mark.parametrize("cidrs", ["", "nonsense", "10.0.0.0/8,"])
def test_pod_ranges_that_no_detector_needs_may_be_anything(cidrs):
    made = config(f"--cluster-cidr={cidrs}", "--detect-local-mode=NodeCIDR")
    assert made.cluster_cidrs == (("10.0.0.0/8",) if "10." in cidrs else ())
    assert family_advice(made, frozenset((4, 6)))[0] == ""


def test_an_empty_name_of_the_node_beside_a_file_is_none(file):
    """What is left of $(NODE_NAME) where there is no such variable."""
    path = file("hostnameOverride: a\n")
    assert config(f"--config={path}", "--hostname-override=").node_name == "a"
    assert config(f"--config={path}", "--hostname-override=b").node_name == "b"
    assert config("--hostname-override=").node_name == "host"


def test_each_setting_goes_where_it_belongs(file):
    timeouts = "ipvs: {tcpTimeout: 1s, tcpFinTimeout: 2s, udpTimeout: 3s, syncPeriod: 4s, minSyncPeriod: 500ms}\n"
    conntrack = (
        "conntrack: {maxPerCore: 1, min: 2, tcpEstablishedTimeout: 3s, tcpCloseWaitTimeout: 4s,"
        " tcpBeLiberal: true, udpTimeout: 5s, udpStreamTimeout: 6s}\n"
    )
    detector = "detectLocal: {bridgeInterface: br0, interfaceNamePrefix: cali}\n"
    made = config(f"--config={file(timeouts + conntrack + detector)}")
    assert made.ipvs_timeouts == IpvsTimeouts(1, 2, 3)
    assert (made.sync_period, made.min_sync_period) == (4, 0.5)
    assert made.conntrack == ConntrackSettings(1, 2, 3, 4, True, 5, 6)
    assert (made.pod_bridge_interface, made.pod_interface_name_prefix) == ("br0", "cali")


@pytest.mark.parametrize(
    ("given", "seconds", "said"), [("1ns", 0.1, 1), ("100ms", 0.1, 0), ("2562047h", 9223369200, 0)]
)
def test_verifications_leave_time_for_other_things(file, given, seconds, said):
    path = file(f"ipvs: {{syncPeriod: {given}}}\n")
    assert config(f"--config={path}").sync_period == seconds
    assert len([note for note in settings(f"--config={path}").notes if "counts as 100ms" in note]) == said
