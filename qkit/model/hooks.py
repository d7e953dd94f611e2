"""What is done to a model for a while, and is undone whatever happens: listening, another forward, evaluation mode."""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

Hook = Callable[..., object]


def _of_the_process(enter: Callable[[], AbstractContextManager]) -> Callable[[], AbstractContextManager]:
    """Of a state of the whole process: the first thread that enters sets it, and the last that leaves puts back what was before.

    Would each put back what it found itself, the last could put back what the first had set, for good.
    """
    lock, outside, inside = threading.Lock(), ExitStack(), 0

    @contextmanager
    @wraps(enter)
    def entered() -> Iterator[None]:
        nonlocal inside
        with lock:
            if inside == 0:
                outside.enter_context(enter())
            inside += 1
        try:
            yield
        finally:
            with lock:
                inside -= 1
                if inside == 0:
                    outside.close()

    return entered


_eager = _of_the_process(partial(torch.compiler.set_stance, "force_eager"))


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, what torch.compile has made runs as it was written: compiled code calls no hooks that came later."""
    if "torch._dynamo" not in sys.modules:  # then nothing is compiled, and to import the compiler takes seconds
        yield
        return
    with _eager():
        yield


@_of_the_process
@contextmanager
def full_products() -> Iterator[None]:
    """Inside, float32 times float32 is that: not TF32 with its 10 bits, nor bfloat16, which torch may have been told to take."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # it was told so by the newer switches, and the older refuses to be read
        before = None
    if before == "highest":
        yield
        return
    switches = () if before else (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    saved = [switch.fp32_precision for switch in switches]
    try:
        if before:
            torch.set_float32_matmul_precision("highest")
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        if before:
            torch.set_float32_matmul_precision(before)
        for switch, precision in zip(switches, saved, strict=True):
            switch.fp32_precision = precision


@contextmanager
def listening(hooks: Iterable[tuple[nn.Module, Hook]], after: bool = False) -> Iterator[None]:
    """Inside, each hook is called whenever its module is.

    Args:
        hooks: pairs of a module and `hook(module, args, kwargs)`, called before the module runs. What it returns is
            ignored: a listener changes nothing.
        after: call `hook(module, args, kwargs, output)` after the module has run instead.
    """
    with ExitStack() as handles:
        for module, hook in hooks:
            register = module.register_forward_hook if after else module.register_forward_pre_hook
            handle = register(lambda *heard, hook=hook: (hook(*heard), None)[1], with_kwargs=True)
            handles.callback(handle.remove)
        handles.enter_context(uncompiled())
        yield


def input_of(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """What a layer is called with: its first argument, by place or by name."""
    return args[0] if args else next(iter(kwargs.values()))


@contextmanager
def instead(forwards: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Inside, each module computes by another forward; afterwards by the one it had.

    That may be the method of its class, or one that somebody had set on the instance: accelerate does so to move inputs
    to the device of a module, and people do it to patch a model.
    """
    with ExitStack() as stack:
        for module, forward in forwards:
            own = vars(module)  # an attribute of the instance hides the method of the class
            restore = (own.__setitem__, "forward", own["forward"]) if "forward" in own else (own.pop, "forward", None)
            stack.callback(*restore)
            own["forward"] = forward
        yield


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Inside, dropout is off; afterwards every module of the models is in the mode it was in."""
    modes = {module: module.training for model in models for module in model.modules()}
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training
