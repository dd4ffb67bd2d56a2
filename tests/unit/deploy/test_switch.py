"""The recipes of deploy/switch.md as far as they go without a cluster: patches, snippets, the order of steps."""

from __future__ import annotations

import functools
import json
import pathlib
import re
import shlex
import subprocess
import sys

import kubernetes.client
import pytest
import yaml

from tests.support.api_object import ApiObject
from tests.support.chart_values import by_kind, installed
from tests.support.deploy_tools import documents
from tests.support.kubectl_patch import merged, patched, runs_on

DEPLOY = pathlib.Path(__file__).resolve().parents[3] / "deploy"
PAGE = (DEPLOY / "switch.md").read_text()
NODE_SH = DEPLOY / "switch/node.sh"
KUBE_PROXY = yaml.safe_load((pathlib.Path(__file__).parent / "kubeadm-kube-proxy.yaml").read_text())
PATCH = yaml.safe_load((DEPLOY / "switch/kube-proxy.yaml").read_text())
LINUX = {"kubernetes.io/os": "linux"}
NODES = {
    "never touched, or has just joined": LINUX,
    "marked": LINUX | {"ipvsproxy": "yes"},
    "marked otherwise": LINUX | {"ipvsproxy": "no"},
}


def snippets() -> list[str]:
    """The indented blocks of the page, also those below a step of a list."""
    found, block = [], []
    for line in [*PAGE.splitlines(), "end"]:
        if line.startswith("    ") or (block and not line.strip()):
            block.append(line)
        elif block:
            text = "\n".join(block)
            found.append(re.sub(r"(?m)^ {4,7}(?=\S)", "", text).strip())
            block = []
    return [text for text in found if re.match(r"(kubectl|helm|deploy/|ctr|ours=|for )", text)]


def kubectl_lines() -> list[list[str]]:
    whole = PAGE.replace("\\\n", " ")
    commands = re.findall(r"kubectl [^`\n|>]*", whole)
    return [shlex.split(command.split(" then:")[0]) for command in commands]


def helm_lines(verb: str) -> list[list[str]]:
    """The commands of the page that install the chart, or upgrade it, with values."""
    whole = PAGE.replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(rf"helm {verb} [^`\n]*--set [^`\n]*", whole)]


def values_of(words: list[str]) -> ApiObject:
    """What each --set gives the chart; all values of the page are texts."""
    values: ApiObject = {}
    for given in (words[place + 1] for place, word in enumerate(words) if word == "--set"):
        path, _, value = given.partition("=")
        *above, last = path.split(".")
        functools.reduce(lambda inner, key: inner.setdefault(key, {}), above, values)[last] = value
    return values


def is_valid(item: ApiObject) -> None:
    model = kubernetes.client.V1DaemonSet.model_validate(item)
    assert model.model_dump(by_alias=True, exclude_none=True) == item


def handover() -> ApiObject:
    folder = DEPLOY / "kustomize/handover"
    overlay = yaml.safe_load((folder / "kustomization.yaml").read_text())
    (below,) = overlay["resources"]
    (cleanup,) = documents((folder / below / "daemonset.yaml").read_text())
    (patch,) = overlay["patches"]
    assert patch["target"] == {"kind": cleanup["kind"], "name": cleanup["metadata"]["name"]}
    return patched(cleanup, yaml.safe_load(patch["patch"]))


def ours() -> ApiObject:
    values = {"existingConfigMap": "ipvsproxy-config", "nodeSelector": {"ipvsproxy": "yes"}}
    return by_kind(installed(values))["DaemonSet"]


def test_kube_proxy_stays_off_marked_nodes_and_no_pod_is_restarted() -> None:
    is_valid(KUBE_PROXY)
    changed = merged(KUBE_PROXY, PATCH)
    is_valid(changed)
    assert changed["spec"]["updateStrategy"] == {"type": "OnDelete"}
    assert changed["spec"]["template"]["spec"].pop("affinity")
    assert changed["spec"]["template"] == KUBE_PROXY["spec"]["template"]


