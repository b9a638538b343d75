"""Each line of the table of failures, met for real wherever this machine can bring it about."""

import http.server
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from huggingface_hub import snapshot_download
from huggingface_hub.utils import _http
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from runner.errors import DatasetError, TargetModulesError, TrainingError
from runner.hyperparameters import Lora
from runner.training.loading import failures
from runner.training.loading.base_model import BaseModel
from runner.training.loading.failures import ENDING, FALLING, classify, describe_failure, find_class
from runner.training.loading.quantized import EffectiveRungError, measure_quantization
from runner.training.loading.tokenizer import load_tokenizer
from runner.training.loop.lora import add_lora
from runner.training.stopping import StopSwitch

pytestmark = pytest.mark.training

REPOSITORY = Path(__file__).parents[3]


def raised_by(action: Callable[[], Any]) -> BaseException:
    with pytest.raises(BaseException) as raised:  # noqa: PT011  (the caller looks at what it is)
        action()
    return raised.value


def code_of(error: BaseException | None) -> str | None:
    return error.code if isinstance(error, TrainingError) else None


def weight(kind: type[Linear4bit | Linear8bitLt], **options: Any) -> Any:
    """A weight of 64 by 64, really quantized."""
    make: Any = kind
    layer = make(64, 64, bias=False, **options)
    layer.load_state_dict({"weight": torch.randn(64, 64)})
    return layer.to("cpu").weight


def small_llama() -> Any:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


# --- what another rung may cure -----------------------------------------------------------------------------------

INPUT = torch.randn(2, 64)

SHAPES: dict[str, Callable[[Any], Any]] = {
    "view": lambda held: held.view(8, 8, 64),
    "product": lambda held: functional.linear(INPUT, held),
    "vector": lambda held: held.float().mv(INPUT[0]),
    "sum": lambda held: held + torch.ones(64, 64),
    "split": lambda held: held.split([32, 32]),
    "expand": lambda held: held.expand(64, 64, 64),
}


@pytest.mark.parametrize("access", list(SHAPES))
def test_code_that_reads_the_shape_of_a_4_bit_weight_falls(access: str) -> None:
    error = raised_by(lambda: SHAPES[access](weight(Linear4bit)))
    assert find_class(error).name == "weight-shape"
    assert classify(error) is None


VALUES: dict[str, Callable[[Any], Any]] = {
    "linear": lambda held: functional.linear(INPUT, held),
    "matmul in half": lambda held: INPUT.to(torch.bfloat16) @ held,
    "einsum": lambda held: torch.einsum("bi,oi->bo", INPUT, held),
    "norm": torch.linalg.norm,
    "softmax": lambda held: torch.softmax(held, -1),
}


@pytest.mark.parametrize("access", list(VALUES))
def test_code_that_computes_with_the_raw_values_of_an_8_bit_weight_falls(access: str) -> None:
    error = raised_by(lambda: VALUES[access](weight(Linear8bitLt, has_fp16_weights=False)))
    assert find_class(error).name == "weight-values"
    assert classify(error) is None


def call_dead_library() -> None:
    """What bitsandbytes puts in place of a native library that did not load."""
    library: Any = ErrorHandlerMockBNBNativeLibrary("libcudart.so.12: cannot open shared object file")
    library.cquantize_blockwise_bf16_nf4()


def call_operation_without_kernel() -> None:
    library: Any = torch.library  # torch leaves it bare
    library = library.Library("qlora_test", "FRAGMENT")
    library.define("nowhere(Tensor x) -> Tensor")
    torch.ops.qlora_test.nowhere(INPUT)


def compute_with_a_dict_for_a_config() -> None:
    model = small_llama()
    model.model.config = model.config.to_dict()
    model(input_ids=torch.arange(4).unsqueeze(0))


def pass_an_argument_of_another_version() -> None:
    layer: Any = nn.Linear
    layer(1, 1, _is_hf_initialized=True)


def differentiate_by_what_is_cut_off() -> None:
    source = torch.ones(2, requires_grad=True)
    torch.autograd.grad((source.detach() * torch.ones(2, requires_grad=True)).sum(), source)


def count_an_unquantized_model() -> None:
    measure_quantization(small_llama()).check("4bit")


FALLS = {
    "native-library": call_dead_library,
    "missing-kernel": call_operation_without_kernel,
    "dict-config": compute_with_a_dict_for_a_config,
    "quantizer-refusal": count_an_unquantized_model,
    "version-skew": pass_an_argument_of_another_version,
    "untrainable": differentiate_by_what_is_cut_off,
}


