"""The border to llama.cpp: the only file of the server that imports llama_cpp.

llama.cpp aborts the whole process on many bad arguments, so each wrapper checks ranges first,
and a NULL that ctypes returns as a falsy pointer becomes a typed error with the reason from
llama.cpp's own log. Everything here runs in an engine child or a short-lived one, never in the
front.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import llama_cpp as ll
import numpy as np
from numpy.typing import NDArray

from edgekit_server.config import Adapter
from edgekit_server.engine import breakdown, pooled, splits
from edgekit_server.engine.adapters import Adapters
from edgekit_server.engine.cells import Cells
from edgekit_server.engine.chains import Candidates, Chain, Sampler
from edgekit_server.engine.log import Log
from edgekit_server.engine.options import KV_TYPES, POOLINGS, ContextOptions, ModelOptions
from edgekit_server.engine.pointer import Pointer, forget
from edgekit_server.errors import BadModelError, EngineDiedError

Tokens = NDArray[np.int32]
Logits = NDArray[np.float32]

RANDOM_SEED = 0xFFFFFFFF
"""llama.cpp reads this seed as "draw one"; the engine never passes it on by accident."""
_STRIPS = ll.LLAMA_TOKEN_ATTR_LSTRIP | ll.LLAMA_TOKEN_ATTR_RSTRIP


class Model:
    """A loaded GGUF. Token tables are read once, since looking up a bad id ends the process."""

    pointer, vocab = Pointer(), Pointer()

    def __init__(self, options: ModelOptions, log: Log) -> None:
        """Load. Raises BadModelError (bad_model, out_of_memory) with llama.cpp's reason."""
        _init_backends()
        params = ll.llama_model_default_params()
        params.n_gpu_layers = options.n_gpu_layers
        params.use_extra_bufts = options.use_extra_bufts
        if options.no_alloc:
            params.no_alloc = True
            params.load_mode = ll.LLAMA_LOAD_MODE_NONE  # mmap with no_alloc aborts
        files = splits.files_of(options.path)
        if len(files) == 1:
            pointer = ll.llama_model_load_from_file(os.fsencode(files[0]), params)
        else:
            paths = (ctypes.c_char_p * len(files))(*map(os.fsencode, files))
            pointer = ll.llama_model_load_from_splits(paths, len(files), params)
        if not pointer:
            code = "out_of_memory" if log.says_memory() else "bad_model"
            raise BadModelError(f"{options.path.name}: {log.reason()}", code=code)
        self.pointer = pointer
        self.vocab = ll.llama_model_get_vocab(self.pointer)
        self.n_vocab = int(ll.llama_vocab_n_tokens(self.vocab))
        self.n_ctx_train = int(ll.llama_model_n_ctx_train(self.pointer))
        self.n_params = int(ll.llama_model_n_params(self.pointer))
        self.size_bytes = int(ll.llama_model_size(self.pointer))
        self.has_encoder = bool(ll.llama_model_has_encoder(self.pointer))
        self.has_decoder = bool(ll.llama_model_has_decoder(self.pointer))
        self.n_swa = int(ll.llama_model_n_swa(self.pointer))
        """Tokens in the window of the layers that have one; 0: none has."""
        self.is_recurrent = bool(
            ll.llama_model_is_recurrent(self.pointer) or ll.llama_model_is_hybrid(self.pointer)
        )
        """Whether some layers keep a running state instead of cells."""
        self.trims_exactly = not self.is_recurrent and self.n_swa == 0
        """Whether a sequence may be cut at any position: full attention only."""
        self.is_byte_pair = ll.llama_vocab_type(self.vocab) == ll.LLAMA_VOCAB_TYPE_BPE

    def close(self) -> None:
        if pointer := forget(self, "pointer", "vocab"):
            ll.llama_model_free(pointer)

    @property
    def description(self) -> str:
        return self._string(lambda buf, n: ll.llama_model_desc(self.pointer, buf, n)) or ""

    @property
    def chat_template(self) -> str | None:
        text = ll.llama_model_chat_template(self.pointer, None)
        return None if text is None else text.decode("utf-8", "replace")

    def metadata(self, key: str) -> str | None:
        """Return one metadata value as text, or None when the file does not have it."""
        name = key.encode()
        return self._string(lambda buf, n: ll.llama_model_meta_val_str(self.pointer, name, buf, n))

    def _string(self, call: Callable[[Any, int], int]) -> str | None:
        size = 1024
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = call(buffer, size)
            if n < 0:
                return None
            if n < size:
                return buffer.value.decode("utf-8", "replace")
            size = n + 1

    @property
    def add_bos(self) -> bool:
        return bool(ll.llama_vocab_get_add_bos(self.vocab))

    def special_ids(self) -> dict[str, int]:
        """Return the ids of bos, eos and the FIM roles that llama.cpp knows for this vocabulary."""
        found = {
            "bos": ll.llama_vocab_bos(self.vocab),
            "eos": ll.llama_vocab_eos(self.vocab),
            "prefix": ll.llama_vocab_fim_pre(self.vocab),
            "suffix": ll.llama_vocab_fim_suf(self.vocab),
            "middle": ll.llama_vocab_fim_mid(self.vocab),
            "pad": ll.llama_vocab_fim_pad(self.vocab),
            "repo": ll.llama_vocab_fim_rep(self.vocab),
            "sep": ll.llama_vocab_fim_sep(self.vocab),
        }
        return {role: int(i) for role, i in found.items() if 0 <= i < self.n_vocab}

    def pieces(self) -> list[bytes]:
        """Return the bytes of every token, control tokens as their text."""
        size = 64
        buffer = ctypes.create_string_buffer(size)
        table: list[bytes] = []
        for token in range(self.n_vocab):
            n = ll.llama_token_to_piece(self.vocab, token, buffer, size, 0, True)
            if n < 0:
                size = -n
                buffer = ctypes.create_string_buffer(size)
                n = ll.llama_token_to_piece(self.vocab, token, buffer, size, 0, True)
            table.append(ctypes.string_at(buffer, n))
        return table

    def control_ids(self) -> list[int]:
        """Return the ids that are never plain text: control and unknown tokens."""
        mask = ll.LLAMA_TOKEN_ATTR_CONTROL | ll.LLAMA_TOKEN_ATTR_UNKNOWN
        return [i for i, attributes in enumerate(self._attributes) if attributes & mask]

    @property
    def strips_spaces(self) -> bool:
        """Whether some token swallows the spaces beside it."""
        return any(attributes & _STRIPS for attributes in self._attributes)

    @cached_property
    def _attributes(self) -> list[int]:
        read = ll.llama_vocab_get_attr
        return [read(self.vocab, i) for i in range(self.n_vocab)]

    def end_ids(self) -> list[int]:
        """Return every id that ends generation."""
        is_end = ll.llama_vocab_is_eog
        return [i for i in range(self.n_vocab) if is_end(self.vocab, i)]

    def suppressed_ids(self) -> list[int]:
        """Return the ids that this model must never say."""
        count = ctypes.c_int32(0)
        ids = ll.llama_vocab_get_suppress_tokens(self.vocab, ctypes.byref(count))
        return [int(ids[i]) for i in range(count.value)] if ids else []

    def tokenize(self, text: bytes, *, special: bool) -> Tokens:
        """Turn UTF-8 into ids; `special`: control token texts in it are control tokens.

        Thread safe. The caller bounds the length of single words (see tokenizer.py): the C
        code recurses once per character of a word. Raises EngineDiedError(tokenizer_failed).
        """
        room = len(text) + 8
        while True:
            ids = np.empty(room, np.int32)
            pointer = ids.ctypes.data_as(ctypes.POINTER(ll.llama_token))
            n = ll.llama_tokenize(self.vocab, text, len(text), pointer, room, False, special)
            if n >= 0:
                return ids[:n]
            if -n <= room:
                raise EngineDiedError(f"llama_tokenize returned {n}", code="tokenizer_failed")
            room = -n


