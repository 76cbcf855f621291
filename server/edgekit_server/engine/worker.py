"""The engine child: `python -m edgekit_server.engine.worker --fd N`.

N is one end of a socketpair. The first frame on it is the EngineConfig; the child answers Hello
when the model is ready, or Fatal and exits. It exits when the other end closes, so it never
outlives the front.
"""

from __future__ import annotations

import argparse
import faulthandler
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace

from edgekit_server import egress
from edgekit_server.config import EngineConfig
from edgekit_server.engine import (
    embedding,
    kvmode,
    native,
    speculation,
    stores,
    threads,
    vocabulary,
    wire,
)
from edgekit_server.engine.adapters import NO_ADAPTERS
from edgekit_server.engine.checkpoints import Kind
from edgekit_server.engine.constrain import Grammars
from edgekit_server.engine.embed import Embedder
from edgekit_server.engine.intake import Intake, Outbox
from edgekit_server.engine.loop import Loop
from edgekit_server.engine.options import ContextOptions, ModelOptions
from edgekit_server.engine.outlet import Outlet
from edgekit_server.engine.pooled import Pooled
from edgekit_server.engine.pulse import Heart, NodeBeat
from edgekit_server.engine.tokenizer import STACK_BYTES, Tokenizer
from edgekit_server.errors import BadModelError, ModelMissingError, ServerError

SWITCH_INTERVAL_S = 5e-4
"""A C call that returns waits this long at most for the other thread to give the GIL up."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve one model over an inherited socket; return the exit code."""
    egress.follow()
    parser = argparse.ArgumentParser(prog="edgekit_server.engine.worker")
    parser.add_argument("--fd", type=int, required=True, help="inherited socket")
    options = parser.parse_args(arguments)
    # Ctrl-C reaches the whole process group; the front decides when the engine ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with suppress(RuntimeError, OSError, ValueError):  # a standard error that is no file
        faulthandler.enable()  # a crash, or the watchdog's SIGABRT, says where each thread was
    with socket.socket(fileno=options.fd) as sock:
        frame = wire.read_frame(sock)
        if frame is None:
            return 0
        outbox = Outbox(sock)
        try:
            serve(wire.decode_config(frame), sock, outbox)
        except ServerError as error:
            outbox.send(wire.Fatal(error.code, error.message))
            return error.exit_code
        except Exception as error:
            traceback.print_exc()
            outbox.send(wire.Fatal("internal", f"{type(error).__name__}: {error}"))
            return 70
    return 0


