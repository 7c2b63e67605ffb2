#!/usr/bin/env bash
# Installs the peers from public registries, and makes the random gpt2-shaped weights that all of them run.
#
#   PEERS_DIR=some/folder tests/peers/setup.sh
#
# Needs python3 with venv, a C++ compiler and make. About 15 minutes on two cores and 12 GB of disk; what is there already
# is kept, so a run that was interrupted goes on where it was.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${PEERS_DIR:?say where the peers go: PEERS_DIR=some/folder}"
PEERS_DIR=$(cd "$PEERS_DIR" && pwd)
export PEERS_DIR

llama=llama_cpp_python-0.3.36
bin=$PEERS_DIR/venv/bin
say() { printf '\n== %s\n' "$*" >&2; }

if ! [ -x "$bin/ct2-transformers-converter" ]; then
  say "Python's packages"
  python3 -m venv "$PEERS_DIR/venv"
  "$bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
fi

say "weights"
[ -f "$PEERS_DIR/gpt2-rand/gpt2-f32.gguf" ] || "$bin/python" "$here/weights.py"
for type in float32 int8; do
  [ -d "$PEERS_DIR/ct2-$type" ] || "$bin/ct2-transformers-converter" \
    --model "$PEERS_DIR/gpt2-rand" --output_dir "$PEERS_DIR/ct2-$type" --quantization "$type"
done
[ -f "$PEERS_DIR/ov/gpt2_int8.xml" ] || "$bin/python" "$here/case_openvino.py" convert

say "llama.cpp"
if ! [ -x "$PEERS_DIR/llama-build/bin/llama-quantize" ]; then
  mkdir -p "$PEERS_DIR/src"
  # Only this package from its source: what reads its metadata comes as wheels.
  "$bin/pip" download --quiet --no-deps --no-binary llama-cpp-python -d "$PEERS_DIR/src" "llama-cpp-python==${llama##*-}"
  tar xzf "$PEERS_DIR/src/$llama.tar.gz" -C "$PEERS_DIR/src"
  export PATH=$bin:$PATH
  cmake -S "$PEERS_DIR/src/$llama/vendor/llama.cpp" -B "$PEERS_DIR/llama-build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_UI=OFF -DBUILD_SHARED_LIBS=ON
  cmake --build "$PEERS_DIR/llama-build" --target llama-bench llama-batched-bench llama-quantize
fi
for type in BF16 Q8_0 Q4_0; do
  [ -f "$PEERS_DIR/gpt2-rand/gpt2-$type.gguf" ] ||
    "$PEERS_DIR/llama-build/bin/llama-quantize" "$PEERS_DIR/gpt2-rand/gpt2-f32.gguf" "$PEERS_DIR/gpt2-rand/gpt2-$type.gguf" "$type"
done
say "ready: tests/peers/run.py"
