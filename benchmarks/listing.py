"""`python -m benchmarks list`: every name that the command line takes."""

import sys

from . import inputs, networks, suites
from .contestants import ops
from .peers import PEERS
from .sweep import KEYS


def show_list(file=None):
    out = file or sys.stdout

    def section(title, lines):
        print(f"{title}", file=out)
        for name, words in lines:
            print(f"  {name:40} {words}", file=out)
        print(file=out)

    section("networks", ((n.name, f"{n.title}: {n.source}") for n in networks.NETWORKS.values()))
    section("suites", ((name, _counts(*counts)) for name, counts in suites.names().items()))
    section("peers", ((p.name, _peer(p)) for p in PEERS.values()))
    section("algorithms", ((row["name"], _row(row)) for row in ops.extension().algorithms()))
    section("inputs", inputs.IMAGES.items())
    section("sweep keys", ((key, "key=value,value,...") for key in KEYS))


def _counts(convolutions, pools):
    words = [f"{convolutions} convolutions"] if convolutions else []
    return ", ".join(words + ([f"{pools} pools"] if pools else []))


def _peer(peer):
    absent = peer.absent()
    return f"{peer.setting}; " + (f"absent: {absent}" if absent else f"{peer.package} {peer.version()}")


def _row(row):
    return f"{row['summary']} ({row['device']} {row['kind']}; {', '.join(row['passes'])}; {' '.join(row['dtypes'])})"
