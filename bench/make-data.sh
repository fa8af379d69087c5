#!/bin/bash
# Makes the benchmark's data sets, each once: one that is there already is kept.
#   make-data.sh [W] [M10000 ...]   (default: W)
#   BENCH_WORK=/tmp/bench   where data/ and the downloaded packages (dl/) go
# W        a site as web hosts hold it, from Debian packages: PHP apps, images, PDF, fonts (1.1 GB, 50,000 files)
# M<n>     n tiny text files, 1,000 in a folder, synthetic: how time and memory grow with the number of files
set -euo pipefail
DATA=${BENCH_WORK:-/tmp/bench}/data DL=${BENCH_WORK:-/tmp/bench}/dl
SETS=${*:-W}
mkdir -p "$DATA" "$DL/deb"

W_APPS="wordpress wordpress-l10n wordpress-theme-twentytwentyone wordpress-theme-twentytwentytwo
 wordpress-theme-twentytwentythree mediawiki mediawiki-classes mediawiki-extension-codemirror
 mediawiki-extension-youtube mediawiki-skin-greystuff phpmyadmin dokuwiki roundcube-core"
W_MEDIA="openclipart-png mate-backgrounds gnome-backgrounds plasma-workspace-wallpapers
 gimp-help-en gimp-help-de fonts-noto-core texlive-fonts-extra-doc"

get_debs() { (cd "$DL/deb"; for p in "$@"; do ls "${p}"_*.deb >/dev/null 2>&1 || apt-get -q download "$p"; done); }

make_W() {   # FOLDER
  mkdir -p "$1/apps" "$1/uploads" "$1/logs"
  get_debs $W_APPS $W_MEDIA
  for p in $W_APPS;  do dpkg -x "$DL"/deb/${p}_*.deb "$1/apps"; done
  for p in $W_MEDIA; do dpkg -x "$DL"/deb/${p}_*.deb "$1/uploads/$p"; done
  cp /var/lib/dpkg/status "$1/logs/access.log"   # a text file that grows
}

make_M() {   # FOLDER NUMBER
  python3 - "$1" "$2" <<'PY'
import os, sys
root, n = sys.argv[1], int(sys.argv[2])
for i in range(0, n, 1000):
    d = f"{root}/{i//100000:02d}/{i//1000:05d}"; os.makedirs(d)
    for j in range(i, min(i+1000, n)):
        with open(f"{d}/f{j:07d}.txt", "w") as f: f.write(f"file {j}\n" * (1 + j % 16))
PY
}

for s in $SETS; do
  if [ ! -d "$DATA/$s" ]; then
    rm -rf "$DATA/$s.part"
    case $s in
      W)       make_W "$DATA/$s.part" ;;
      M[1-9]*) make_M "$DATA/$s.part" "${s#M}" ;;
      *)       echo "no such data set: $s" >&2; exit 2 ;;
    esac
    mv "$DATA/$s.part" "$DATA/$s"   # whole or not there: an interrupted run starts again
  fi
  echo "$s: $(find "$DATA/$s" -type f | wc -l) files, $(find "$DATA/$s" -type d | wc -l) folders, $(du -sb --apparent-size "$DATA/$s" | cut -f1) bytes"
done
