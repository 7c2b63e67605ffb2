#!/usr/bin/env bash
# Builds the version before this one, for the tests that put both into one tree, and prints where its binary is.
set -euo pipefail
cd "$(dirname "$0")/.."

# Before nodes could leave in order, deliver over their parents or be asked to go on: it knows none of those messages.
commit=be101e25b767330cd6d60798ef9199386e3e9d89

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
binary=$target/previous/banyan
if [ "$(cat "$binary.commit" 2>/dev/null)" != "$commit" ]; then
  source=$target/previous/source
  rm -rf "$source"
  git worktree prune
  git worktree add --force --detach "$source" "$commit" >&2
  # In the same target folder, so that the crates of others are not built again.
  (cd "$source" && CARGO_TARGET_DIR=$target cargo build --release --bin banyan) >&2
  cp "$target/release/banyan" "$binary"
  git worktree remove --force "$source"
  # The present one takes its place again.
  cargo build --release >&2
  echo "$commit" >"$binary.commit"
fi
echo "$binary"