@pytest.mark.parametrize("name", list(FALLS))
def test_what_another_rung_may_cure_falls(name: str) -> None:
    error = raised_by(FALLS[name])
    assert find_class(error).name == name
    assert classify(error) is None


def test_a_quantizer_that_refuses_the_files_falls(tmp_path: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "tiny")
    config: Any = LlamaConfig.from_pretrained(tmp_path / "tiny")
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    settings: Any = BitsAndBytesConfig
    error = raised_by(
        lambda: AutoModelForCausalLM.from_pretrained(
            tmp_path / "tiny", config=config, quantization_config=settings(load_in_4bit=True)
        )
    )
    assert find_class(error).name == "quantizer-refusal"
    assert classify(error) is None


def test_what_nobody_knows_falls_too() -> None:
    error = raised_by(lambda: dict[str, int]()["rope"])
    assert find_class(error) is failures.UNKNOWN
    assert classify(error) is None


# --- what no rung can cure ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**60, dtype=torch.uint8), lambda: bytearray(2**62)])
def test_running_out_of_memory_ends(allocate: Callable[[], Any]) -> None:
    error = raised_by(allocate)
    assert find_class(error).name == "out-of-memory"
    assert code_of(classify(error)) == "out-of-memory"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_running_out_of_memory_ends_in_the_words_of_cuda(error: Exception) -> None:
    assert find_class(error).name == "out-of-memory"
    assert code_of(classify(error)) == "out-of-memory"


def test_a_model_that_would_lie_on_the_disk_is_out_of_memory_in_disguise(tiny_model: Path) -> None:
    settings: Any = BitsAndBytesConfig
    error = raised_by(
        lambda: AutoModelForCausalLM.from_pretrained(
            tiny_model,
            quantization_config=settings(load_in_4bit=True),
            device_map={"model": "cpu", "lm_head": "disk"},
            offload_folder="never written",
        )
    )
    assert find_class(error).name == "dispatched-elsewhere"
    assert code_of(classify(error)) == "out-of-memory"


def test_a_full_disk_ends() -> None:
    def fill() -> None:
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")

    error = raised_by(fill)
    assert find_class(error).name == "disk-full"
    assert code_of(classify(error)) == "disk-full"


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks a machine without a GPU for one")
def test_a_gpu_that_is_not_there_ends() -> None:
    error = raised_by(lambda: torch.empty(1, device="cuda"))
    assert find_class(error).name == "device-lost"
    assert code_of(classify(error)) == "device-failed"


def cut_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:500])