def serve(config: EngineConfig, sock: socket.socket, outbox: Outbox) -> None:
    """Load, say Hello, and run until the front stops us. Raises ServerError if it cannot."""
    if not config.model_path.is_file():
        raise ModelMissingError(f"no file {config.model_path}")
    speculation.check(config)
    n_threads, why_threads = threads.default_threads()
    if config.n_threads is not None:
        n_threads, why_threads = config.n_threads, "as configured"
    context_options = ContextOptions(
        n_ctx=config.n_ctx,
        n_seq_max=config.n_seq_max,
        n_batch=config.n_batch,
        n_ubatch=config.n_ubatch,
        n_threads=n_threads,
        type_k=config.type_k,
        type_v=config.type_v,
        flash_attn=config.flash_attn,
        n_outputs_max=speculation.outputs_max(config),
    )
    model_options = ModelOptions(config.model_path, config.n_gpu_layers, config.use_extra_bufts)
    log = native.capture_log()
    with ExitStack() as stack:
        model = stack.enter_context(closing(native.Model(model_options, log)))
        unified, why_unified = kvmode.choose(
            config.kv_mode,
            n_ctx=config.n_ctx,
            n_seq_max=config.n_seq_max,
            n_ctx_train=model.n_ctx_train,
            cuts_anywhere=model.trims_exactly,
        )
        context_options = replace(context_options, kv_unified=unified)
        facts = native.vector_facts(model)
        encoder = embedding.is_encoder(model, facts)
        if model.has_encoder or not model.has_decoder or facts.diffuses:
            raise BadModelError(f"{config.model_path.name} is no decoder-only model")
        if model.n_ctx_train < 1:
            raise BadModelError(f"{config.model_path.name} claims a context of no token")
        shape, why_vectors = embedding.choose(config, facts, model.n_ctx_train, encoder=encoder)
        if encoder:
            context_options = embedding.context_options(shape, context_options)
        adapters = None
        if config.adapters:
            adapters = stack.enter_context(closing(native.adapters(model, config.adapters, log)))
        default_adapters = NO_ADAPTERS if adapters is None else adapters.default
        context = stack.enter_context(closing(native.Context(model, context_options, log)))
        tables = vocabulary.read(model)
        hello = _hello(config, model, context, tables)
        hello = replace(
            hello,
            generates=not encoder,
            n_ctx_seq=shape.n_ctx if encoder else hello.n_ctx_seq,
            vectors=embedding.hello(shape, facts, tables.pieces),
            n_embd=facts.n_embd,
            pads_text=vocabulary.pads_text(model, tables),
            adapters=[wire.AdapterInfo(a.name, str(a.path), a.scale) for a in config.adapters],
        )
        hello.reasons["kv"] = "none: an encoder keeps nothing" if encoder else why_unified
        hello.reasons["vectors"] = why_vectors
        hello.reasons["n_threads"] = f"{n_threads}: {why_threads}"
        if config.flash_attn is None and (said := log.find("Flash Attention")):
            hello.reasons["flash_attn"] = said
        if said := log.find("layers to GPU"):
            hello.reasons["n_gpu_layers"] = said
        hello.reasons["buffers"] = "; ".join(log.buffers())
        speculator = store = None
        if not encoder:
            speculator, hello.reasons["speculation"] = stack.enter_context(
                speculation.opened(config, context_options, model, tables.pieces, log)
            )
            store, hello.reasons["kv_cache"] = stores.build(
                config,
                n_ctx_seq=context.n_ctx_seq,
                unified=unified,
                layout=f"{config.flash_attn} {log.find('Flash Attention')}",
                build=native.version(),
                adapters=default_adapters,
            )
        beat = NodeBeat()
        context.on_node(beat.function, beat.data)

        def vectors() -> Pooled:
            """Make the context for vectors: the only one, or one beside it."""
            if encoder:
                made = context
            else:
                before = len(log.buffers())
                made = native.Context(model, embedding.context_options(shape, context_options), log)
                sizes = "; ".join(log.buffers()[before:])
                sys.stderr.write(f"edgekit-server: memory for vectors: {sizes}\n")
                stack.callback(made.close)
                made.on_node(beat.function, beat.data)
            if adapters is not None:
                adapters.apply(made, adapters.default)
            return native.vectors(made, shape.n_out)

        embedder = Embedder(shape, vectors, outbox.send)
        max_queue = 8 * config.n_seq_max if config.max_queue is None else config.max_queue
        outlet = Outlet(outbox.send)
        loop = Loop(
            context,
            tables,
            outlet,
            reuse=not encoder,
            kind=Kind(unified, model.n_swa, model.is_recurrent),
            store=store,
            max_queue=max_queue,
            itl_target_s=config.itl_target_ms / 1000.0,
            speculator=speculator,
            aside=embedder.turn,
            adapters=adapters,
        )
        tokenizer = Tokenizer(model, tables, hello.n_ctx_seq)
        intake = Intake(
            sock,
            outbox,
            loop,
            tokenizer,
            tables,
            hello.n_ctx_seq,
            deadline_s=config.deadline_s,
            embedder=embedder,
            generates=not encoder,
            n_adapters=len(config.adapters),
            default_adapters=default_adapters,
            gather=outlet.gather,
        )
        threading.stack_size(STACK_BYTES)
        thread = threading.Thread(target=intake.run, name="intake", daemon=True)
        heart = Heart(
            outbox.send,
            beat,
            n_steps=lambda: loop.n_steps + embedder.n_passes,
            n_taken=lambda: intake.n_taken,
            seconds=lambda: (loop.decode_s, loop.busy_s),
            drafts=lambda: (loop.n_drafted, loop.n_accepted),
        )
        outbox.send(hello)
        if not encoder:
            intake.grammars = Grammars(tables, tokenizer.plain)
        thread.start()
        heart.start()
        try:
            loop.run()
        finally:
            heart.stop()
            # The model must not be freed while the intake thread tokenizes with it.
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RD)
            thread.join()
        if intake.failure is not None:
            raise intake.failure


def _hello(
    config: EngineConfig,
    model: native.Model,
    context: native.Context,
    tables: vocabulary.Vocabulary,
) -> wire.Hello:
    n_ctx_seq = min(context.n_ctx_seq, model.n_ctx_train)
    reasons: dict[str, str] = {}
    if n_ctx_seq < context.n_ctx_seq:
        reasons["n_ctx_seq"] = f"{n_ctx_seq}: the model was trained for no more"
    if not model.trims_exactly:
        reasons["prefix_reuse"] = "from checkpoints: this model's memory cannot be cut anywhere"
    return wire.Hello(
        model_id=config.model_id,
        architecture=model.metadata("general.architecture"),
        description=model.description,
        n_params=model.n_params,
        size_bytes=model.size_bytes,
        n_vocab=model.n_vocab,
        n_ctx_train=model.n_ctx_train,
        n_ctx=context.n_ctx,
        n_ctx_seq=n_ctx_seq,
        n_seq_max=context.n_seq_max,
        chat_template=model.chat_template,
        bos=tables.bos,
        eos=tables.eos,
        add_bos=model.add_bos,
        fim=tables.fim,
        control_tokens=tables.control_texts,
        control_ids=tables.control_ids,
        reasons=reasons,
        basename=model.metadata("general.basename"),
    )


if __name__ == "__main__":
    sys.exit(main())
