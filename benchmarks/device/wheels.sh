#!/usr/bin/env bash
# Fills benchmarks/device/wheels with the packages that run.sh may miss, for Python 3.12 on x86-64
# Linux. Not among them, as they have to be there: JAX, Flax, Optax, Orbax, NumPy, OpenCV; and for
# the comparison PyTorch, torchvision and timm.
set -euo pipefail
cd "$(dirname "$0")"

packages=(
  'grain>=0.2.18,<0.3' 'array_record>=0.8.6,<0.9' 'ml_collections>=1.1,<2' 'jaxtyping>=0.3.5,<0.4'
  'simplejpeg>=1.8.2,<2' 'pillow>=11,<13' 'ftfy>=6.3,<7' 'sentencepiece>=0.2.1,<0.3'
  'tokenizers>=0.22,<0.24' 'tensorboardX>=2.6.4,<3' 'safetensors>=0.6,<0.9' 'msgpack>=1.1,<2'
  'fsspec>=2025.3' 'tqdm>=4.66,<5' 'etils>=1.12,<2' 'absl-py>=2.3,<3'
  # what these need
  portpicker psutil wadler_lindig wcwidth protobuf packaging cloudpickle PyYAML importlib_resources zipp
  typing_extensions
  # the step to compare with
  'open_clip_torch>=3.3,<4'
)
platforms=()
for tag in _2_28 _2_27 _2_24 _2_17 2014 1; do
  platforms+=(--platform "manylinux${tag}_x86_64")
done

mkdir -p wheels
rm -f wheels/*.whl
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: \
  --implementation cp --python-version 3.12 "${platforms[@]}" --dest wheels "${packages[@]}"
ls -l wheels
du -ch wheels/* | tail -1