@pytest.mark.parametrize("labels", NODES.values(), ids=NODES)
def test_every_node_has_exactly_one_of_the_two(labels: dict[str, str]) -> None:
    assert runs_on(KUBE_PROXY, labels)
    assert [runs_on(merged(KUBE_PROXY, PATCH), labels), runs_on(ours(), labels)].count(True) == 1
    assert runs_on(handover(), labels) == runs_on(merged(KUBE_PROXY, PATCH), labels)


def test_a_node_on_its_way_back_has_neither_and_what_cleans_up() -> None:
    labels = LINUX | {"ipvsproxy": "back"}
    assert not runs_on(merged(KUBE_PROXY, PATCH), labels)
    assert not runs_on(ours(), labels)
    assert runs_on(handover(), labels)


def test_each_patch_of_the_page_does_what_the_page_promises() -> None:
    patches = [json.loads(line[line.index("-p") + 1]) for line in kubectl_lines() if "-p" in line]
    back, swap, end = patches
    assert end == back
    assert merged(merged(KUBE_PROXY, PATCH), back)["spec"]["template"] == KUBE_PROXY["spec"]["template"]
    assert merged(merged(KUBE_PROXY, PATCH), back)["spec"]["updateStrategy"] == {"type": "RollingUpdate"}
    assert merged(KUBE_PROXY, swap)["spec"]["updateStrategy"] == {"type": "OnDelete"}
    for patch in patches:
        is_valid(merged(KUBE_PROXY, patch))
    assert "--type=merge" in next(line for line in kubectl_lines() if "--patch-file" in line)


def test_what_cleans_up_on_the_way_back_is_valid_and_waits_for_kube_proxy() -> None:
    item = handover()
    is_valid(item)
    pod = item["spec"]["template"]["spec"]
    assert pod["initContainers"][0]["args"] == ["--config=/var/lib/kube-proxy/config.conf", "--cleanup-handover"]
    assert pod["volumes"] == [{"name": "config", "configMap": {"name": "ipvsproxy-config"}}]
    assert pod["initContainers"][0]["securityContext"] == {"privileged": True, "readOnlyRootFilesystem": True}
    assert (pod["hostNetwork"], pod["hostPID"]) == (True, True)
    assert pod["automountServiceAccountToken"] is False


def test_what_cleans_up_after_an_uninstall_waits_for_the_proxy_on_every_node() -> None:
    (item,) = documents((DEPLOY / "kustomize/cleanup/daemonset.yaml").read_text())
    is_valid(item)
    assert item["spec"]["template"]["spec"]["initContainers"][0]["args"][1] == "--cleanup-wait"
    assert all(runs_on(item, labels) for labels in NODES.values())


FLAGS = {
    "get": {"-n", "-l", "-o", "-A"},
    "patch": {"-n", "--type", "--patch-file", "-p", "--local", "-f", "-o"},
    "create": {"-n", "--from-file", "-f"},
    "apply": {"-k", "-f"},
    "delete": {"-n", "-l", "-k", "--field-selector"},
    "label": {"--overwrite", "--all"},
    "set": {"-n"},
    "exec": {"-n", "--"},
    "rollout": {"-n"},
    "logs": {"-n", "-l", "-c", "--prefix"},
}


@pytest.mark.parametrize("words", kubectl_lines(), ids=" ".join)
def test_commands_of_kubectl_are_such(words: list[str]) -> None:
    values = {"-n", "-l", "-o", "-p", "-k", "-f", "-c", "--field-selector"}
    plain = [w for i, w in enumerate(words[1:], 1) if not w.startswith("-") and words[i - 1] not in values]
    verb = plain[0]
    assert verb in FLAGS
    assert {w.partition("=")[0] for w in words[1:] if w.startswith("-")} <= FLAGS[verb] | {"-"}
    for folder in (words[i + 1] for i, w in enumerate(words) if w == "-k"):
        assert (DEPLOY.parent / folder / "kustomization.yaml").is_file()
    for file in (w.partition("=")[2] or words[i + 1] for i, w in enumerate(words) if w.startswith("--patch-file")):
        assert (DEPLOY.parent / file).is_file()


