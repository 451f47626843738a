#!/usr/bin/env bash
# Builds a release, measures it in the lab beside other proxies, and writes the table into README.md
# (this folder's, and the repository's if it has the marks). Takes hours; wants a machine to itself; root.
#
#   run-lab.sh [ARGUMENT OF bench.py ...]       such as: --rounds 5   --loads 'h1_*,idle_1000'
#
#   LAB_DIR   the folder with the lab's bench.py; default ../shared/lab beside the repository
#   LAB       where the lab was set up; default /var/tmp/tollgate-lab
#   PEERS     who is measured; default as below
#   OUT       where the results go; default a new folder in $LAB/results
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
root=$(dirname "$here")
lab_dir=${LAB_DIR:-$root/../shared/lab}
export LAB=${LAB:-/var/tmp/tollgate-lab}
peers=${PEERS:-fwd,hudsucker,sslsplit,squid,http-mitm-proxy,mitmproxy,tollgate}
out=${OUT:-$LAB/results/$(date +%Y%m%d-%H%M%S)}

stop() {
  echo "run-lab.sh: $*" >&2
  exit 1
}
[ -f "$lab_dir/bench.py" ] || stop "there is no lab in $lab_dir; set LAB_DIR to the folder with its bench.py"
for part in bin/lab-load bin/lab-origin bin/lab-dns ca/mitm-ca.crt ca/origin-ca.crt; do
  [ -e "$LAB/$part" ] || stop "the lab is not set up ($LAB/$part is missing); run $lab_dir/setup.sh"
done
[ "$(id -u)" = 0 ] || stop "the lab needs root, for its network namespace"

cargo build --release --locked --manifest-path "$root/Cargo.toml" -p tollgate-cli
[ -x "$root/target/release/tollgate" ] || stop "the build put no $root/target/release/tollgate; unset CARGO_TARGET_DIR"

"$lab_dir/bench.py" --extra "$here/lab.toml" --peers "$peers" --base fwd --out "$out" "$@"

readmes=("$here/README.md")
if grep -qs '<!-- lab:begin -->' "$root/README.md"; then readmes+=("$root/README.md"); fi
command="bench/run-lab.sh${*:+ $*}"
python3 "$here/table.py" --lab "$lab_dir/lab.toml" --lab "$here/lab.toml" --peers "$peers" --command "$command" \
  --results "$out/results.jsonl" "${readmes[@]}"
echo "results: $out"