def cut_body(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def scramble_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(b"\x10\0\0\0\0\0\0\0{not json at all" + path.read_bytes()[24:])


@pytest.mark.parametrize("damage", [cut_header, cut_body, scramble_header])
def test_damaged_weights_end(tmp_path: Path, tiny_model: Path, damage: Callable[[Path], None]) -> None:
    shutil.copytree(tiny_model, tmp_path / "tiny")
    damage(tmp_path / "tiny")
    error = raised_by(lambda: load_file(tmp_path / "tiny" / "model.safetensors"))
    assert find_class(error).name == "damaged-weights"
    assert code_of(classify(error)) == "model-corrupt"


def test_weights_of_another_shape_end_in_the_words_of_transformers(tiny_model: Path) -> None:
    config = LlamaConfig.from_pretrained(tiny_model)
    config.intermediate_size = 640
    error = raised_by(lambda: AutoModelForCausalLM.from_pretrained(tiny_model, config=config))
    assert find_class(error).name == "damaged-weights"
    assert code_of(classify(error)) == "model-corrupt"


def test_weights_of_another_shape_end_in_the_words_of_torch() -> None:
    error = raised_by(lambda: nn.Linear(2, 3).load_state_dict({"weight": torch.ones(4, 4), "bias": torch.ones(4)}))
    assert find_class(error).name == "damaged-weights"


@pytest.fixture(scope="module")
def refusing_hub() -> Iterator[str]:
    """A hub on loopback that answers `/<status>/<error code>` with just that."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _, status, code, *_ = self.path.split("/")
            self.send_response(int(status))
            if code != "-":
                self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", "refused")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def ask(url: str) -> None:
    """As the installed hub client does, with whichever library it uses."""
    client: Any = next(vars(_http)[name] for name in ("httpx2", "httpx", "requests") if name in vars(_http))
    _http.hf_raise_for_status(client.get(url))


@pytest.mark.parametrize(
    ("answer", "name", "code"),
    [
        ("403/GatedRepo", "gated", "model-gated"),
        ("401/GatedRepo", "gated", "model-gated"),
        ("401/-", "gated", "model-gated"),
        ("403/-", "gated", "model-gated"),
        ("404/RepoNotFound", "not-found", "model-not-found"),
        ("404/RevisionNotFound", "not-found", "model-not-found"),
        ("404/EntryNotFound", "offline", "model-offline"),
    ],
)
def test_a_refusal_of_the_hub_ends(refusing_hub: str, answer: str, name: str, code: str) -> None:
    error = raised_by(lambda: ask(f"{refusing_hub}/{answer}/resolve"))
    assert find_class(error).name == name
    assert code_of(classify(error)) == code


def test_a_host_without_network_ends(tmp_path: Path) -> None:
    error = raised_by(lambda: snapshot_download("acme/nowhere", cache_dir=tmp_path))
    assert find_class(error).name == "offline"
    assert code_of(classify(error)) == "model-offline"


def test_a_broken_tokenizer_ends_as_itself(tmp_path: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "tiny")
    (tmp_path / "tiny" / "tokenizer.json").write_text("{")
    error = raised_by(lambda: load_tokenizer(BaseModel("tiny", tmp_path / "tiny", None)))
    assert find_class(error).name == "explained"
    assert classify(error) is error
    assert code_of(error) == "tokenizer"


def test_target_modules_that_are_not_there_end_as_themselves() -> None:
    error = raised_by(lambda: add_lora(small_llama(), Lora(target_modules=("no_such_proj",)), seed=1))
    assert isinstance(error, TargetModulesError)
    assert classify(error) is error


def test_a_dataset_error_ends_as_itself() -> None:
    error = DatasetError("no rows", hint="add some")
    assert classify(error) is error


def test_a_stop_ends() -> None:
    switch = StopSwitch()
    switch.set()
    error = raised_by(switch.raise_if_set)
    assert find_class(error).name == "stop-requested"
    assert code_of(classify(error)) == "stop-requested"


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interrupt_ends(interrupt: BaseException) -> None:
    assert code_of(classify(interrupt)) == "stop-requested"


# --- the table itself ---------------------------------------------------------------------------------------------


def test_the_document_lists_every_line_of_the_table() -> None:
    page = (REPOSITORY / "docs" / "LADDER.md").read_text(encoding="utf-8")
    for failure in (*ENDING, *FALLING):
        row = next((line for line in page.splitlines() if line.startswith(f"| `{failure.name}` ")), None)
        assert row is not None, failure.name
        assert f"| {'falls' if failure.falls else 'ends'} |" in row


def test_every_line_of_the_table_has_words_and_evidence() -> None:
    assert all(failure.meaning.endswith((".", "…")) and failure.evidence for failure in (*ENDING, *FALLING))


def test_an_ending_behind_another_error_wins() -> None:
    error = ImportError("could not load the kernel")
    error.__cause__ = torch.OutOfMemoryError("CUDA out of memory")
    assert code_of(classify(error)) == "out-of-memory"


def test_a_chain_that_bites_its_tail_ends() -> None:
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first
    assert classify(first) is None


def test_a_reason_is_the_first_line_without_tokens() -> None:
    failed = describe_failure("4bit", RuntimeError("\n  refused for hf_abcdefghijklmnop  \nand more\n"))
    assert (failed.rung, failed.error_class) == ("4bit", "RuntimeError")
    assert failed.reason == "refused for [redacted]"


def test_a_failed_rung_carries_the_line_of_the_table() -> None:
    failed = describe_failure("4bit", EffectiveRungError("0 of 7 linear modules are 4-bit"))
    assert failed.failure_class == "quantizer-refusal"
    assert failed.meaning.startswith("This rung's quantizer does not take this model")


def test_an_error_without_words_is_called_by_its_class() -> None:
    assert describe_failure("8bit", AssertionError()).reason == "AssertionError"


def test_a_long_reason_is_cut() -> None:
    reason = describe_failure("8bit", RuntimeError("x" * 1000)).reason
    assert len(reason) == 300
    assert reason.endswith("x…")
