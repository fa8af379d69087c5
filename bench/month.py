#!/usr/bin/env python3
"""A month of hourly points, Backstay beside restic, on the same tree with the same changes: what expiry and prune take.

  month.py --data DIR [--days 30] [--seed 1] [--json FILE]

Each hour of simulated time the tree changes (20 files edited, 20 uploads come, those of two days ago go, logs grow), then each
program takes a point in turn. Backstay lets points expire after each and prunes by itself; restic runs `forget --prune`
once a day with the ids of exactly the snapshots that the same policy drops, which is the cheapest way to ask for it. The policy is
worked out here once more, so the two must end with the same number of points. Times are wall times; `sync` runs
before each, outside its time. Backstay runs in one process with a clock of its own (`--example month`); opening the vault is
in its times, starting a program is not (5 ms).

  cargo build --release -p backstay-engine --example month
  bench/make-data.sh W && bench/month.py --data "$BENCH_WORK/data/W"

BENCH_WORK (default /tmp/bench) is on the disk that is to be measured: 3 times the tree and 8 GB for 30 days. The work folder
`month/` in it is made anew each time and left there.
"""
import argparse, datetime, json, math, os, random, shutil, subprocess, sys, time
from pathlib import Path

from mutate import regular_files

ROOT = Path(__file__).resolve().parent.parent
WORK = Path(os.environ.get("BENCH_WORK", "/tmp/bench")) / "month"
TOOLS = Path(os.environ.get("BACKSTAY_TOOLS", ROOT / ".tools"))
START = datetime.datetime(2026, 3, 1, tzinfo=datetime.timezone.utc)
BAR = 0.5


class Site:
    """The tree and what an hour does to it."""

    def __init__(self, data, where, seed):
        subprocess.run(["cp", "-a", data, where], check=True)
        self.root, self.rnd = where, random.Random(f"month-{seed}")
        files = list(regular_files(where))
        self.edited = [f for f in files if 200 < os.path.getsize(f) < 200_000]
        self.log = next((f for f in files if "/logs/" in f), max(files, key=os.path.getsize))
        self.uploads = []
        os.makedirs(os.path.join(where, "new-uploads"), exist_ok=True)

    def hour(self, n):
        rnd = self.rnd
        for path in rnd.sample(self.edited, min(20, len(self.edited))):
            with open(path, "r+b") as f:
                f.seek(rnd.randrange(os.path.getsize(path)))
                f.write(f"/* hour {n} */".encode())
        with open(self.log, "a") as f:
            f.writelines(f"10.0.{rnd.randrange(256)}.{rnd.randrange(256)} [hour {n}] \"GET /?p={rnd.randrange(9999)}\" 200\n" for _ in range(1000))
        for i in range(20):
            path = os.path.join(self.root, "new-uploads", f"h{n:05d}-{i:02d}.jpg")
            Path(path).write_bytes(rnd.randbytes(int(math.exp(rnd.uniform(math.log(5_000), math.log(1_000_000))))))
            self.uploads.append((n, path))
        while self.uploads and self.uploads[0][0] <= n - 48:
            os.remove(self.uploads.pop(0)[1])


def kept(hours, now):
    """The hours whose points stay, by the policy: 3 days all, 14 days every third, 30 days every sixth."""
    def stays(h):
        age = now - h
        return age < 72 or (age < 336 and h % 3 == 0) or (age < 720 and h % 6 == 0)
    return {h for h in hours if stays(h)}


def size(folder):
    return sum(os.lstat(os.path.join(d, n)).st_size for d, _, names in os.walk(folder) for n in names)


