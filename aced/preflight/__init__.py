"""Memory and cost of a run on hardware that is not there: `python -m aced.preflight`."""

# Environment with which the TPU compiler runs on a machine without TPUs; on one with TPUs, it
# leaves them to others. It has to be set before jax is imported.
COMPILER_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # of any kind; the topology decides
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
}
