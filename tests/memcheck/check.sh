#!/usr/bin/env bash
# Runs the tests of the engine's kernels in valgrind, which sees reads and writes where nothing is, and decisions by numbers that
# were never written.
#
#   tests/memcheck/check.sh
#
# valgrind has no AVX-512, so the kernels checked are those for AVX2 and the portable ones. Left out are tests of the machine's
# speed, and of the thread pool, which Miri checks better. Needs valgrind.
set -euo pipefail
cd "$(dirname "$0")/../.."

# The program of the unit tests, which `./test` has built: by the whole workspace, because one crate alone has other features.
program=$(cargo test --release --workspace --lib --no-run --message-format json 2>/dev/null |
  sed -n 's/.*"executable":"\([^"]*\/banyan_engine-[^"]*\)".*/\1/p' | tail -1)
[ -x "$program" ] || { echo "tests/memcheck: the engine's tests don't build: run cargo test -p banyan-engine --lib" >&2; exit 1; }

# valgrind runs a program on one core: as many at once as there are.
"$program" --list kernels:: 2>/dev/null | sed -n 's/: test$//p' | grep -v '::\(pool\|limits\)::' |
  xargs -P "$(nproc)" -I TEST valgrind -q --error-exitcode=9 --fair-sched=yes --leak-check=no \
    "$program" --exact TEST --test-threads 1
