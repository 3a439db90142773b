"""Support of `torch.fx`, whose proxies have no shapes: layers and checks that look at shapes become single nodes."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from torch import fx, nn

Function = TypeVar("Function", bound=Callable[..., Any])


def is_proxy(x: Any) -> bool:
    """Whether `torch.fx` is tracing with `x` in the place of a tensor."""
    return isinstance(x, fx.Proxy)


def fx_leaf(function: Function) -> Function:
    """Decorator: `torch.fx` records a call as one node and does not look inside, as with PyTorch's own layers.

    It applies to the `forward` of a module, and to functions of tensors.
    """

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        inputs = args[1:] if args and isinstance(args[0], nn.Module) else args
        proxies = [x for x in (*inputs, *kwargs.values()) if is_proxy(x)]
        if not proxies:
            return function(*args, **kwargs)
        tracer = proxies[0].tracer
        if inputs is args:
            return tracer.create_proxy("call_function", call, args, kwargs)
        if args[0] is tracer.root:
            raise TypeError(f"{type(args[0]).__name__} is one node for torch.fx; trace a network that contains it")
        return tracer.create_proxy("call_module", tracer.path_of_module(args[0]), inputs, kwargs)

    return cast(Function, call)
