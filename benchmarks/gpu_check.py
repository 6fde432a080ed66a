"""All that CPUs can't show, on one GPU in under ten minutes: is it right, which kernels are taken, how fast, how much memory.

    python benchmarks/gpu_check.py --device cuda --out gpu        one table, and gpu/gpu_check.json
    python benchmarks/gpu_check.py --device cpu                   the same with small sizes, so that it can't rot
    python benchmarks/gpu_check.py --device cuda --only attention training

On a GPU each group runs in a process of its own, so that one that fails or hangs stops no other. The exit code is 1 where a result is wrong or
a group fails, not where it is slow. Models have random weights in the shape of Qwen3-1.7B; tokens are random too, lengths as instruction rows have them.

On a machine without a network: where there is one, for that machine's Python (PY, 3.12 for example) and beside its own torch,

    python -m pip download -d wheels --only-binary=:all: --python-version PY --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \\
        --no-deps -c constraints.txt transformers tokenizers huggingface-hub safetensors regex peft accelerate pydantic pydantic-core polars \\
        polars-runtime-32 xxhash rapidfuzz psutil rich typer annotated-types typing-inspection bitsandbytes gguf trl datasets pyarrow

carry the folder and the project over, and `pip install --no-index --no-deps wheels/*.whl`; what is there already needs no wheel. Without bitsandbytes
the rows of 4 bits say so, without trl those beside it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from posttrain.artifacts import StageDir, read_json
from posttrain.encode.preferences import FeedbackTokens, PairTokens
from posttrain.encode.segments import Segments
from posttrain.model import hardware
from posttrain.model.config import FullWeights, LoraAdapter, Shard
from posttrain.objectives import DpoObjective, Objective, SftObjective
from posttrain.parallel.joined import joined
from posttrain.parallel.peers import ALONE, Peers
from posttrain.train import loop
from posttrain.train.config import TrainSettings
from posttrain.train.reference import ReferenceLogps, sequence_key
from posttrain.train.tasks import StepContext, Task, Unit, make_task
from posttrain.types import Tokens

SECONDS, GROUP_SECONDS = 560, 270
"""No group begins after the first, or takes longer than the second."""
OBJECTIVES: tuple[type[Any], ...] = get_args(get_args(Objective)[0])
EXACT, TF32, ROUGH = 1e-4, 2e-2, 0.1
"""Largest relative difference of a gradient from the CPU's in fp32: computed in fp32, in fp32 with products in TF32, in bf16."""
SMALL = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "vocab_size": 997}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
LENGTHS = (700, 390, 177, 560)
"""Of rows, in two micro-batches: long enough for the kernels of long passes (`packed_kernels.SMALL`)."""
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True)
class Sizes:
    """What is measured: the model's shape, rows and their lengths, tokens at once, prompts and new tokens."""

    model: Mapping[str, Any]
    rows: int
    length: int
    longest: int
    at_once: int
    prompts: int
    new: int
    dtype: str


