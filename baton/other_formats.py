"""What to do about a model directory whose files are in formats that are not read: the end of an error's line."""

from pathlib import Path

ADAPTER = "adapter_config.json"
LFS_POINTER = "version https://git-lfs"
_WEIGHTS = (
    (ADAPTER, "belongs to a LoRA adapter: merge it into its base model (PEFT's merge_and_unload) and serve the result"),
    ("*.gguf", "is not read: use the safetensors that it was made from"),
    ("consolidated*", "is not read: use the checkpoint in the layout of transformers, which has a model.safetensors"),
    ("*.bin", "is not read: convert it with from_pretrained and save_pretrained of transformers' AutoModelForCausalLM"),
)
_CONVERTED = "is not read: convert it with from_pretrained and save_pretrained of transformers' AutoTokenizer"
_TOKENIZERS = tuple((name, _CONVERTED) for name in ("tokenizer.model", "tekken.json", "*.tiktoken", "vocab.json"))
_NOTHING = "a Hugging Face model directory is needed"


def about_weights(model_dir: Path) -> str:
    """Say what the directory holds instead of `config.json` or safetensors, and what to do."""
    return _about(model_dir, _WEIGHTS)


def about_tokenizer(model_dir: Path) -> str:
    """Say what the directory holds instead of `tokenizer.json`, and what to do."""
    return _about(model_dir, _TOKENIZERS)


def about_pointer(path: Path) -> str:
    """Say what to do if the file is the pointer that a clone without Git LFS leaves in its place; else ""."""
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER.encode()
    except OSError:
        return ""
    return (
        f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in {path.parent}" if is_pointer else ""
    )


def _about(model_dir: Path, formats: tuple[tuple[str, str], ...]) -> str:
    for pattern, advice in formats:
        found = min(model_dir.glob(pattern), default=None)
        if found is not None:
            return f"{found.name} {advice}"
    return _NOTHING
