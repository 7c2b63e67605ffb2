#!/usr/bin/env bash
# Packs a release: the program, man pages, completions, systemd units and licences, in one archive with its checksum.
#
#   deploy/release.sh cpu  [FOLDER]     for any processor; kernels are chosen at run time
#   deploy/release.sh cuda [FOLDER]     for NVIDIA's GPUs as well; needs nvcc, CUDA_COMPUTE_CAP chooses the kind (80, 90)
#
# The program needs nothing but the C library of the system that it is built on, or a newer one, which is checked (for cuda: and
# NVIDIA's libraries). So build where the oldest one is that is to run it. BANYAN_BUILT names a program that is built already.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:?usage: deploy/release.sh cpu|cuda [FOLDER]}
out=$(realpath -m "${2:-target/release-archives}")
case $kind in
  cpu) features=() ;;
  cuda) features=(--features cuda) ;;
  *) echo "release.sh: $kind is neither cpu nor cuda" >&2; exit 2 ;;
esac

built=${BANYAN_BUILT:-}
if [ -z "$built" ]; then
  cargo build --release --locked "${features[@]}"
  built=${CARGO_TARGET_DIR:-target}/release/banyan
fi

# Whatever else it would need, nobody has.
allowed='linux-vdso|ld-linux|libc\.so|libm\.so|libgcc_s|libpthread|libdl|librt'
[ "$kind" = cuda ] && allowed="$allowed|libcuda|libcu|libnv|libstdc"
if strangers=$(ldd "$built" | grep -Ev "$allowed"); then
  printf 'release.sh: the program needs libraries that not everybody has:\n%s\n' "$strangers" >&2
  exit 1
fi

version=$("$built" --version | cut -d' ' -f2)
name=banyan-$version-$(uname -m)-linux-$kind
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/$name"/{man,completions,systemd} "$out"
install -m 755 "$built" "$work/$name/banyan"
strip "$work/$name/banyan"
"$built" man --to "$work/$name/man" 2>/dev/null
for shell in bash zsh fish; do "$built" completions $shell >"$work/$name/completions/banyan.$shell"; done
cp deploy/systemd/*.service "$work/$name/systemd/"
cp deploy/preempt.sh LICENSE LICENSE-MIT LICENSE-APACHE README.md CHANGELOG.md "$work/$name/"
# The same files make the same archive.
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}" \
  -C "$work" -c "$name" | gzip -9n >"$out/$name.tar.gz"
(cd "$out" && sha256sum "$name.tar.gz" >>SHA256SUMS && sort -u -k2 -o SHA256SUMS SHA256SUMS)
echo "$out/$name.tar.gz"
