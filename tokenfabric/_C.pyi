# The native module as Python sees it; a test compares the two. Nested classes stand for
# submodules.
from collections.abc import Sequence

class fabric:
    OP_BARRIER: int
    OP_ALLREDUCE_RMSNORM: int
    OP_ALL_REDUCE: int
    OP_REDUCE_SCATTER: int
    OP_ALL_GATHER: int
    OP_BROADCAST: int
    OP_MESSAGES: int

    class Segment:
        @property
        def address(self) -> int: ...
        @property
        def num_bytes(self) -> int: ...

    class Listener:
        def __init__(self, directory: str) -> None: ...
        @property
        def path(self) -> str: ...

    class Mesh:
        def __init__(
            self,
            rank: int,
            size: int,
            listener: fabric.Listener,
            paths: Sequence[str],
            nonce: int,
            timeout_s: float,
        ) -> None: ...
        def peer_pid(self, peer: int) -> int: ...
        def dead_peers(self) -> list[int]: ...

    class SymmetricMemory:
        def segment(self, rank: int) -> fabric.Segment: ...

    class Mailboxes:
        def __init__(self, comm: fabric.Communicator, data_bytes: int) -> None: ...
        def segment(self, rank: int) -> fabric.Segment: ...
        @property
        def data_offset(self) -> int: ...
        def post(self, peer: int, offset_bytes: int, num_bytes: int) -> None: ...
        def receive(self, peer: int) -> tuple[int, int]: ...
        def begin_send(self, peer: int) -> tuple[int, int]: ...
        def publish(self, peer: int, num_bytes: int, tag: int) -> None: ...

    class Communicator:
        def __init__(
            self,
            mesh: fabric.Mesh | None,
            num_threads: int,
            spin_count: int,
            timeout_s: float,
            partial_bytes: int,
            staging_bytes: int,
            base_epoch: int,
            first_rank: int = ...,
            world_size: int = ...,
        ) -> None: ...
        @property
        def rank(self) -> int: ...
        @property
        def size(self) -> int: ...
        @property
        def epoch(self) -> int: ...
        @property
        def staging_bytes(self) -> int: ...
        @property
        def partial_bytes(self) -> int: ...
        def barrier(self) -> None: ...
        def barrier_loop(self, count: int) -> list[float]: ...
        def check(self) -> None: ...
        def abort(self) -> None: ...
        def agree(
            self, operation: int, dtype: int, rows: int, row_elems: int, options: int
        ) -> None: ...
        def break_world(
            self, kind: int, blamed: int, reporter: int, operation: int, epoch: int
        ) -> None: ...
        def verdict(self) -> tuple[int, int, int, int, int] | None: ...
        def allocate(self, num_bytes: int) -> fabric.SymmetricMemory: ...
        def allocate_shared(self, num_bytes: int) -> tuple[fabric.Segment, fabric.Segment]: ...
        def workspace(self, rank: int) -> fabric.Segment: ...
        def partial_offset(self) -> int: ...

    @staticmethod
    def available_memory_bytes() -> int: ...
    @staticmethod
    def operation_name(operation: int) -> str: ...

class ring:
    FLOAT32: int
    BFLOAT16: int
    FLOAT16: int

    class ThreadPool:
        def __init__(self, num_threads: int) -> None: ...
        @property
        def num_threads(self) -> int: ...

    @staticmethod
    def threads_of(comm: fabric.Communicator) -> ring.ThreadPool: ...

    class MergeKernels:
        @property
        def name(self) -> str: ...

    @staticmethod
    def usable_merge_kernels() -> list[str]: ...
    @staticmethod
    def choose_merge_kernels(name: str) -> ring.MergeKernels: ...

    class MergePiece:
        def __init__(
            self,
            out: int,
            out_strides: Sequence[int],
            dtype: int,
            lse: int,
            lse_strides: Sequence[int],
            row_start: int,
            num_rows: int,
            head_start: int,
            num_heads: int,
        ) -> None: ...

    @staticmethod
    def merge_lse(
        threads: ring.ThreadPool,
        kernels: ring.MergeKernels,
        pieces: Sequence[ring.MergePiece],
        sinks: int,
        out: int,
        out_strides: Sequence[int],
        out_dtype: int,
        lse: int,
        lse_strides: Sequence[int],
        batch: int,
        rows: int,
        heads: int,
        head_dim: int,
    ) -> None: ...

class weave:
    FLOAT32: int
    BFLOAT16: int
    FLOAT16: int
    RMS_NORM: int
    LAYER_NORM: int
    FUSED: int
    DROP_IN: int
    NOT_QUANTIZED: int
    FP8_E4M3: int
    INT8: int
    ONE_SHOT: int
    TWO_SHOT: int
    OUTPUT_PRIVATE: int
    OUTPUT_OWN_ROWS: int
    OUTPUT_SHARED: int
    OP_ALLREDUCE_RMSNORM: int
    OP_ALL_REDUCE: int
    OP_REDUCE_SCATTER: int

    class RowKernels:
        @property
        def name(self) -> str: ...

    @staticmethod
    def usable_row_kernels() -> list[str]: ...
    @staticmethod
    def choose_row_kernels(name: str) -> weave.RowKernels: ...

    class PreparedReduction:
        def __init__(
            self,
            kernels: weave.RowKernels,
            operation: int,
            rows: int,
            hidden: int,
            dtype: int,
            weight_dtype: int,
            out_dtype: int,
            residual_is_sharded: bool,
            algorithm: int,
            output: int,
            block_rows: int,
            is_streaming: bool,
            residual_dtype: int,
            norm: int,
            numerics: int,
            quantized_format: int,
            group_elements: int,
            scale: float,
        ) -> None: ...
        def run(
            self,
            comm: fabric.Communicator,
            x: int,
            residual: int,
            bias: int,
            weight: int,
            norm_bias: int,
            out: int,
            residual_out: int,
            eps: float,
            weight_offset: float,
        ) -> None: ...
        def run_quantized(
            self,
            comm: fabric.Communicator,
            x: int,
            residual: int,
            bias: int,
            weight: int,
            norm_bias: int,
            out: int,
            residual_out: int,
            quantized: int,
            scales: int,
            eps: float,
            weight_offset: float,
        ) -> None: ...

    @staticmethod
    def finish_rows(
        comm: fabric.Communicator,
        kernels: weave.RowKernels,
        sums: Sequence[int],
        residual: int,
        bias: int,
        weight: int,
        out: int,
        residual_out: int,
        rows: int,
        hidden: int,
        dtype: int,
        weight_dtype: int,
        eps: float,
        weight_offset: float,
    ) -> None: ...
    @staticmethod
    def all_gather(
        comm: fabric.Communicator, x: int, out: int, rows: int, column_bytes: Sequence[int]
    ) -> None: ...
    @staticmethod
    def broadcast(comm: fabric.Communicator, data: int, num_bytes: int, source: int) -> None: ...
