#!/usr/bin/env python3
"""Times Backstay beside other backup programs on the same tree, in the same run, in turn.

  peers.py --data DIR [--contenders backstay,restic,borg,rustic] [--ops first,nochange,...] [--runs 3] --json FILE

Operations, in this order within a round:
  first     a snapshot into a new repository
  nochange  a second one, nothing changed
  mutated   a third one, after an hour's changes (mutate.py)
  restore   the newest snapshot into an empty folder
  check     verify the repository, reading all data
  inplace   after one more snapshot, not timed, 20 files of the tree are damaged; that snapshot is restored over the tree

A round takes each operation for all contenders in turn, beginning with another one each round. `sync` runs before
each timed command, outside its time. The page cache is warm: nothing drops it. Wall time by the clock, CPU seconds
and peak memory by GNU time. After each restore the numbers of files and bytes are compared, in the first round all
contents and metadata too. Old trees are moved away, not deleted: deleting 50,000 files disturbs what is timed next.
"""
import argparse, hashlib, json, os, random, shlex, shutil, subprocess, sys, tempfile, time
from pathlib import Path

from mutate import regular_files

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WORK = Path(os.environ.get("BENCH_WORK", "/tmp/bench"))
PASSWORD = "benchmark-password"
OPS = ["first", "nochange", "mutated", "restore", "check", "inplace"]


def newest(*places):
    """The first of the programs that is there."""
    return next((str(p) for p in places if shutil.which(str(p))), str(places[-1]))


# Command templates: {bin} the program, {src} the tree, {repo} {cache} folders of the contender, {n} number of the
# snapshot, {dst} where to restore, {depth} folders above {src}. They run by `sh -c` with the contender's environment.
TOOLS = Path(os.environ.get("BACKSTAY_TOOLS", ROOT / ".tools"))
CONTENDERS = {
    "backstay": dict(
        bin=os.environ.get("BACKSTAY_BIN", str(ROOT / "target/release/backstay")), env={},
        vault="{repo}/vault", init="true",
        snapshot="{bin} --home {repo} backup {src} --app bench --json --yes --no-databases",
        restore="{bin} --home {repo} restore bench --directory {dst} --yes",
        inplace="{bin} --home {repo} restore bench --yes",
        check="{bin} --home {repo} vault check --read-data", version="{bin} --version"),
    "restic": dict(
        bin=newest(TOOLS / "bin/restic", "restic"),
        env=dict(RESTIC_REPOSITORY="{repo}", RESTIC_CACHE_DIR="{cache}", RESTIC_PASSWORD=PASSWORD),
        vault="{repo}", init="{bin} init -q --repository-version 2",
        snapshot="{bin} backup -q {src}", restore="{bin} restore -q latest --target {dst}",
        inplace="{bin} restore -q latest:{src} --target {src} --overwrite if-changed --delete",
        check="{bin} check -q --read-data", version="{bin} version"),
    "borg": dict(
        bin=newest(TOOLS / "borg/bin/borg", "borg"),
        env=dict(BORG_REPO="{repo}", BORG_BASE_DIR="{cache}", BORG_PASSPHRASE=PASSWORD),
        vault="{repo}", init="{bin} init -e repokey",
        snapshot="{bin} create -C zstd,3 ::s{n} {src}",
        restore="cd {dst} && {bin} extract --strip-components {depth} ::s{n}",
        inplace="cd / && {bin} extract ::s{n}",
        check="{bin} check --verify-data", version="{bin} --version"),
    "rustic": dict(
        bin=newest(TOOLS / "bin/rustic", Path.home() / ".cargo/bin/rustic", "rustic"),
        env=dict(HOME="{cache}", RUSTIC_REPOSITORY="{repo}", RUSTIC_CACHE_DIR="{cache}", RUSTIC_PASSWORD=PASSWORD,
                 RUSTIC_NO_PROGRESS="true", RUSTIC_LOG_LEVEL="warn"),
        vault="{repo}", init="{bin} init",
        snapshot="{bin} backup {src}", restore="{bin} restore latest:{src} {dst}",
        inplace="{bin} restore --delete latest:{src} {src}",
        check="{bin} check --read-data", version="{bin} --version"),
}


