"""The linear layers of a model: what compression replaces, by name.

The output head and the embedding stay as they are: in small models they share one
matrix, and a lookup table is not a matrix product.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from thesis_lib.common.errors import InvalidInput, require


def linears(
    model: nn.Module, names: Iterable[str] | None = None
) -> dict[str, nn.Linear]:
    """Every `nn.Linear` of the model but its output head, or those of `names`.

    Maps dotted names to layers, in the model's order. Raises InvalidInput for a
    model without any, and for names that are not among them.
    """
    find_head = getattr(model, "get_output_embeddings", lambda: None)
    head = find_head()
    modules = {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and layer is not head
    }
    require(
        bool(modules), f"{type(model).__name__} holds no nn.Linear apart from its head"
    )
    if names is None:
        return modules
    chosen = list(names)
    unknown = [name for name in chosen if name not in modules]
    if unknown:
        raise InvalidInput(
            f"{', '.join(unknown)} not among the {len(modules)} linear layers of "
            f"{type(model).__name__}: expected names such as {next(iter(modules))}"
        )
    return {name: modules[name] for name in chosen}


@contextmanager
def before(hooks: Mapping[nn.Module, Callable[..., None]]) -> Iterator[None]:
    """Call each hook with the inputs and options of its module, while this lasts."""
    handles = [
        module.register_forward_pre_hook(
            lambda _, inputs, options, hook=hook: hook(inputs, options),
            with_kwargs=True,
        )
        for module, hook in hooks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