LARGE = Sizes(
    model={
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    rows=256,
    length=400,
    longest=1024,
    at_once=8192,
    prompts=64,
    new=128,
    dtype="bf16",
)
TINY = Sizes(model=SMALL | HEADS, rows=8, length=60, longest=128, at_once=256, prompts=4, new=8, dtype="fp32")
BATCH, PER_DEVICE = 16, 8
"""Rows of a step, and of a padded micro-batch of the peer."""


@dataclass(frozen=True)
class Row:
    """One line of the table. ``ok``: None where nothing can be wrong."""

    what: str
    value: float | None = None
    unit: str = ""
    beside: float | None = None
    ok: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Check:
    """Where it runs, and where its models and files are."""

    device: torch.device
    folder: Path
    sizes: Sizes = field(default=TINY)

    def model(self, kind: str = "qwen3", shape: Mapping[str, Any] | None = None) -> Path:
        """A folder with random weights and a tokenizer of as many words, written once."""
        folder = self.folder / ("large" if shape is None else kind)
        if not folder.exists():
            _write_model(folder, kind, self.sizes.model if shape is None else shape, self.device)
        return folder


def _write_model(folder: Path, kind: str, shape: Mapping[str, Any], device: torch.device) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    config = AutoConfig.for_model(kind, **{**shape, **SPECIAL})
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{n}": n for n in range(3, shape["vocab_size"])}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)


# ---- rows ------------------------------------------------------------------------------------------------------------


def example(length: int, seed: int, prompt: int, vocabulary: int, shared: int = 20) -> Tokens:
    """Random tokens, supervised behind the prompt; the first ``shared`` are the same for all, those of the prompt for both sides of a pair."""
    ids_T = np.random.default_rng([seed, 1]).integers(3, vocabulary, length).astype(np.int32)
    ids_T[:prompt] = np.random.default_rng([seed // 2, 2]).integers(3, vocabulary, prompt)[:length]
    ids_T[:shared] = np.random.default_rng(0).integers(3, vocabulary, shared)[:length]
    weights_T = np.ones(length, np.float32)
    weights_T[:prompt] = 0.0
    return Tokens(ids_T, weights_T, f"row-{seed}")


def units_of(objective: Any, lengths: Sequence[int], vocabulary: int) -> list[Unit]:
    """A unit of the kind that an objective learns from for each length."""
    if objective.row_kind == "conversations":
        return [example(n, 2 * k, max(2, n // 3), vocabulary) for k, n in enumerate(lengths)]
    pairs = []
    for k, n in enumerate(lengths):
        prompt = max(2, n // 3)
        chosen, rejected = (example(n + 3 * side, 2 * k + side, prompt, vocabulary) for side in (0, 1))
        pairs.append(PairTokens(chosen, rejected, f"row-{k}", k / 4))
    if objective.row_kind == "pairs":
        return list(pairs)
    return [FeedbackTokens(pair.chosen if k % 2 else pair.rejected, bool(k % 2)) for k, pair in enumerate(pairs)]


def task_of(objective: Any, units: Sequence[Unit]) -> Task:
    """The task of an objective; every token of the reference has the log-probability -5."""
    task = make_task(objective, pad_id=0, others=units)
    sequences = [s for unit in units for s in task.sequences(unit)] + task.beside(units)
    known = {sequence_key(s): np.full(s.supervised, -5.0, np.float32) for s in sequences}
    return make_task(objective, ReferenceLogps(known), 0, units)


def gradients(
    trainee: loop.Trainee, task: Task, groups: Sequence[Sequence[Unit]], context: StepContext
) -> list[Tensor]:
    """The step's loss and the gradients of all that is trained, after micro-batches of these units."""
    loss = torch.zeros((), device=trainee.device)
    trainee.model.zero_grad()
    for group in groups:
        torch.manual_seed(0)
        given = loop._compute(trainee, task, group, context).given
        share = task.objective.loss(*given.arguments).share
        share.backward()
        loss = loss + share.detach()
    return [loss, *(p.grad for p in trainee.trained.values() if p.grad is not None)]


def apart(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The larger of the relative differences of the loss and of the gradient, by the 2-norm of all its tensors together."""

    def relative(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
        a, b = (torch.cat([x.detach().cpu().double().flatten() for x in some]) for some in (one, other))
        return float((a - b).norm() / b.norm())

    return max(relative(found[:1], expected[:1]), relative(found[1:], expected[1:]))


# ---- groups ----------------------------------------------------------------------------------------------------------


def about(check: Check) -> Iterator[Row]:
    """The device, and the peak of its products."""
    name, memory = str(check.device), hardware.free_memory(check.device)
    if check.device.type == "cuda":
        properties = torch.cuda.get_device_properties(check.device)
        name, memory = properties.name, properties.total_memory
    yield Row("device", memory / 1e9, "GB", note=f"{name}; torch {torch.__version__}, CUDA {torch.version.cuda}")
    for dtype in (torch.bfloat16, torch.float32):
        peak = hardware.matmul_flops(dtype, check.device)
        yield Row("peak of a product", peak / 1e12, "TFLOP/s", note=hardware.precision(dtype, check.device))


def attention(check: Check) -> Iterator[Row]:
    """Every kernel that takes a setting, beside one call a segment; that one beside the CPU in fp32."""
    from posttrain.model.packed_kernels import KERNELS, Setting, difference, fastest, probe, tolerance, tried

    large = check.device.type != "cpu"
    settings = [(torch.bfloat16, False, None), (torch.bfloat16, True, None), (torch.bfloat16, False, 50.0)]
    for dtype, windowed, softcap in [*settings, (torch.float32, False, None)]:
        heads, sizes = ((16, 8), (128, 128)) if large else ((4, 2), (16, 16))
        setting = Setting(tuple(KERNELS), check.device, dtype, heads, sizes, windowed, softcap)
        inputs, request = probe(setting)
        words = f"{hardware.precision(dtype, check.device)}{', window' * windowed}{', cap' if softcap else ''}"
        exact = tried("sdpa", tuple(x.detach().cpu().float() for x in inputs), request, 0)[0]  # type: ignore[arg-type]
        own, least = tried("sdpa", inputs, request)
        off = difference([x.cpu() for x in own], exact)
        yield Row(
            f"sdpa, {words}", least * 1e3, "ms", ok=off <= tolerance(dtype), note=f"{off:.1g} from the CPU in fp32"
        )
        names = [name for name, kernel in KERNELS.items() if kernel.takes(inputs, request)]
        for name in names[:-1]:
            found, seconds = tried(name, inputs, request)
            off = difference(found, own)
            yield Row(
                f"{name}, {words}", seconds * 1e3, "ms", least * 1e3, off <= tolerance(dtype), f"{off:.1g} from sdpa"
            )
        yield Row(f"taken, {words}", note=fastest(setting._replace(names=tuple(names))))


def correctness(check: Check) -> Iterator[Row]:
    """Loss and gradient of a step of every objective, beside the CPU in fp32."""
    shape = SMALL | HEADS
    gemma = shape | {"query_pre_attn_scalar": 64, "sliding_window": 200, "attn_logit_softcapping": 50.0}
    lora, nf4 = LoraAdapter(rank=8), LoraAdapter(rank=8, quantize="nf4")
    cases: list[tuple[str, Any, Any, str, Mapping[str, Any]]] = [
        (kind().name, kind(), lora, "qwen3", shape) for kind in OBJECTIVES
    ]
    cases += [("sft, all weights", SftObjective(), FullWeights(), "qwen3", shape)]
    cases += [("sft, Gemma 2 (cap, window)", SftObjective(), lora, "gemma2", gemma)]
    if find_spec("bitsandbytes") is None:
        yield Row("sft, 4 bits", note="bitsandbytes is not installed")
    else:
        cases += [("sft, 4 bits", SftObjective(), nf4, "qwen3", shape)]
    for words, objective, adapter, kind, shape in cases:
        folder, units = check.model(kind, shape), units_of(objective, LENGTHS, shape["vocab_size"])
        task, found = task_of(objective, units), {}
        for device, dtype in (("cpu", "fp32"), (str(check.device), "fp32"), (str(check.device), "bf16")):
            settings = TrainSettings(objective=objective, adapter=adapter, dtype=dtype, device=device)  # type: ignore[arg-type]
            if kind == "gemma2" and (device, dtype) == ("cuda", "fp32"):
                continue  # each type of it is a minute of compiling flex attention
            trainee = loop.prepare_model(settings, folder, None, seed=0)
            _spread(trainee)
            context = loop.step_context(trainee, task, units, 1024)
            one = gradients(trainee, task, (units[:2], units[2:]), context)
            exact = found.setdefault("exact", one)
            if one is exact:
                continue
            off = apart(one, exact)
            rounds = "TF32" in hardware.precision(torch.float32, check.device)
            limit = ROUGH if dtype == "bf16" else TF32 if rounds else EXACT
            yield Row(
                f"{words}, {dtype}", off, "relative", limit, off <= limit, "loss and gradient from the CPU in fp32"
            )


@torch.no_grad()
def _spread(trainee: loop.Trainee) -> None:
    """Small random numbers in every B of an adapter: with zeros there would be no gradient of A."""
    for number, (name, parameter) in enumerate(trainee.trained.items()):
        if ".lora_B." in name:
            generator = torch.Generator().manual_seed(number)
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


def _lengths(sizes: Sizes, rows: int) -> list[int]:
    drawn = np.random.default_rng(0).lognormal(np.log(sizes.length), 0.5, rows)
    return [int(n) for n in np.clip(drawn, 24, sizes.longest - 8)]


WAYS: dict[str, tuple[Any, Any]] = {
    "SFT, LoRA": (SftObjective(), LoraAdapter()),
    "DPO, LoRA": (DpoObjective(), LoraAdapter()),
    "SFT, QLoRA": (SftObjective(), LoraAdapter(quantize="nf4")),
}


def training(check: Check) -> Iterator[Row]:
    """Whole stages: tokens a second, memory, and the plan beside the memory."""
    for words, (objective, adapter) in WAYS.items():
        if adapter.quantize and find_spec("bitsandbytes") is None:
            yield Row(words, note="bitsandbytes is not installed")
            continue
        result, memory, waited = _stage(check, objective, adapter)
        seconds = result["training_seconds"] + waited
        share = result["matmul_share"]
        note = f"median step {result['tokens_per_second']:,.0f}"
        note += "" if share is None else f", {share:.0%} of the peak"
        note += f", {waited:.1f} s of the reference counted" if waited else ""
        yield Row(words, result["tokens"] / seconds, "tokens/s", note=note)
        planned, measured = memory["planned"]["peak_bytes"], memory["measured"]["peak_memory_bytes"]
        yield Row(f"{words}: memory", measured / 1e9, "GB", planned / 1e9, note="beside the plan")


def _stage(
    check: Check, objective: Any, adapter: Any, shard: Shard | None = None, peers: Peers = ALONE
) -> tuple[dict[str, Any], dict[str, Any], float]:
    """A stage's result with its gradient norms, its memory.json, and the seconds of the reference's log-probabilities."""
    sizes, times = check.sizes, list[float]()
    rows = sizes.rows if objective.row_kind == "conversations" else sizes.rows // 2
    units = units_of(objective, _lengths(sizes, rows), sizes.model["vocab_size"])
    settings = TrainSettings(
        objective=objective,
        adapter=adapter,
        batch_size=BATCH if objective.row_kind == "conversations" else BATCH // 2,
        micro_batch_tokens=sizes.at_once,
        max_length=sizes.longest,
        dtype=sizes.dtype,  # type: ignore[arg-type]
        device=str(check.device),
        shard=shard,
    )
    hardware.reset_peak_memory(check.device)
    with tempfile.TemporaryDirectory(dir=check.folder) as folder:
        result = loop.train(
            settings,
            loop.TrainInputs(check.model(), units),
            StageDir(Path(folder)),
            seed=0,
            digest="gpu_check",
            on_progress=lambda what, done, total: times.append(time.perf_counter()),
            peers=peers,
        )
        if not peers.leads:
            return {}, {}, 0.0
        result["grad_norms"] = [
            record["grad_norm"] for record in StageDir(Path(folder)).metrics() if "grad_norm" in record
        ]
        return result, read_json(Path(folder, "memory.json")), times[-1] - times[0] if times else 0.0


def peer(check: Check) -> Iterator[Row]:
    """TRL on the same model and rows, padded, without gradient checkpointing, as its trainers are used."""
    if find_spec("trl") is None:
        yield Row("TRL", note="trl not installed")
        return
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    sizes, folder = check.sizes, check.model()
    cuda = check.device.type == "cuda"
    for words, trainer, options in (
        ("SFT, LoRA", SFTTrainer, {"learning_rate": 1e-4}),
        ("DPO, LoRA", DPOTrainer, {"learning_rate": 5e-6, "beta": 0.1}),
    ):
        objective = WAYS[words][0]
        pairs = objective.row_kind == "pairs"
        units: Any = units_of(
            objective, _lengths(sizes, sizes.rows // 2 if pairs else sizes.rows), sizes.model["vocab_size"]
        )
        per_device, configured = PER_DEVICE // 2 if pairs else PER_DEVICE, DPOConfig if pairs else SFTConfig
        arguments = configured(
            output_dir=str(check.folder / "trl"),
            per_device_train_batch_size=per_device,
            gradient_accumulation_steps=BATCH // PER_DEVICE,
            num_train_epochs=1,
            max_length=sizes.longest,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            bf16=cuda,
            use_cpu=not cuda,
            gradient_checkpointing=False,
            lr_scheduler_type="constant",
            **options,
        )
        hardware.reset_peak_memory(check.device)
        run = trainer(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=hardware.DTYPES[sizes.dtype]),
            args=arguments,
            train_dataset=Dataset.from_list([_as_text(unit) for unit in units]),
            processing_class=AutoTokenizer.from_pretrained(folder),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        )
        seconds = run.train().metrics["train_runtime"]
        tokens = sum(len(s) for unit in units for s in ((unit.chosen, unit.rejected) if pairs else (unit,)))
        yield Row(
            f"TRL {words}", tokens / seconds, "tokens/s", note="padded, no checkpointing; compare with the row above"
        )
        yield Row(f"TRL {words}: memory", hardware.peak_memory(check.device) / 1e9, "GB")
        del run
        gc.collect()


def _as_text(unit: Any) -> dict[str, str]:
    """The row in words, a word a token."""

    def words(ids: Any) -> str:
        return " ".join(f"w{n}" for n in ids)

    one = unit.chosen if isinstance(unit, PairTokens) else unit
    prompt = int(np.flatnonzero(one.weights_T)[0])
    asked = {"prompt": words(one.ids_T[:prompt]) + " "}
    if isinstance(unit, PairTokens):
        return asked | {side: words(getattr(unit, side).ids_T[prompt:]) for side in ("chosen", "rejected")}
    return asked | {"completion": words(one.ids_T[prompt:])}


def generation(check: Check) -> Iterator[Row]:
    """Greedy replies of one length: tokens a second beside transformers' own, and in fp32 the CPU's replies."""
    from posttrain.generate.decode import decode
    from posttrain.generate.engine import Sampling
    from posttrain.model.adapters import frozen_model

    def replies(
        folder: Path, dtype: torch.dtype, device: torch.device, ids: list[Any], new: int
    ) -> tuple[list[list[int]], float]:
        model = frozen_model(folder, None, dtype, device)
        found: list[list[int]] = [[] for _ in ids]
        for _ in range(2):  # the first time ways are proven and kernels tried
            found = [[] for _ in ids]
            begin = time.perf_counter()
            for one in decode(model, ids, [], [Sampling(max_tokens=new)] * len(ids)):
                found[one.prompt].append(one.token)
        return found, time.perf_counter() - begin

    sizes, dtype = check.sizes, hardware.DTYPES[check.sizes.dtype]
    shape = SMALL | HEADS
    few = [np.arange(3, 3 + n, dtype=np.int32) for n in (9, 40, 200)]
    own, cpu = (
        replies(check.model("qwen3", shape), torch.float32, device, few, 16)[0]
        for device in (check.device, torch.device("cpu"))
    )
    same = sum(a == b for a, b in zip(own, cpu, strict=True))
    yield Row("greedy replies equal to the CPU's, fp32", same, f"of {len(few)}", ok=same == len(few))
    lengths = np.random.default_rng(0).integers(16, 96, sizes.prompts)
    ids = [
        np.random.default_rng(k).integers(3, sizes.model["vocab_size"], n).astype(np.int32)
        for k, n in enumerate(lengths)
    ]
    found, seconds = replies(check.model(), dtype, check.device, ids, sizes.new)
    tokens = sum(map(len, found))
    peer_seconds = _transformers_generate(check, ids)
    yield Row(
        f"generation, {len(ids)} at once",
        tokens / seconds,
        "tokens/s",
        tokens / peer_seconds,
        note="beside transformers' generate",
    )


def _transformers_generate(check: Check, ids: Sequence[Any]) -> float:
    """Seconds of transformers' generate over one left-padded batch, the second time."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(check.model(), dtype=hardware.DTYPES[check.sizes.dtype]).to(
        check.device
    )
    longest = max(map(len, ids))
    batch = torch.tensor([[0] * (longest - len(x)) + x.tolist() for x in ids], device=check.device)
    options = {"max_new_tokens": check.sizes.new, "min_new_tokens": check.sizes.new, "do_sample": False}
    begin = 0.0
    for _ in range(2):
        begin = time.perf_counter()
        model.generate(input_ids=batch, attention_mask=(batch != 0).long(), pad_token_id=0, **options)
        hardware.wait_for(check.device)
    return time.perf_counter() - begin


def compiled(check: Check) -> Iterator[Row]:
    """One decoder layer with an adapter, forward and backward: our hot path and PEFT's code, each as it is and compiled."""
    from posttrain.model import fused
    from posttrain.model.forward import body

    settings = TrainSettings(dtype=check.sizes.dtype, device=str(check.device))  # type: ignore[arg-type]
    trainee = loop.prepare_model(settings, check.model(), None, seed=0)
    decoder: Any = body(trainee.model)
    layer, tokens = decoder.layers[len(decoder.layers) // 2], min(4096, 4 * check.sizes.at_once)
    segments = Segments([tokens // 8] * 8)
    hidden_1TD = torch.randn(1, tokens, decoder.config.hidden_size, device=check.device).to(trainee.compute_dtype)
    positions_1T = hardware.to_device(segments.positions, check.device)[None]
    rotation = decoder.rotary_emb(hidden_1TD, positions_1T)

    def once(forward: Callable[..., Any]) -> float:
        leaf = hidden_1TD.detach().requires_grad_()
        hardware.wait_for(check.device)
        begin = time.perf_counter()
        forward(leaf, position_embeddings=rotation, segments=segments).square().mean().backward()
        hardware.wait_for(check.device)
        return time.perf_counter() - begin

    backend = "inductor" if check.device.type != "cpu" else "aot_eager"  # minutes of a C++ compiler
    plain = None
    for words, change in (("hot path", lambda: None), ("PEFT's code", lambda: fused.unfuse(trainee.model))):
        change()
        for how, forward in (("", layer), (", compiled", torch.compile(layer, backend=backend))):
            first = once(forward)
            times = [once(forward) for _ in range(7)]
            plain = plain or median(times)
            yield Row(
                f"layer, {words}{how}", median(times) * 1e3, "ms", plain * 1e3, note=f"the first time {first:.1f} s"
            )


SHARED: dict[str, tuple[Any, Any, Shard | None]] = {
    "SFT, LoRA": (SftObjective(), LoraAdapter(), None),
    "DPO, LoRA": (DpoObjective(), LoraAdapter(), None),
    "SFT, all weights": (SftObjective(), FullWeights(), None),
    "SFT, all weights, divided": (SftObjective(), FullWeights(), Shard()),
}


def several(check: Check) -> Iterator[Row]:
    """Stages shared by all devices of this machine: gradient norms beside those of one, with small models in fp32, and tokens a second with large ones."""
    count = torch.cuda.device_count() if check.device.type == "cuda" else 2
    if count < 2:
        yield Row("several devices", note="there is one")
        return
    for sizes in (TINY,) if check.sizes is TINY else (TINY, check.sizes):
        folder = check.folder / ("tiny" if sizes is TINY else "whole")
        folder.mkdir(exist_ok=True)
        own = Check(check.device, folder, sizes)
        own.model()  # written once, before several processes want it
        command = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(count),
            __file__,
            "--only",
            "several",
        ]
        command += ["--device", str(check.device), "--here", str(folder)] + (["--tiny"] if sizes is TINY else [])
        ended = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, check=False, timeout=GROUP_SECONDS
        )
        if ended.returncode:
            yield Row("several devices", ok=False, note=(ended.stderr.strip().splitlines() or [""])[-1])
            return
        found = read_json(folder / "several.json")
        for words, (objective, adapter, _) in SHARED.items():
            if sizes is TINY:
                result, _, _ = _stage(own, objective, adapter)
                norms = np.array([found[words]["grad_norms"], result["grad_norms"]])
                far = float(np.abs(norms[0] / norms[1] - 1).max())
                yield Row(f"{words}, {count} devices: norms apart", far, ok=far < EXACT)
            else:
                yield Row(f"{words}, {count} devices", found[words]["tokens_per_second"], "tokens/s")


def _as_rank(check: Check) -> None:
    """Be one of several processes."""
    peers = joined()
    found = {words: _stage(check, *way, peers=peers)[0] for words, way in SHARED.items()}
    if peers.leads:
        (check.folder / "several.json").write_text(json.dumps(found))


GROUPS: dict[str, Callable[[Check], Iterable[Row]]] = {
    "device": about,
    "attention": attention,
    "correctness": correctness,
    "training": training,
    "peer": peer,
    "generation": generation,
    "compiled": compiled,
    "several": several,
}


# ---- one table -------------------------------------------------------------------------------------------------------


def group_rows(name: str, check: Check) -> list[Row]:
    """The rows of a group in this process; an error is the last of them."""
    rows = []
    try:
        for row in GROUPS[name](check):
            rows.append(row)
            hardware.return_freed_memory()
    except Exception as error:
        rows.append(
            Row(name, ok=False, note=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        )
    return rows


def in_its_own_process(name: str, device: str, folder: str) -> list[Row]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--device", device, "--here", folder, "--only", name]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=GROUP_SECONDS)
        return [Row(**row) for row in json.loads(ended.stdout.splitlines()[-1])]
    except subprocess.TimeoutExpired:
        return [Row(name, ok=False, note=f"not done after {GROUP_SECONDS} s")]
    except (IndexError, ValueError):
        last = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
        return [Row(name, ok=False, note=f"the process ended: {last}")]


def shown(found: Mapping[str, Sequence[Row]], title: str) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "", "", "beside", "", "", title=title)
    for rows in found.values():
        table.add_section()
        for row in rows:
            numbers = ["" if x is None else f"{x:,.4g}" for x in (row.value, row.beside)]
            mark = {True: "ok", False: "WRONG", None: ""}[row.ok]
            table.add_row(row.what, numbers[0], row.unit, numbers[1], mark, row.note)
    Console(width=150).print(table)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="folder for gpu_check.json")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--here", help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = hardware.resolve_device(options.device)
    if options.here:
        check = Check(device, Path(options.here), TINY if options.tiny or device.type == "cpu" else LARGE)
        if "RANK" in os.environ:
            _as_rank(check)
            return
        print(json.dumps([asdict(row) for row in group_rows(options.only[0], check)]))
        return
    begin, found = time.monotonic(), dict[str, list[Row]]()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            if time.monotonic() - begin > SECONDS:
                found[name] = [Row(name, note="not begun: no time is left")]
            elif device.type == "cpu":
                found[name] = group_rows(name, Check(device, Path(folder)))
            else:
                found[name] = in_its_own_process(name, options.device, folder)
    shown(found, f"posttrain on {device}, {time.monotonic() - begin:.0f} s")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        record = {name: [asdict(row) for row in rows] for name, rows in found.items()}
        (options.out / "gpu_check.json").write_text(json.dumps(record, indent=1))
    sys.exit(any(row.ok is False for rows in found.values() for row in rows))


if __name__ == "__main__":
    main()
