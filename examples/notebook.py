# %% [markdown]
# # A first fine-tuning in a notebook
# Open this file in an editor that knows `# %%` cells, or run it: `python examples/notebook.py`.

# %% Rows in memory: a list of dicts here; a path, a pandas DataFrame or a datasets.Dataset work the same way.
import rankwise

COLOURS = {"apple": "red", "banana": "yellow", "lime": "green", "plum": "purple", "carrot": "orange"}
rows = [
    {"prompt": f"{question} {thing}?", "completion": f"{colour.upper()}!"}
    for thing, colour in COLOURS.items()
    for question in ("What colour is a", "Tell me the colour of a", "Which colour has a")
]

# %% Train. Progress prints while it runs; every keyword is a setting of docs/configuration.md.
run = rankwise.train(
    model="smollm2-135m", data=rows, run="colours", steps=12, batch_size=4, rank=8, held_out=3, restart=True
)
print(run)

# %% Results and metrics are plain values, and pandas takes the records as they are.
print(run.results["validation_loss_before"], "->", run.results["validation_loss_after"])
print([record["loss"] for record in run.metrics if record["kind"] == "step"][:3])

# %% The losses as a figure, which a notebook shows.
run.plot().savefig("runs/colours/loss.png")

# %% The tuned model and its untouched base.
print("tuned:", run.generate("What colour is a lime?", max_new_tokens=12))
print("base: ", run.generate("What colour is a lime?", max_new_tokens=12, base=True))

# %% Another day, another process: everything is in the run's folder.
again = rankwise.load_run("colours")
print(again.metrics == run.metrics, again.report)
