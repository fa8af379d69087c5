#!/usr/bin/env python3
"""Medians of what peers.py measured, and Backstay's ratios with the bar that each is held to.

  report.py FILE.json...      ends with status 1 when a bar is missed
"""
import json, statistics, sys

# How much of the best peer's value Backstay may take.
BARS = {"first": dict(wall=0.40, cpu=0.50, size=1.03), "nochange": dict(wall=0.25), "mutated": dict(wall=0.25),
        "restore": dict(wall=0.70), "check": dict(wall=0.60), "inplace": dict(wall=0.35)}
# Peak memory in MB: for trees, and for a million files.
MEMORY = {"first": 150, "nochange": 150, "mutated": 150, "restore": 150}
MEMORY_MILLION = 400


def median(results, key):
    return statistics.median(r[key] for r in results)


def spread(results, key):
    return f"{min(r[key] for r in results):.2f}..{max(r[key] for r in results):.2f}"


def bars(op, by, million):
    """(what, value, limit, unit) for each bar of an operation."""
    own, peers = by["backstay"], {n: r for n, r in by.items() if n != "backstay"}
    if peers:
        best = min(peers, key=lambda n: median(peers[n], "wall"))
        limits = BARS.get(op, {})
        if million:
            limits = {k: v for k, v in limits.items() if op == "nochange"}
        for key, limit in limits.items():
            # CPU is held against the peer with the best wall time, size against the smallest.
            base = min(median(r, "size") for r in peers.values()) if key == "size" else median(peers[best], key)
            of = "smallest peer" if key == "size" else best
            yield f"{key} against {of}", median(own, key) / base, limit, ""
    memory = MEMORY_MILLION if million else MEMORY.get(op)
    if memory:
        yield "peak memory", max(r["rss_mb"] for r in own), memory, " MB"


def main():
    missed = 0
    for path in sys.argv[1:]:
        report = json.load(open(path))
        results = report["results"]
        million = report["data"].startswith("M")
        print(f"\n## {report['data']}: {report['tree'].replace(' ', ' files, ')} bytes, median of {report['runs']}")
        print(f"\n{report['machine']}\n\n" + "\n".join(f"- {n}: {v}" for n, v in report["versions"].items()))
        for op in dict.fromkeys(op for by in results.values() for op in by):
            by = {n: r[op] for n, r in results.items() if r.get(op)}
            print(f"\n### {op}\n\n| program | wall s | min..max | CPU s | peak memory MB | vault MB |\n|---|---|---|---|---|---|")
            for name, rs in by.items():
                note = " (restored tree not identical)" if any(r.get("differs") for r in rs) else ""
                print(f"| {name}{note} | {median(rs, 'wall'):.2f} | {spread(rs, 'wall')} | {median(rs, 'cpu'):.2f} "
                      f"| {max(r['rss_mb'] for r in rs):.0f} | {median(rs, 'size') / 1e6:.1f} |")
            if "backstay" not in by:
                continue
            print("\n| bar | Backstay | at most | |\n|---|---|---|---|")
            for what, value, limit, unit in bars(op, by, million):
                good = value <= limit
                missed += not good
                shown = f"{value:.0f}" if unit else f"{value:.2f}"
                print(f"| {what} | {shown}{unit} | {limit}{unit} | {'pass' if good else '**MISSED**'} |")
            if any(r.get("differs") for r in by["backstay"]):
                missed += 1
                print("| restored tree | differs | identical | **MISSED** |")
    print(f"\n{'All bars passed.' if not missed else f'{missed} bars missed.'}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