def test_snippets_are_shell() -> None:
    found = snippets()
    assert len(found) > 8
    shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")
    text = "#!/bin/sh\n" + "\n".join(found) + "\n"
    # SC2034 and SC2148 are about whole scripts; single quotes keep Go's templates from the shell on purpose.
    done = subprocess.run(
        [shellcheck, "--exclude=SC2034,SC2016", "-"], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_kube_proxy_gives_way_before_ours_may_come_and_nodes_move_last() -> None:
    steps = [
        "create configmap ipvsproxy-config", "--patch-file deploy/switch/kube-proxy.yaml", "helm install",
        "apply -k deploy/kustomize/handover", "deploy/switch/node.sh to NODE", "delete daemonset kube-proxy",
    ]  # fmt: skip
    places = [PAGE.index(step) for step in steps]
    assert places == sorted(places)
    # Only when no node is left without the label, and after ours takes nodes without it.
    assert PAGE.index("get nodes -l ipvsproxy!=yes") < PAGE.index("helm upgrade ipvsproxy") < places[-1]


def selector_of(words: list[str]) -> dict[str, str]:
    return by_kind(installed(values_of(words)))["DaemonSet"]["spec"]["template"]["spec"]["nodeSelector"]


def test_ours_comes_to_marked_nodes_first_and_to_all_nodes_in_the_end() -> None:
    """All values are given again: Helm's --reuse-values does not take the selector away (helm/helm#30765)."""
    for words in helm_lines("install"):
        assert selector_of(words) == LINUX | {"ipvsproxy": "yes"}
    kubeadm, k3s, again = helm_lines("upgrade")
    assert selector_of(kubeadm) == selector_of(k3s) == LINUX
    assert selector_of(again) == LINUX | {"ipvsproxy": "yes"}
    for words in (kubeadm, k3s, again):
        assert "--reset-values" in words


def test_an_upgrade_of_the_chart_has_all_values_of_its_installation() -> None:
    marked = {"nodeSelector": {"ipvsproxy": "yes"}}
    kubeadm, k3s = (values_of(words) for words in helm_lines("install"))
    for_all, for_all_of_k3s, again = (values_of(words) for words in helm_lines("upgrade"))
    assert for_all | marked == again == kubeadm
    assert for_all_of_k3s | marked == k3s


class KubectlStandIn:
    """A kubectl that writes down what it is told; pods come and go with the label, a state is a file."""

    PROGRAM = """#!/bin/sh
echo "$*" >>"$STATE/calls"
case " $* " in
*" label "*) case "$*" in *-) rm -f "$STATE/marked" ;; *) echo "${*##*=}" >"$STATE/marked" ;; esac ;;
*" get daemonset "*) [ -e "$STATE/handover" ] ;;
*" get pods "*"k8s-app=kube-proxy"*) [ -e "$STATE/marked" ] || echo pod/kube-proxy-1 ;;
*" get pods "*"ipvsproxy-cleanup"*) grep -qs yes "$STATE/marked" || echo pod/ipvsproxy-cleanup-1 ;;
*" get pods "*) ! grep -qs yes "$STATE/marked" || echo pod/ipvsproxy-1 ;;
*" logs pod/ipvsproxy-cleanup-1 "*) echo "Waiting for the rules of kube-proxy" ;;
*" wait "*"$(cat "$STATE/fails" 2>/dev/null || echo nothing)"*) exit 1 ;;
*" exec "*) [ ! -e "$STATE/problem" ] ;;
esac
"""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.write("kubectl", self.PROGRAM).chmod(0o755)

    def write(self, name: str, text: str = "") -> pathlib.Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def node_sh(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": f"{self.folder}:/usr/bin:/bin", "STATE": str(self.folder)}
        return subprocess.run([NODE_SH, *arguments], env=env, capture_output=True, text=True, check=False)

    def changes(self) -> list[str]:
        """What was told, without what only looks."""
        calls = (self.folder / "calls").read_text().splitlines()
        return [call for call in calls if " get " not in call]


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> KubectlStandIn:
    return KubectlStandIn(tmp_path)


def test_a_node_is_moved_step_by_step(cluster: KubectlStandIn) -> None:
    done = cluster.node_sh("to", "worker-1")
    assert done.returncode == 0, done.stderr
    label, wait, doctor = cluster.changes()
    assert label == "label --overwrite node worker-1 ipvsproxy=yes"
    assert "wait pods --selector app.kubernetes.io/name=ipvsproxy --field-selector spec.nodeName=worker-1" in wait
    assert doctor == "--namespace kube-system exec pod/ipvsproxy-1 -- ipvsproxy doctor"


@pytest.mark.parametrize(("name", "text"), [("fails", "name=ipvsproxy"), ("problem", "")])
def test_a_move_that_fails_reports_how_to_go_back(cluster: KubectlStandIn, name: str, text: str) -> None:
    cluster.write(name, text)
    done = cluster.node_sh("to", "worker-1")
    assert done.returncode == 1
    assert "node.sh back worker-1" in done.stderr


def test_a_node_goes_back_to_a_kube_proxy_that_starts_when_the_cleanup_waits_for_it(
    cluster: KubectlStandIn,
) -> None:
    cluster.write("handover")
    cluster.write("marked", "yes")
    done = cluster.node_sh("back", "worker-1")
    assert done.returncode == 0, done.stderr
    between, logs, label, kube_proxy, cleanup = cluster.changes()
    assert between == "label --overwrite node worker-1 ipvsproxy=back"
    assert logs == "--namespace kube-system logs pod/ipvsproxy-cleanup-1 --container cleanup"
    assert label == "label node worker-1 ipvsproxy-"
    assert "--selector k8s-app=kube-proxy" in kube_proxy
    assert "--selector app.kubernetes.io/name=ipvsproxy-cleanup" in cleanup


def test_no_node_goes_back_without_what_cleans_up(cluster: KubectlStandIn) -> None:
    cluster.write("marked")
    done = cluster.node_sh("back", "worker-1")
    assert done.returncode == 1
    assert "kubectl apply -k deploy/kustomize/handover" in done.stderr
    assert cluster.changes() == []


def test_a_kube_proxy_that_does_not_start_stops_the_way_back(cluster: KubectlStandIn) -> None:
    cluster.write("handover")
    cluster.write("marked", "yes")
    cluster.write("fails", "k8s-app=kube-proxy")
    done = cluster.node_sh("back", "worker-1")
    assert done.returncode == 1
    assert "kube-proxy is not ready" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["to"], ["to", "a", "b"], ["forth", "a"]])
def test_wrong_usage_of_the_script_changes_nothing(cluster: KubectlStandIn, arguments: list[str]) -> None:
    assert cluster.node_sh(*arguments).returncode != 0
    assert not (cluster.folder / "calls").exists()


def test_no_probe_asks_a_proxy_that_does_not_listen_yet() -> None:
    """A failed probe is a Warning event: the first comes after the first sync, the others after startupProbe."""
    (item,) = (i for i in documents((DEPLOY / "kustomize/base/daemonset.yaml").read_text()))
    container = item["spec"]["template"]["spec"]["containers"][0]
    assert container["startupProbe"]["initialDelaySeconds"] >= 10
    assert container["readinessProbe"]["initialDelaySeconds"] >= 10
