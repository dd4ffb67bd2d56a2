"""`make fuzz`: look for inputs that break or slow down what reads them, guided by coverage.

    python -m tests.fuzz.run [--seconds N] [--only TARGET]...
        all targets, one after the other, each in a process of its own
    python -m tests.fuzz.run --try TARGET FILE...
        what one input does, with a traceback

Interesting inputs are kept below .cache/fuzz and used again by the next run; what to keep for good is in
tests/fuzz/corpus, which `make unit` goes through. An input that fails is written to .cache/fuzz/found. Each target
runs in an empty network namespace, where libnftables itself tries the texts for nftables on the kernel, if that is
allowed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
REPO = HERE.parents[1]
CACHE = REPO / ".cache/fuzz"
FOUND = CACHE / "found"
CORPUS = HERE / "corpus"
FIELD = REPO / "tests/field"
LONGEST_INPUT = 16384
HANGS_SECONDS = 60
"""So long that a slow machine is no finding: this is for what never ends. Work is counted, not timed."""
MEMORY_MIB = 2048
MEASURED = 40
"""How many inputs are measured at the end, the largest first."""
TRY_NFTABLES = "import nft; from ipvsproxy.kernel.scripts import ruleset; \
x = nft.Transaction(nft.Table('inet', 'ipvsproxy')); x.load(ruleset()); nft.Libnftables().run(x)"
NAMES = ("configuration", "connections", "decoding", "kubeconfig", "manifests", "objects")


def all_targets(seconds: int, names: list[str]) -> int:
    FOUND.mkdir(parents=True, exist_ok=True)
    failed = [name for name in names if _one(name, max(1, seconds // len(names)))]
    for name in failed:
        print(f"{name}: FAILED; try it again with python -m tests.fuzz.run --try {name} .cache/fuzz/found/FILE")
    print(f"{len(names) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


def _one(name: str, seconds: int) -> int:
    print(f"{name}: {seconds} s", flush=True)
    alone = _own_network()
    environment = os.environ | ({"FUZZ_OWN_NETWORK": "1"} if alone else {})
    command = [*alone, sys.executable, "-m", "tests.fuzz.run", "--child", name, "--seconds", str(seconds)]
    log = CACHE / f"{name}.log"
    with log.open("wb") as output:
        done = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False)
    lines = log.read_text(errors="replace").splitlines()
    told = [line for line in lines if line.startswith(("stat::number_of_executed_units", "measured "))]
    print("\n".join(told if done.returncode == 0 else lines[-40:]), flush=True)
    return done.returncode


def _own_network() -> list[str]:
    """Return how to start a program where libnftables can be tried; empty where that is not allowed.

    A build server must allow it.
    """
    alone = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
    done = subprocess.run([*alone, sys.executable, "-c", TRY_NFTABLES], cwd=REPO, check=False, capture_output=True)
    if done.returncode == 0:
        return alone
    if os.environ.get("IPVSPROXY_REQUIRE") == "1":
        sys.exit(f"nftables cannot be tried here: {done.stderr.decode(errors='replace')[-1000:]}")
    return []


def child(name: str, seconds: int) -> int:
    """Fuzz one target, then count what the inputs that were kept cost."""
    import atheris

    with atheris.instrument_imports(include=["ipvsproxy", "nft"]):
        from tests.fuzz import targets
    from tests.fuzz import mutate

    targets.quiet()
    target = targets.TARGETS[name]
    kept = CACHE / "corpus" / name
    _seed(name, kept)
    pid = os.fork()
    if pid == 0:
        options = {
            "max_total_time": seconds,
            "max_len": LONGEST_INPUT,
            "timeout": HANGS_SECONDS,
            "rss_limit_mb": MEMORY_MIB,
            "artifact_prefix": f"{FOUND}/{name}-",
            "print_final_stats": 1,
            "len_control": 0,
            "verbosity": 0,
        }
        arguments = [sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(kept)]

        def by_bytes(data: bytes, most: int) -> bytes:
            return bytes(atheris.Mutate(data, most))  # another function after Fuzz has begun than before

        atheris.Setup(arguments, target, custom_mutator=mutate.custom(name, by_bytes))
        atheris.Fuzz()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return (
        os.waitstatus_to_exitcode(status)
        or subprocess.run([sys.executable, "-m", "tests.fuzz.run", "--measure", name], check=False).returncode
    )


def _seed(name: str, kept: pathlib.Path) -> None:
    """Begin with what is kept for good and with files from the field."""
    kept.mkdir(parents=True, exist_ok=True)
    seeds = [path for path in (CORPUS / name).glob("*") if path.is_file()]
    if name in ("manifests", "configuration", "kubeconfig"):
        seeds += [path for path in FIELD.rglob("*") if path.is_file()]
    for path in seeds:
        digest = hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
        shutil.copyfile(path, kept / digest)


def measure(name: str) -> int:
    """Count what the largest of the inputs cost that were kept."""
    from tests.fuzz import targets
    from tests.fuzz.bounds import over

    targets.quiet()
    files = sorted((CACHE / "corpus" / name).iterdir(), key=lambda path: -path.stat().st_size)[:MEASURED]
    status = 0
    for path in files:
        words = over(name, targets.TARGETS[name], path.read_bytes())
        if words:
            shutil.copyfile(path, FOUND / f"{name}-cost-{path.name}")
            print(f"{path.name}: {words}")
            status = 1
    print(f"measured {len(files)} inputs")
    return status


def attempt(name: str, files: list[str]) -> int:
    from tests.fuzz import targets
    from tests.fuzz.bounds import over

    targets.quiet()
    status = 0
    for file in files:
        data = pathlib.Path(file).read_bytes()
        words = over(name, targets.TARGETS[name], data)
        print(f"{file}: {words or 'nothing wrong'}")
        status |= bool(words)
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--only", action="append", choices=NAMES)
    parser.add_argument("--try", dest="attempt", nargs="+", metavar="TARGET FILE")
    parser.add_argument("--child", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--measure", choices=NAMES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        return child(given.child, given.seconds)
    if given.measure:
        return measure(given.measure)
    if given.attempt:
        return attempt(given.attempt[0], given.attempt[1:])
    return all_targets(given.seconds, given.only or list(NAMES))


if __name__ == "__main__":
    sys.exit(main())
