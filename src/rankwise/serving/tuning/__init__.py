"""OpenAI's fine-tuning over this machine's own training: uploaded files, jobs, and the models that come of them."""
