"""PyTorch peers of benchmarks/gpu.py: cuDNN eagerly, and as a replayed CUDA graph.

The tasks run in a child process, because a failed capture may end its process; only one point is
lost then. The parent imports PyTorch once and does not use the GPU.
"""

import gc
import os
from collections.abc import Callable
from typing import Any

import torch


def measure_all(
    tasks: list[Any], turn: Any, append: Callable[[Any, dict[str, Any]], None], late: Callable
) -> None:
    """Measure the tasks one by one, in a new child process after each crash."""
    while tasks and not late():
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            for task in tasks:
                if late():
                    break
                append(task, _measured(task, turn))
                os.write(write, b".")
            os._exit(0)  # skip PyTorch's cleanup, which fails after a failed capture
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            done = len(pipe.read())
        _, status = os.waitpid(child, 0)
        if status != 0:
            append(tasks[done], {"error": "the process died"})
            done += 1
        elif late():
            return
        tasks = tasks[done:]


def _measured(task: Any, turn: Any) -> dict[str, Any]:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = (
        task.dtype != "highest"
    )

    def measured() -> dict[str, Any]:
        call = _prepare(task)
        if task.peer == "cudnn graph":
            call = _captured(call)
        return {"us": _timed(call) / task.steps * 1000}

    with turn:
        try:
            return measured()
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"[:200]}
        finally:  # the call and its graph are gone; the next process needs their memory
            gc.collect()
            torch.cuda.empty_cache()


def _prepare(task: Any) -> Any:
    dtype = torch.bfloat16 if task.dtype == "bfloat16" else torch.float32
    options = {"num_layers": task.layers, "bidirectional": task.directions == 2}
    module = getattr(torch.nn, task.cell.upper())(task.hidden, task.hidden, **options)
    module = module.to("cuda", dtype)
    module.flatten_parameters()
    x = torch.randn(task.steps, task.batch, task.hidden, device="cuda", dtype=dtype)
    lengths = None
    if task.lengths == "ragged":
        lengths = torch.randint(1, task.steps + 1, (task.batch,))
    width = task.directions * task.hidden
    cotangent = torch.randn(task.steps, task.batch, width, device="cuda", dtype=dtype)
    wanted = [x.requires_grad_(task.mode == "training"), *module.parameters()]

    def run() -> torch.Tensor:
        if lengths is None:
            return module(x)[0]
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        steps = task.steps
        return torch.nn.utils.rnn.pad_packed_sequence(module(packed)[0], total_length=steps)[0]

    def infer() -> torch.Tensor:
        with torch.no_grad():
            return run()

    def train() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(run(), wanted, cotangent)

    return infer if task.mode == "inference" else train


def _captured(call: Any) -> Any:
    """Captures a call as PyTorch documents it: warm up on another stream, then capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()
    graph.kept = kept
    return graph.replay


def _timed(call: Any) -> float:
    """Milliseconds per call: the median over several runs."""
    call()
    times = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]