def sh(command, env=None):
    r = subprocess.run(["sh", "-c", command], env=env, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if r.returncode:
        sys.exit(f"failed ({r.returncode}): {command}\n{r.stdout[-1500:]}{r.stderr[-1500:]}")
    return r.stdout


def timed(command, env):
    """Wall, CPU and peak memory of a command. A command that fails has no time: the run ends."""
    os.sync()
    with tempfile.NamedTemporaryFile("r") as times, tempfile.TemporaryFile("w+") as out:
        begin = time.perf_counter()
        r = subprocess.run(["/usr/bin/time", "-o", times.name, "-f", "%U %S %M", "sh", "-c", command],
                           env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        wall = time.perf_counter() - begin
        if r.returncode:
            out.seek(0)
            sys.exit(f"failed ({r.returncode}): {command}\n{out.read()[-2000:]}")
        user, system, rss = times.read().split()[-3:]
    return dict(wall=wall, cpu=float(user) + float(system), rss_mb=int(rss) * 1024 / 1e6, load=os.getloadavg()[0])


def trash(path):
    """Out of the way, without deleting."""
    if os.path.lexists(path):
        (WORK / "trash").mkdir(parents=True, exist_ok=True)
        os.rename(path, tempfile.mkdtemp(dir=WORK / "trash") + "/x")


def size(path):
    return int(sh(f"du -s --apparent-size -B1 {shlex.quote(str(path))}").split()[0])


def count(path):
    """Files and bytes of a tree."""
    return sh(f"find {shlex.quote(str(path))} -type f -printf '%s\\n' | awk '{{n++; s+=$1}} END {{print n+0, s+0}}'").strip()


def metadata(root):
    """Of every entry: kind and mode, owner, time of modification, target of a link, names of a file."""
    out = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(folder, name)
            st = os.lstat(path)
            link = os.readlink(path) if os.path.islink(path) else None
            names = 0 if name in folders else st.st_nlink
            out[os.path.relpath(path, root)] = (oct(st.st_mode), st.st_uid, st.st_gid, st.st_mtime_ns, link, names)
    return out


def differences(a, b):
    """What differs in content or metadata, as text; empty when the trees are the same."""
    out = subprocess.run(["diff", "-r", "--no-dereference", str(a), str(b)], capture_output=True, text=True, errors="replace").stdout
    a, b = metadata(a), metadata(b)
    return out + "".join(f"{p}: {a.get(p)} {b.get(p)}\n" for p in sorted(a.keys() | b.keys()) if a.get(p) != b.get(p))


def damage(root, seed):
    """Other bytes in 20 files of the tree; what every entry was before, by path."""
    before = {p: (os.lstat(p), hashlib.sha256(open(p, "rb").read()).digest()) for p in regular_files(root)}
    for path in random.Random(seed).sample(sorted(before), 20):
        with open(path, "ab") as f:
            f.write(b"damage\n")
    return before


def healed(root, before):
    """What is not as it was, as text; and how many files were touched without need (another inode, ctime or count of links)."""
    now, wrong, touched = set(), "", 0
    for path in regular_files(root):
        now.add(path)
        was, content = before.get(path, (None, None))
        st = os.lstat(path)
        if was is None or hashlib.sha256(open(path, "rb").read()).digest() != content or st.st_mtime_ns != was.st_mtime_ns:
            wrong += f"{path}\n"
        elif (st.st_ino, st.st_ctime_ns, st.st_nlink) != (was.st_ino, was.st_ctime_ns, was.st_nlink):
            touched += 1
    return wrong + "".join(f"{p}: gone\n" for p in before.keys() - now), touched - 20


def machine():
    """What the figures depend on."""
    model = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    disk = sh(f"findmnt -n -o SOURCE,FSTYPE,OPTIONS -T {shlex.quote(str(WORK))}").split()
    return f"{os.cpu_count()} x {model}, {memory:.0f} GB, Linux {os.uname().release}, {' '.join(disk)}"


class Contender:
    def __init__(self, name, src):
        self.name, self.spec, self.src, self.n = name, CONTENDERS[name], str(src), 0
        self.home = WORK / "repos" / Path(src).name / name
        self.dst = WORK / "restore" / Path(src).name / name

    def fmt(self, template):
        return template.format(bin=self.spec["bin"], src=self.src, repo=self.home / "repo", cache=self.home / "cache",
                               n=self.n, dst=self.dst, depth=len(Path(self.src).parts) - 1)

    def env(self):
        return os.environ | {k: self.fmt(v) for k, v in self.spec["env"].items()}

    def run(self, op, compare):
        if op == "first":
            trash(self.home)
            (self.home / "cache").mkdir(parents=True)
            self.n = 0
            sh(self.fmt(self.spec["init"]), self.env())
        if op in ("first", "nochange", "mutated"):
            self.n += 1
            result = timed(self.fmt(self.spec["snapshot"]), self.env())
        elif op == "restore":
            trash(self.dst)
            self.dst.mkdir(parents=True)
            result = timed(self.fmt(self.spec["restore"]), self.env())
            inner = self.dst / self.src.lstrip("/")
            got = inner if inner.is_dir() else self.dst
            if count(got) != count(self.src):
                sys.exit(f"{self.name}: the restored tree has {count(got)} files and bytes, not {count(self.src)}")
            result["differs"] = differences(self.src, got)[:500] if compare else None
            trash(self.dst)
        elif op == "inplace":
            # Peers touch every file of the tree: each contender has a snapshot of it as it is now, as an hourly one would be.
            self.n += 1
            sh(self.fmt(self.spec["snapshot"]), self.env())
            before = damage(self.src, self.n)
            result = timed(self.fmt(self.spec["inplace"]), self.env())
            result["differs"], result["touched"] = healed(self.src, before)
        else:
            result = timed(self.fmt(self.spec["check"]), self.env())
        result["size"] = size(self.fmt(self.spec["vault"]))
        return result


def mutate(src, journal, seed=None):
    how = "--undo" if seed is None else f"--seed {seed}"
    sh(f"{sys.executable} {HERE}/mutate.py {shlex.quote(str(src))} {how} --journal {shlex.quote(str(journal))}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--contenders", default="backstay,restic,borg,rustic")
    parser.add_argument("--ops", default=",".join(OPS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", required=True, help="written after every measurement; report.py reads it")
    args = parser.parse_args()

    src = Path(args.data).resolve()
    names = [n for n in args.contenders.split(",") if shutil.which(CONTENDERS[n]["bin"]) or print(f"{n} is not installed, left out")]
    ops = [o for o in OPS if o in args.ops.split(",")]
    contenders = [Contender(n, src) for n in names]
    journal = WORK / f"journal-{src.name}"
    if journal.exists():
        mutate(src, journal)                       # an interrupted run left its changes
    report = dict(data=src.name, tree=count(src), runs=args.runs, machine=machine(), results={n: {} for n in names},
                  versions={c.name: sh(c.fmt(c.spec["version"])).strip().splitlines()[0] for c in contenders})
    print(f"{src.name}: {report['tree']} (files, bytes); {', '.join(report['versions'].values())}; load {os.getloadavg()[0]:.1f}", flush=True)
    try:
        for turn in range(args.runs):
            for op in ops:
                if op == "mutated":
                    mutate(src, journal, 1)
                shift = turn % len(contenders)
                for c in contenders[shift:] + contenders[:shift]:
                    r = c.run(op, compare=turn == 0)
                    report["results"][c.name].setdefault(op, []).append(r)
                    Path(args.json).write_text(json.dumps(report, indent=1))
                    print(f"{time.strftime('%H:%M:%S')} {op:9} {c.name:9} wall {r['wall']:7.2f} s  cpu {r['cpu']:7.2f} s  "
                          f"rss {r['rss_mb']:5.0f} MB  size {r['size'] / 1e6:7.1f} MB  load {r['load']:.1f}"
                          + ("  NOT IDENTICAL" if r.get("differs") else ""), flush=True)
            if journal.exists():
                mutate(src, journal)
    finally:
        if journal.exists():
            mutate(src, journal)
        for c in contenders:
            trash(c.home)
            trash(c.dst)


if __name__ == "__main__":
    main()
