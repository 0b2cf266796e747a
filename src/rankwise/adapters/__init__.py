"""From a spec to a changed model, and out again: LoRA on frozen layers, several adapters by name, PEFT's files."""
