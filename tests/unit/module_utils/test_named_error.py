"""The error that ended a service, by its log."""

from __future__ import annotations

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils.units import (
    KILLED,
    LOST,
    OUT_OF_MEMORY,
    named_error,
)

START = "Started dsprov-vllm.service"
# As vLLM 0.32 wrote it in the lab, shortened.
MEMORY = f"""{START} - vLLM.
(EngineCore pid=2909) ERROR 11-22 02:58:38 [core.py:1510] EngineCore failed to start.
(EngineCore pid=2909) ERROR 11-22 02:58:38 [core.py:1510] Traceback (most recent call last):
(EngineCore pid=2909) ERROR 11-22 02:58:38 [core.py:1510]     raise RuntimeError(
(EngineCore pid=2909) ERROR 11-22 02:58:38 [core.py:1510] RuntimeError: Insufficient space in shm.
    raise RuntimeError(
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}
dsprov-vllm.service: Main process exited, code=exited, status=1/FAILURE
"""
# As systemd writes where it counts memory by cgroup v2, and where it does not.
OOM = f"""{START} - vLLM.
srv    load_model: loading model
dsprov-vllm.service: A process of this unit has been killed by the OOM killer.
dsprov-vllm.service: Main process exited, code=killed, status=9/KILL
dsprov-vllm.service: Failed with result 'oom-kill'.
"""
SIGKILL = f"""{START} - vLLM.
dsprov-vllm.service: Main process exited, code=killed, status=9/KILL
dsprov-vllm.service: Failed with result 'signal'.
"""
ALARM = f"""{START} - vLLM.
dsprov-vllm.service: Main process exited, code=killed, status=14/ALRM
"""
PLAIN = f"""{START} - vLLM.
error: invalid argument: --nonsense
dsprov-vllm.service: Main process exited, code=exited, status=1/FAILURE
"""
# As llama-server writes, shortened: what is wrong comes first, then pages of usage or what follows from it.
USAGE = f"""{START} - llama-server.
error while handling argument "--ctx-size": stoi

usage:
to show complete usage, run with -h
dsprov-vllm.service: Main process exited, code=exited, status=1/FAILURE
"""
NO_FILE = f"""{START} - llama-server.
0.00.011.900 I build_info: b11434
0.00.011.981 E gguf_init_from_file: failed to open GGUF file '/m.gguf' (No such file or directory)
0.00.012.935 E srv  llama_server: exiting due to model loading error
dsprov-vllm.service: Main process exited, code=exited, status=1/FAILURE
"""


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (MEMORY, "RuntimeError: Insufficient space in shm."),
        (MEMORY + f"{START} - vLLM.\nW1122 triton not found\n", "RuntimeError: Insufficient space"),
        (MEMORY + f"{START} - vLLM.\nOSError: [Errno 98] Address already in use\n", "OSError: [Errno 98]"),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
            "torch.OutOfMemoryError: CUDA",
        ),
        (MEMORY + OOM + f"{START} - vLLM.\nloading\n", OUT_OF_MEMORY),
        (OOM + SIGKILL, KILLED),
        (OOM + ALARM, LOST),
        (OOM + MEMORY, "RuntimeError: Insufficient space in shm."),
        # What an earlier start fell over by is no cause of this one.
        (MEMORY + OOM + PLAIN, "error: invalid argument: --nonsense"),
        (USAGE, 'error while handling argument "--ctx-size": stoi'),
        (
            NO_FILE + f"{START} - llama-server.\n",
            "gguf_init_from_file: failed to open GGUF file '/m.gguf' (No",
        ),
        ("INFO all is well\n", ""),
        ("RuntimeError: Engine core initialization failed. See root cause above.", ""),
        ("", ""),
    ],
)
def test_the_first_error_of_the_last_start_that_failed(log: str, said: str) -> None:
    found = named_error(log, START)
    assert found.startswith(said)
    assert bool(found) is bool(said)
