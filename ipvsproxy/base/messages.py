"""Log messages that tests wait for and documents quote; all others stand where they are logged.

Each is a sentence as Kubernetes' guide on structured logging has it: a capital letter first, past tense, no full
stop. What happened to which object is in the keys of the line. docs/logs.md has their causes.
"""

# The kernel
CONNTRACK_LIMIT_OF_HOST = "Could not raise the limit of tracked connections, which belongs to the host"
FORWARD_RULE_STAYS = "Could not remove a rule of chain FORWARD"
IPV6_FORWARDING_OFF = "Found IPv6 forwarding off, IPv6 Services do not reach pods"
IPVS_REFUSED = "Kernel refused an IPVS change"
IPVS_REPLIES_LOST = "Lost replies of IPVS, reading its state again"
KUBE_PROXY_RUNS = (
    "Found a running kube-proxy that writes rules: stop it, then restart ipvsproxy, which removes them"
)
LOCK_HELD_BY_STRANGER = "Found the instance lock held by a program that is not ipvsproxy, continuing without it"
NFTABLES_REFUSED = "Kernel refused an nftables change"
PRESSURE = "Kernel table came under pressure"
PRESSURE_OVER = "Kernel table recovered from pressure"
RULESET_DIFFERS = "Found nftables ruleset out of sync, reloading it"
RULESET_REPLACED = "Replaced the nftables ruleset of another version"
SETTING_CHANGED = "Changed kernel setting"
SETTING_CHANGED_BY_OTHERS = "Another program changed a kernel setting, setting it again"
TIMEOUTS_REFUSED = "Could not set IPVS timeouts"
VIP_REFUSED = "Could not change VIP"

# The reconcile loop
ADDRESSES_REFUSED = "Refused addresses of a Service"
CONTESTED = "Another program kept undoing repairs, backing off"
DRAIN_TIMEOUT = "Reached drain timeout, cut connections"
FOREIGN_REMOVED = "Removed a virtual server that no Service asks for"
NODE_ADDRESSES_IGNORED = "Ignored addresses of other nodes in load balancer status"
NODE_FACTS = "Updated node facts"
NODE_MISSING = "Could not find Node, see --hostname-override"
REPAIRED = "Reverted changes of other programs"
SERVED_IN_PART = "Served a Service in part"
SERVICE_LINES_SUPPRESSED = "Suppressed more log lines about Services of a namespace"
SYNCED = "Completed initial sync"
VERIFICATION_REPAIRED = "Found kernel state changed by other programs, repairing it"

# Kubernetes objects
CERTIFICATE_UNVERIFIED = "Skipped verification of the API server's certificate"
CREDENTIALS_KEPT = "Could not reload credentials, keeping the previous ones"
CREDENTIALS_RELOADED = "Reloaded credentials"
MANIFESTS_CRASHED = "Reading manifest directory crashed, will retry"
MANIFESTS_UNAVAILABLE = "Could not read manifest directory, keeping its objects"
MANIFEST_ACCEPTED = "Accepted manifest object again"
MANIFEST_FILE_ACCEPTED = "Accepted manifest file again"
MANIFEST_FILE_REFUSED = "Refused manifest file, keeping its objects"
MANIFEST_FILE_REMOVED = "Found manifest file removed"
MANIFEST_LEFT = "Left manifest object to other programs"
MANIFEST_PART_IGNORED = "Ignored invalid part of manifest object"
MANIFEST_REFUSED = "Refused manifest object"
NAMELESS_IGNORED = "Ignored object without a valid name"
NODES_CRASHED = "Listing Nodes crashed, will retry"
NODES_LISTED_AGAIN = "Listed Nodes again"
NODES_UNAVAILABLE = "Could not list Nodes, keeping their last known addresses"
OBJECT_ACCEPTED = "Accepted object in full again"
OBJECT_PART_IGNORED = "Ignored invalid part of object"
OBJECT_REFUSED = "Ignored invalid object, keeping its last valid version"
RETRYING = "Retrying API request"
TOKEN_KEPT = "Ignored unusable token file, keeping the previous token"  # noqa: S105
VERSION_WENT_BACK = "API server listed an older resourceVersion than before"
WATCH_BACK = "Re-established watch of API server"
WATCH_CRASHED = "Watching objects crashed, listing again"
WATCH_FAILED = "Could not watch API server, keeping cached objects"

# The process
CONFIG_CHANGED = "Configuration file changed, exiting to be restarted"
CONFIG_KEPT = "Could not use changed configuration file, keeping the previous configuration"
FATAL = "Could not continue, exiting"
KUBE_PROXY_KEPT = "Kept what belongs to kube-proxy in place"
NOTHING_FOUND = "Found nothing of ipvsproxy on this node"
NO_INOTIFY = "Could not use inotify, polling directories"
NO_RULES_YET = "Found no rules of kube-proxy yet"
OTHER_MODE = "Started in mode ipvs, although another mode is configured"
STANDBY = "Another instance held the lock, standing by"
WAITING_FOR_PROXY = "Waiting for the ipvsproxy of this node to exit"
WAITING_FOR_RULES = "Waiting for the rules of kube-proxy"