class Context(Cells):
    """KV memory and compute buffers of one model, and the calls of the step loop."""

    def __init__(self, model: Model, options: ContextOptions, log: Log) -> None:
        """Create. Raises ConfigError, or BadModelError(out_of_memory, bad_model)."""
        options.check()
        params = ll.llama_context_default_params()
        params.n_ctx = options.n_ctx
        params.n_seq_max = options.n_seq_max
        params.n_batch = options.n_batch
        params.n_ubatch = options.n_ubatch
        # The default reserves n_batch rows of logits: hundreds of MiB with a large vocabulary.
        params.n_outputs_max = options.n_outputs
        params.n_threads = params.n_threads_batch = options.n_threads
        params.type_k, params.type_v = KV_TYPES[options.type_k], KV_TYPES[options.type_v]
        params.flash_attn_type = -1 if options.flash_attn is None else int(options.flash_attn)
        params.swa_full = False
        params.kv_unified = options.kv_unified
        params.no_perf = True
        if options.pooling is not None:
            params.embeddings, params.pooling_type = True, POOLINGS[options.pooling]
        pointer = ll.llama_init_from_model(model.pointer, params)
        if not pointer:
            code = "out_of_memory" if log.says_memory() else "bad_model"
            raise BadModelError(f"no context: {log.reason()}", code=code)
        super().__init__(ll, pointer, n_seq_max=options.n_seq_max, unified=options.kv_unified)
        self.n_vocab = model.n_vocab
        self.n_ctx = int(ll.llama_n_ctx(self.pointer))
        self.n_ctx_seq = int(ll.llama_n_ctx_seq(self.pointer))
        self.n_batch = int(ll.llama_n_batch(self.pointer))
        self.n_ubatch = int(ll.llama_n_ubatch(self.pointer))
        self.n_threads = options.n_threads
        self.n_outputs_max = options.n_outputs

    def close(self) -> None:
        if pointer := forget(self, "pointer"):
            ll.llama_free(pointer)

    def decode(self, batch: ll.llama_batch) -> int:
        """Compute a batch: 0 done, 1 no room (memory unchanged), 2 aborted, < 0 failed."""
        if not 0 < batch.n_tokens <= self.n_batch:
            raise ValueError(f"a batch of {batch.n_tokens} rows; the most is {self.n_batch}")
        n_outputs = ctypes.string_at(batch.logits, batch.n_tokens).count(1)
        if n_outputs > self.n_outputs_max:
            raise ValueError(f"{n_outputs} output rows; the most is {self.n_outputs_max}")
        code = int(ll.llama_decode(self.pointer, batch))
        if code >= 0:
            self.pending.clear()
        return code

    def logits(self, n_rows: int) -> Logits:
        """Return the rows that asked for output, in batch order, as a writable view.

        Valid until the next decode only: llama.cpp may move the buffer.
        """
        if n_rows > self.n_outputs_max:
            raise ValueError(f"{n_rows} output rows; the most is {self.n_outputs_max}")
        pointer = ll.llama_get_logits(self.pointer)
        if not pointer:
            raise EngineDiedError("llama_get_logits returned NULL", code="internal")
        return np.ctypeslib.as_array(pointer, (n_rows, self.n_vocab))

    def memory_rows(self) -> list[breakdown.Row]:
        """Return llama.cpp's table of bytes per buffer type; empty where it cannot be read."""
        library = ll.llama_cpp._lib
        if not sys.platform.startswith("linux") or not hasattr(library, breakdown.SYMBOL):
            return []
        call, name = getattr(library, breakdown.SYMBOL), library.ggml_backend_buft_name
        call.restype, call.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p]
        name.restype, name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
        return breakdown.read_table(lambda out: call(out, self.pointer), name)

    def on_node(self, function: int | None, data: int) -> None:
        """Have a C function (its address) called with `data` after each node of a CPU graph.

        The graph stops if it returns anything but 0. `data` must live as long as the context.
        """
        if function is not None:
            ll.llama_set_abort_callback(self.pointer, ll.ggml_abort_callback(function), data)

    def sample(self, chain: Chain, row: int) -> int:
        """Draw from the logits of batch row `row`. ValueError if it did not ask for output."""
        if not ll.llama_get_logits_ith(self.pointer, row):
            raise ValueError(f"row {row} of the batch has no logits")
        return int(ll.llama_sampler_sample(chain.pointer, self.pointer, row))


