# The native module as Python sees it; a test compares the two. Nested classes stand for
# submodules. One file because it is one module.
from collections.abc import Callable, Sequence

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
        def __init__(
            self, comm: fabric.Communicator, data_bytes: int, is_elsewhere: bool = ...
        ) -> None: ...
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
    @staticmethod
    def merge_lse_cuda(
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
        stream: int,
        num_blocks: int,
        launcher: Callable[[cuda.KernelLaunch], None] | None,
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
        inputs: Sequence[int],
        residual: int,
        bias: int,
        weight: int,
        out: int,
        out_copy: int,
        residual_out: int,
        rows: int,
        hidden: int,
        input_dtype: int,
        dtype: int,
        weight_dtype: int,
        eps: float,
        weight_offset: float,
        is_streaming: bool,
    ) -> None: ...
    @staticmethod
    def all_gather(
        comm: fabric.Communicator, x: int, out: int, rows: int, column_bytes: Sequence[int]
    ) -> None: ...
    @staticmethod
    def broadcast(comm: fabric.Communicator, data: int, num_bytes: int, source: int) -> None: ...

class cuda:
    TWO_SHOT: int
    ONE_SHOT: int
    REDUCE_SCATTER: int
    MAX_RANKS: int
    MAX_BLOCKS: int
    FAILURE_RECORD_BYTES: int

    class KernelSource:
        @property
        def file(self) -> str: ...
        @property
        def kernel(self) -> str: ...
        @property
        def params_type(self) -> str: ...
        @property
        def params_bytes(self) -> int: ...
        @property
        def options(self) -> tuple[str, ...]: ...

    class KernelLaunch:
        @property
        def source(self) -> cuda.KernelSource: ...
        @property
        def params(self) -> bytes: ...
        @property
        def grid(self) -> tuple[int, int]: ...
        @property
        def num_threads(self) -> int: ...
        @property
        def shared_bytes(self) -> int: ...
        @property
        def is_cooperative(self) -> bool: ...
        @property
        def stream(self) -> int: ...

    class Runtime:
        @property
        def is_compiled(self) -> bool: ...
        @property
        def runtime_version(self) -> int: ...
        @property
        def driver_version(self) -> int: ...
        @property
        def num_devices(self) -> int: ...
        @property
        def problem(self) -> str: ...

    class Memory:
        def __init__(self, by_rank: Sequence[int], multicast: int) -> None: ...
        @property
        def by_rank(self) -> list[int]: ...
        @property
        def multicast(self) -> int: ...

    class GpuMessages:
        def __init__(
            self, comm: fabric.Communicator, device: int, timeout_s: float, driver_library: str
        ) -> None: ...
        def grant(self, peer: int, stream: int, waits_for_sends: bool) -> int: ...
        def wait_for(
            self, peer: int, number: int, into: int, num_bytes: int, stream: int, what: str
        ) -> None: ...
        def send(
            self, peer: int, pieces: Sequence[tuple[int, int, int]], stream: int, what: str
        ) -> int: ...
        def has_left(self, peer: int, number: int) -> bool: ...
        def join(self, stream: int) -> None: ...
        def check(self, stream: int) -> None: ...
        def check_failure(self) -> None: ...
        def close(self) -> None: ...

    class Group:
        def __init__(
            self,
            rank: int,
            size: int,
            is_virtual: bool,
            channel: cuda.Memory,
            channel_offset: int,
            failure_records: Sequence[int],
            timeout_s: float,
            checks_calls: bool,
            launcher: Callable[[cuda.KernelLaunch], None] | None,
        ) -> None: ...
        def check(self, operation: str) -> None: ...

    class Reduction:
        def __init__(
            self,
            group: cuda.Group,
            form: int,
            is_multicast: bool,
            rows: int,
            hidden: int,
            dtype: int,
            weight_dtype: int,
            residual_dtype: int,
            residual_is_sharded: bool,
            norm: int,
            quantized_format: int,
            group_elements: int,
            scale: float,
            staging: cuda.Memory | None,
            staging_offset: int,
            staging_block_bytes: int,
            num_blocks: int,
            is_baseline: bool,
        ) -> None: ...
        def pace(self, bytes_per_ns: float, latency_ns: int) -> None: ...
        def run(
            self,
            x_memory: cuda.Memory | None,
            x: int,
            out_memory: cuda.Memory | None,
            out: int,
            residual_memory: cuda.Memory | None,
            residual: int,
            residual_out_memory: cuda.Memory | None,
            residual_out: int,
            codes_memory: cuda.Memory | None,
            codes: int,
            scales_memory: cuda.Memory | None,
            scales: int,
            bias: int,
            weight: int,
            norm_bias: int,
            eps: float,
            weight_offset: float,
            stream: int,
        ) -> None: ...

    @staticmethod
    def kernel_sources() -> list[cuda.KernelSource]: ...
    @staticmethod
    def runtime() -> cuda.Runtime: ...
    @staticmethod
    def copy(to: int, from_: int, num_bytes: int, stream: int) -> None: ...
    @staticmethod
    def copy_rows(
        to: int,
        to_stride: int,
        from_: int,
        from_stride: int,
        row_bytes: int,
        rows: int,
        stream: int,
    ) -> None: ...
    @staticmethod
    def gather(
        group: cuda.Group,
        is_multicast: bool,
        source_memory: cuda.Memory | None,
        source: int,
        out_memory: cuda.Memory,
        out: int,
        rows: int,
        row_bytes: int,
        num_blocks: int,
        stream: int,
    ) -> None: ...
    @staticmethod
    def channel_bytes() -> int: ...
    @staticmethod
    def one_shot_block_bytes(rows: int, hidden: int, dtype: int, num_blocks: int) -> int: ...
    @staticmethod
    def staging_bytes(size: int, num_blocks: int, staging_block_bytes: int) -> int: ...
    @staticmethod
    def rows_per_block(hidden: int, dtype: int) -> int: ...
