def decode_attention(
    shape: tuple[int, int, int, int, int, int],
    scaling: float,
    softcap: float,
    q: int,
    keys: int,
    values: int,
    slots: int,
    first: int,
    until: int,
    out: int,
    num_threads: int,
    /,
) -> None: ...

class Table:
    def __init__(
        self,
        sizes: tuple[int, ...],
        arrays: tuple[int, ...],
        modules: list[tuple[int, int, int, int, int, int, int] | None],
        num_threads: int,
        owners: object,
    ) -> None: ...
    def apply(self, module_idx: int, x: int, x_stride: int, y: int, y_stride: int, /) -> None: ...

def small_linear(
    x: int,
    x_stride: int,
    num_tokens: int,
    w: int,
    bias: int,
    width: int,
    height: int,
    y: int,
    y_stride: int,
    num_threads: int,
    /,
) -> None: ...
