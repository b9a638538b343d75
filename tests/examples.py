"""Example records of a good run, for tests of whoever reads or tells them. What a test asserts it sets itself."""

from runner.reports import LoadReceipt, RunSummary, ShareReport

RECEIPT = LoadReceipt(
    rung="4bit",
    rung_asked="4bit",
    linear_modules=29,
    quantized_modules=28,
    total_parameters=1_234_567,
    quantized_parameters=1_000_000,
    model_bytes=12_345_678,
    load_peak_bytes=21_500_000,
    steady_bytes=14_300_000,
    compute_dtype="bfloat16",
    device="cpu",
    load_s=2.4,
    probe_loss=5.12345,
    probe_grad_norm=0.3123,
    config_class="LlamaConfig",
    guard_interceptions=1,
)
SHARE = ShareReport(
    trait_type="arithmetic",
    dataset_id=1,
    dataset_name="one-digit addition",
    percentage=80.0,
    rows_available=100,
    rows_used=80,
    trained_tokens=1234,
)
SUMMARY = RunSummary(
    rung="4bit",
    steps=120,
    loss_first=4.8123,
    loss_last=0.0211,
    train_s=15.0,
    duration_s=21.4,
    guard_interceptions=1,
    peak_bytes=826_000_000,
)
