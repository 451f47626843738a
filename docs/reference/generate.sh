#!/usr/bin/env bash
# Writes cli.md from what the command says about itself.
#
#   generate.sh            writes cli.md
#   generate.sh --check    only compares: fails when cli.md is out of date
#
# TOLLGATE_BIN names the binary to ask; by default it is built.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
root=$(dirname "$(dirname "$here")")

mode=${1:-}
case $mode in
'' | --check) ;;
*) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" && exit 2 ;;
esac

if [ -n "${TOLLGATE_BIN:-}" ]; then
  tollgate=$TOLLGATE_BIN
else
  cargo build --quiet --locked --manifest-path "$root/Cargo.toml" -p tollgate-cli
  tollgate=$(cargo metadata --format-version 1 --no-deps --manifest-path "$root/Cargo.toml" |
    sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/debug/tollgate
fi

# What the environment sets would stand in the help as "[env: NAME=value]".
for name in $(env | sed -n 's/^\(TOLLGATE_[A-Z_]*\)=.*/\1/p'); do unset "$name"; done

section() {
  printf '\n## `tollgate%s`\n\n```text\n' "${1:+ $1}"
  # shellcheck disable=SC2086  # a command and its subcommand are two words
  "$tollgate" $1 --help | sed 's/[[:space:]]*$//'
  printf '```\n'
}

page=$(mktemp)
trap 'rm -f "$page"' EXIT
{
  cat <<'END'
# The command line

Made by `docs/reference/generate.sh`; change the comments in `crates/cli/src/args.rs` instead.

A flag wins over an environment variable, and that over `--set`. There is no configuration file yet.
Limits and timeouts are not on the command line: an embedding program sets them in
[`Config`](../../crates/engine/src/config.rs), whose comments say what each does and what its default is
(`cargo doc -p tollgate-engine --open`).

`TOLLGATE_LOG` takes `tracing` directives in place of `-q` and `-v`, such as `tollgate_engine=debug`.
`NO_COLOR` and `CLICOLOR_FORCE=1` forbid and force colours.

Exit codes: 0; 1 when the proxy can't start, or a file can't be read whole; 2 for a usage error. `run` and `mcp` give the
command's own code, 128 and the number of the signal that killed it, 127 if it was not found, and 126 if it can't be run.
END
  section ''
  section run
  section mcp
  section 'ca show'
  section 'ca export'
  section 'ca rotate'
  section 'trust install'
  section 'trust uninstall'
  section 'trust status'
  section convert
  section export
  section filter
  section flows
  section 'flows show'
  section 'flows delete'
  section 'flows stats'
  section held
  section 'held show'
  section 'held release'
  section 'held refuse'
  section 'rules check'
  section 'rules test'
  section 'audit verify'
  section 'audit key'
  section 'audit show'
  section scan
  section scan-server
  section 'transparent rules'
  section 'transparent apply'
  section 'transparent remove'
  section completions
} >"$page"

if [ "$mode" = --check ]; then
  diff -u "$here/cli.md" "$page"
else
  cat "$page" >"$here/cli.md"
fi
