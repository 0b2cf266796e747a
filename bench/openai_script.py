"""A script as people have it for OpenAI's fine-tuning, which knows nothing of rankwise: where it goes, the environment
says (OPENAI_BASE_URL, OPENAI_API_KEY).

    python bench/openai_script.py rows.jsonl validation.jsonl "A question?"

It prints one JSON object a line: the file, the job, each of its events, the answer of the base and of the new model.
"""

from __future__ import annotations

import json
import sys
import time

from openai import OpenAI

MODEL = "gpt-4o-mini-2024-07-18"


def main() -> None:
    rows, validation, question = sys.argv[1:]
    client, began = OpenAI(), time.time()

    def tell(what: str, **values: object) -> None:
        print(json.dumps({"after": round(time.time() - began, 2), "what": what} | values), flush=True)

    training = client.files.create(file=open(rows, "rb"), purpose="fine-tune")  # noqa: SIM115, PTH123
    apart = client.files.create(file=open(validation, "rb"), purpose="fine-tune")  # noqa: SIM115, PTH123
    tell("uploaded", files=[training.id, apart.id])
    job = client.fine_tuning.jobs.create(
        model=MODEL, training_file=training.id, validation_file=apart.id, suffix="facts", seed=1,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 8}}},
    )  # fmt: skip
    tell("created", job=job.id, status=job.status)
    seen = set[str]()
    while job.status not in ("succeeded", "failed", "cancelled"):
        time.sleep(0.5)
        for event in reversed(client.fine_tuning.jobs.list_events(job.id, limit=100).data):
            if event.id not in seen:
                seen.add(event.id)
                tell("event", message=event.message)
        job = client.fine_tuning.jobs.retrieve(job.id)
    tell("ended", status=job.status, model=job.fine_tuned_model, error=job.error and job.error.message)
    for model in (MODEL, job.fine_tuned_model):
        answer = client.chat.completions.create(
            model=str(model), messages=[{"role": "user", "content": question}], temperature=0, max_tokens=48
        )
        tell("answer", model=model, text=answer.choices[0].message.content)
    results = client.files.content(job.result_files[0]).text.splitlines()
    tell("results", lines=len(results), last=results[-1])


if __name__ == "__main__":
    main()
