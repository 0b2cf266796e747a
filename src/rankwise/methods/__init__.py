"""What learns: LoRA, AdaLoRA or the whole model, from being attached to being saved."""
