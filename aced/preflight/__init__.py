"""Memory and cost of a run on hardware that is not attached: `python -m aced.preflight`."""

# Environment for the TPU compiler, which needs no TPUs and does not claim any. Must be set before
# jax is imported.
COMPILER_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # any kind works; the topology decides
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
}
