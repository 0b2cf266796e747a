"""How a model card says that an adapter is loaded, by what it was trained for."""

from __future__ import annotations

LOADING = """\
```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = AutoPeftModelForCausalLM.from_pretrained("path/to/this/folder")
chat = [{"role": "user", "content": "Hello"}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0]))
```

Or with rankwise, beside the untouched base model:

```
rankwise chat path/to/this/folder --both
```"""
ENCODER_DECODER = """\
```python
from peft import AutoPeftModelForSeq2SeqLM
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = AutoPeftModelForSeq2SeqLM.from_pretrained("path/to/this/folder")
inputs = tokenizer("A text", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0], skip_special_tokens=True))
```

Or with rankwise, beside the untouched base model:

```
rankwise generate path/to/this/folder --prompt "A text" --both
```"""
CLASSIFIER = """\
```python
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
base = AutoModelForSequenceClassification.from_pretrained(
    "path/or/name/of/base", num_labels=OUTPUTS, ignore_mismatched_sizes=True
)
padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
base.config.pad_token_id = padding  # a decoder's head reads the last token that is none of these
model = PeftModel.from_pretrained(base, "path/to/this/folder").eval()
print(model(**tokenizer("A text", return_tensors="pt")).logits)
```

The outputs are in the order of `targets.classes` in `data_report.json`. Or with rankwise, for a file of texts:

```
rankwise predict path/to/this/folder --data texts.csv --out predictions.csv
```"""
POOLED = """\

def pooled(body, args, inputs, outputs):  # what this head reads: the POOLING of all tokens, scaled
    states, real = outputs.last_hidden_state, inputs["attention_mask"][..., None].bool()
    vector = VECTOR
    outputs["pooler_output"] = torch.nn.functional.layer_norm(vector, vector.shape[-1:], eps=1e-12)
    outputs["last_hidden_state"] = outputs["pooler_output"][:, None].expand_as(states)
    return outputs

base.base_model.register_forward_hook(pooled, with_kwargs=True)
"""
VECTORS = {
    "mean": "states.masked_fill(~real, 0).sum(1) / real.sum(1)",
    "max": "states.masked_fill(~real, -torch.inf).amax(1)",
    "cls": "states[:, 0]",
}


def of_texts(pooling: str) -> str:
    """How a classifier of texts is loaded, whose head may read another vector than the model's own code gives it."""
    if pooling == "own":
        return CLASSIFIER
    code = POOLED.replace("POOLING", pooling).replace("VECTOR", VECTORS[pooling])
    evaluated = 'model = PeftModel.from_pretrained(base, "path/to/this/folder").eval()\n'
    return CLASSIFIER.replace("from peft", "import torch\nfrom peft", 1).replace(evaluated, evaluated + code)


TOKEN_CLASSIFIER = CLASSIFIER.replace("ForSequenceClassification", "ForTokenClassification").replace(
    "padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id\n"
    "base.config.pad_token_id = padding  # a decoder's head reads the last token that is none of these\n", ""
).replace("The outputs are", "The outputs of a word are those of its first token,")  # fmt: skip
IMAGE_CLASSIFIER = """\
```python
from peft import PeftModel
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained("path/to/this/folder")
base = AutoModelForImageClassification.from_pretrained(
    "path/or/name/of/base", num_labels=OUTPUTS, ignore_mismatched_sizes=True
)
model = PeftModel.from_pretrained(base, "path/to/this/folder").eval()
print(model(**processor(Image.open("image.jpg").convert("RGB"), return_tensors="pt")).logits)
```

The outputs are in the order of `targets.classes` in `data_report.json`. Or with rankwise, for a folder of images:

```
rankwise predict path/to/this/folder --data images/ --out predictions.csv
```"""
BASE_FIRST = """\
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("path/to/base"), "path/to/this/folder")
```"""