def candidates(room: int) -> Candidates:
    """Return room for that many of a row's tokens."""
    return Candidates(ll, room)


def adapters(model: Model, files: Sequence[Adapter], log: Log) -> Adapters:
    """Load LoRA adapters; see Adapters."""
    return Adapters(ll, model.pointer, files, log)


def vector_facts(model: Model) -> pooled.Facts:
    """Return what a model says about vectors and scores."""
    return pooled.read_facts(ll, model.pointer, model.vocab, model.metadata)


def vectors(context: Context, n_out: int) -> pooled.Pooled:
    """Return the calls of a context that was made with a pooling."""
    return pooled.Pooled(ll, context, n_out)


def chain(samplers: Sequence[Sampler], vocab: object | None = None) -> Chain:
    """Build a chain; `dry` needs Model.vocab. ValueError for what would abort in C."""
    return Chain(ll, samplers, vocab)


def batch_struct(
    token: Tokens,
    pos: Tokens,
    n_seq_id: Tokens,
    seq_id: NDArray[np.uint64],
    output: NDArray[np.int8],
) -> ll.llama_batch:
    """Return a llama_batch that points into these arrays; the caller keeps them alive.

    ValueError unless each row has exactly one sequence, for good: none crashes, two are never
    meant.
    """
    if n_seq_id.flags.writeable or (n_seq_id != 1).any():
        raise ValueError("n_seq_id must be ones that nobody can change")
    kinds = dict(ll.llama_batch._fields_)
    return ll.llama_batch(
        n_tokens=0,
        token=token.ctypes.data_as(kinds["token"]),
        embd=None,
        pos=pos.ctypes.data_as(kinds["pos"]),
        n_seq_id=n_seq_id.ctypes.data_as(kinds["n_seq_id"]),
        seq_id=seq_id.ctypes.data_as(kinds["seq_id"]),
        logits=output.ctypes.data_as(kinds["logits"]),
    )


