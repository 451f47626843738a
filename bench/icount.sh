#!/usr/bin/env bash
# Counts the instructions of each case of src/lib.rs with valgrind's callgrind, per operation: inside the
# loop only, and the difference between N and 2N runs. Unlike times, the counts hardly move on a busy machine.
#
#   icount.sh               prints the counts
#   icount.sh --check       also compares them with icount.baseline; fails when one is off by more than 3 %
#   icount.sh --update      also writes icount.baseline and the table in README.md
#
# An improvement fails the check too: it belongs into the baseline, where it can't be lost again.
# Needs valgrind. A compiler or a library of another version may count differently: update then.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
baseline=$here/icount.baseline
tolerance=3

mode=${1:-}
case $mode in
'' | --check | --update) ;;
*) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" && exit 2 ;;
esac
command -v valgrind >/dev/null || { echo "icount.sh: valgrind is not installed" >&2 && exit 1; }

cargo build --quiet --release --manifest-path "$here/Cargo.toml" --bin icount
target=$(cargo metadata --format-version 1 --no-deps --manifest-path "$here/Cargo.toml" |
  sed 's/.*"target_directory":"\([^"]*\)".*/\1/')

# Instructions of one run of a case: `instructions NAME TIMES`.
instructions() {
  local said count
  said=$(valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect='*icount*measured*' \
    "$target/release/icount" "$1" "$2" 2>&1) || {
    printf 'icount.sh: %s fails under valgrind:\n%s\n' "$1" "$said" >&2
    return 1
  }
  count=$(sed -n 's/.*Collected : \([0-9]*\).*/\1/p' <<<"$said")
  [ "${count:-0}" -gt 0 ] || { echo "icount.sh: callgrind gave no count for $1" >&2 && return 1; }
  echo "$count"
}

counts=$(mktemp)
trap 'rm -f "$counts"' EXIT
while read -r name times; do
  once=$(instructions "$name" "$times")
  twice=$(instructions "$name" $((2 * times)))
  printf '%-24s %12d\n' "$name" $(((twice - once) / times)) | tee -a "$counts"
done < <("$target/release/icount")

case $mode in
--check)
  awk -v tolerance="$tolerance" '
    /^#/ || NF < 2 { next }
    FNR == NR { base[$1] = $2; next }
    !($1 in base) { printf "%s is not in the baseline\n", $1; bad = 1; next }
    {
      off = 100 * ($2 - base[$1]) / base[$1]
      if (off > tolerance || off < -tolerance) { printf "%s: %d, not %d (%+.1f %%)\n", $1, $2, base[$1], off; bad = 1 }
      delete base[$1]
    }
    END {
      for (name in base) { printf "%s is in the baseline only\n", name; bad = 1 }
      if (!bad) printf "all within %d %% of the baseline\n", tolerance
      exit bad
    }' "$baseline" "$counts"
  ;;
--update)
  {
    echo "# Instructions per operation, counted by icount.sh; icount.sh --update writes this file."
    cat "$counts"
  } >"$baseline"
  python3 "$here/table.py" --icount "$baseline" "$here/README.md"
  ;;
esac
