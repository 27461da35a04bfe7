"""Selection over 8 CPU devices. They have to exist before JAX starts, hence another process."""

import os
import pathlib
import subprocess
import sys


def test_eight_devices_choose_what_one_does_and_move_no_pixel():
    script = pathlib.Path(__file__).with_name("stratified_mesh.py")
    paths = [str(script.parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    run = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout + run.stderr