def version() -> str:
    """The installed llama-cpp-python."""
    return str(ll.__version__)


def gpu_offload() -> bool:
    """Whether this build can put layers on an accelerator."""
    return bool(ll.llama_supports_gpu_offload())


def backends() -> list[str]:
    """Names of the devices ggml sees, the CPU among them; empty if they cannot be listed."""
    _init_backends()
    library = ll.llama_cpp._lib
    try:
        count, get, name = (
            getattr(library, f"ggml_backend_dev_{what}") for what in ("count", "get", "name")
        )
    except AttributeError:
        return []
    count.restype, get.restype, name.restype = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_char_p
    get.argtypes, name.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    return [name(get(i)).decode() for i in range(count())]


@contextmanager
def opened(
    model_options: ModelOptions, context_options: ContextOptions, log: Log
) -> Iterator[tuple[Model, Context]]:
    """Load a model with a context and free both at the end."""
    model = Model(model_options, log)
    try:
        context = Context(model, context_options, log)
        try:
            yield model, context
        finally:
            context.close()
    finally:
        model.close()


def capture_log() -> Log:
    """Send llama.cpp's log of this process into a fresh `Log` instead of stderr."""
    log = Log()

    def on_line(level: int, text: bytes | None, _data: object) -> None:
        log.add(level, text)

    callback = ll.llama_log_callback(on_line)
    ll.llama_log_set(callback, None)
    # C holds only the address, and holds it for ever: the last callback must never be freed.
    _log_callback[:] = [callback]
    return log


_log_callback: list[object] = []


def _init_backends() -> None:
    ll.llama_backend_init()