class Backstay:
    def __init__(self, binary, site):
        self.state = WORK / "state"
        self.child = subprocess.Popen([binary, self.state, site], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.seconds = dict(backup=0.0, expire=0.0, prune=0.0)
        self.points = self.prunes = 0

    def hour(self, n, at):
        self.child.stdin.write(at.strftime("%Y-%m-%dT%H:%M:%SZ\n"))
        self.child.stdin.flush()
        line = self.child.stdout.readline()
        if not line.startswith("{"):
            sys.exit(f"backstay: {line or 'it ended'}")
        hour = json.loads(line)
        self.seconds["backup"] += hour["backup_seconds"]
        self.seconds["expire"] += hour["expire_seconds"]
        self.seconds["prune"] += hour["prune_seconds"]
        self.points, self.prunes = hour["points"], self.prunes + hour["pruned"]

    def day(self, n):
        pass

    def vault(self):
        return self.state / "vault"


class Restic:
    def __init__(self, binary, site):
        self.binary, self.site, self.repo = binary, site, WORK / "restic"
        self.env = dict(os.environ, TZ="UTC", RESTIC_REPOSITORY=str(self.repo), RESTIC_PASSWORD="benchmark-password",
                        RESTIC_CACHE_DIR=str(WORK / "cache"))
        self.run("init", "-q")
        self.seconds = dict(backup=0.0, expire=0.0)
        self.ids, self.prunes = {}, 0

    def run(self, *args):
        return subprocess.run([self.binary, *args], env=self.env, check=True, capture_output=True, text=True).stdout

    def timed(self, what, *args):
        begun = time.monotonic()
        out = self.run(*args)
        self.seconds[what] += time.monotonic() - begun
        return out

    def hour(self, n, at):
        out = self.timed("backup", "backup", "-q", "--json", "--host", "bench", "--time", at.strftime("%Y-%m-%d %H:%M:%S"), self.site)
        self.ids[n] = json.loads(out.strip().splitlines()[-1])["snapshot_id"]

    def day(self, n):
        gone = set(self.ids) - kept(self.ids, n)
        if gone:
            self.timed("expire", "forget", "-q", "--prune", *(self.ids.pop(h) for h in sorted(gone)))
            self.prunes += 1

    @property
    def points(self):
        return len(self.ids)

    def vault(self):
        return self.repo


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", required=True)
    ap.add_argument("--days", type=int, default=30)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--json")
    ap.add_argument("--month", default=str(ROOT / "target/release/examples/month"), help="the program for Backstay")
    ap.add_argument("--restic", default=next((str(p) for p in (TOOLS / "bin/restic",) if p.exists()), "restic"))
    a = ap.parse_args()
    if WORK.exists():
        shutil.rmtree(WORK)
    WORK.mkdir(parents=True)
    site = Site(a.data, str(WORK / "site"), a.seed)
    both = [Backstay(a.month, site.root), Restic(a.restic, site.root)]
    sizes = []
    for n in range(a.days * 24):
        site.hour(n)
        at = START + datetime.timedelta(hours=n)
        for program in both if n % 2 else reversed(both):
            os.sync()
            program.hour(n, at)
            if n % 24 == 23:
                program.day(n)
        if n % 24 == 23:
            sizes.append([size(p.vault()) for p in both])
            ours, restic = both
            print(f"day {n // 24 + 1}: {ours.points} and {restic.points} points, {sizes[-1][0] / 1e6:.0f} and {sizes[-1][1] / 1e6:.0f} MB, "
                  f"expiry {ours.seconds['expire']:.1f} and {restic.seconds['expire']:.1f} s", file=sys.stderr, flush=True)
    ours, restic = both
    ratio = ours.seconds["expire"] / max(restic.seconds["expire"], 1e-9)
    print(f"""
| {a.days} days, {len(site.edited):,} files that may change | Backstay | restic {restic.run('version').split()[1]} |
|---|---|---|
| points at the end | {ours.points} | {restic.points} |
| vault at the end, MB | {sizes[-1][0] / 1e6:.0f} | {sizes[-1][1] / 1e6:.0f} |
| largest vault at the end of a day, MB | {max(s[0] for s in sizes) / 1e6:.0f} | {max(s[1] for s in sizes) / 1e6:.0f} |
| expiry and prune, s | {ours.seconds['expire']:.1f} (prune {ours.seconds['prune']:.1f}) | {restic.seconds['expire']:.1f} |
| times pruned | {ours.prunes} | {restic.prunes} |
| backups, s | {ours.seconds['backup']:.1f} | {restic.seconds['backup']:.1f} |

Expiry and prune: {ratio:.2f} of restic's time (bar {BAR})""")
    if a.json:
        result = dict(days=a.days, backstay=dict(ours.seconds, points=ours.points, prunes=ours.prunes),
                      restic=dict(restic.seconds, points=restic.points, prunes=restic.prunes), sizes=sizes, ratio=ratio)
        Path(a.json).write_text(json.dumps(result, indent=1))
    if ours.points != restic.points:
        sys.exit("the two do not hold the same number of points")
    if ratio > BAR:
        sys.exit(1)


if __name__ == "__main__":
    main()
