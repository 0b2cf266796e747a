"""Images beside texts and preferences are refused in a sentence that says what is possible, and what is said works."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kit.vision_models import save_folder
from rankwise.commands.data import check
from rankwise.config.data import DataConfig
from rankwise.config.models import ModelConfig
from rankwise.errors import DataError
from rankwise.rows.sources import open_source

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 40


def examples(path, **said):
    """All of them, or the first problem."""
    spec = DataConfig(path=str(path), **said)
    reading = open_source(spec, spec.all_sources[0])
    found = [example for chunk in reading.chunks() for row in chunk for example in row]
    for _, problem in reading.skipped:
        raise DataError(problem)
    return found


def as_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_images_beside_rows_are_passed_over(tmp_path):
    (tmp_path / "figure.png").write_bytes(PNG)
    as_lines(tmp_path / "train.jsonl", [{"prompt": "a", "completion": "b"}])
    assert len(examples(tmp_path)) == 1


def test_rows_of_several_images_are_refused(tmp_path):
    image = {"bytes": PNG, "path": None}
    pq.write_table(pa.Table.from_pylist([{"images": [image], "label": 3}]), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet:1: contains images in the column 'images'"):
        examples(tmp_path / "rows.parquet")


TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}]


@pytest.mark.parametrize(
    ("row", "field"),
    [({"prompt": "q", "chosen": "good", "rejected": "bad"}, "completion"),
     ({"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": TURNS[1:]}, "completion"),
     ({"instruction": "q", "chosen": "good", "rejected": "bad"}, "output"),
     ({"chosen": TURNS, "rejected": TURNS}, "messages"),
     ({"chosen": "Human: q Assistant: good", "rejected": "Human: q Assistant: bad"}, "text")],
)  # fmt: skip
def test_preference_pairs_are_refused_with_a_way_to_learn_the_chosen_that_works(row, field, tmp_path):
    file = as_lines(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError, match=r"To train on pairs, add --objective preference") as refused:
        examples(file)
    assert f"add --set data.columns.{field}=chosen --ignore-columns rejected." in str(refused.value)
    (example,) = examples(file, columns={field: "chosen"}, ignore_columns="rejected")
    assert "good" in (example.text or example.messages[-1].content)


def test_the_chosen_answer_to_a_question_by_any_name_is_proposed_with_it(tmp_path):
    file = as_lines(tmp_path / "rows.jsonl", [{"post": "What is it now?", "chosen": "good", "rejected": "bad"}])
    with pytest.raises(DataError, match="is a preference pair") as refused:
        examples(file)
    assert 'add --prompt "{post}" --completion "{chosen}" --ignore-columns rejected.' in str(refused.value)
    (example,) = examples(file, prompt="{post}", completion="{chosen}", ignore_columns="rejected")
    assert example.prompt_text == "What is it now?"


def test_rows_with_a_verdict_are_refused(tmp_path):
    rows = [{"prompt": "q", "completion": "a", "label": verdict} for verdict in (True, False)]
    with pytest.raises(DataError, match=r"rows\.jsonl:1: its label is True.*KTO.*keep the rows whose label is true"):
        examples(as_lines(tmp_path / "rows.jsonl", rows))


def test_a_vision_model_refuses_texts(tmp_path):
    model = save_folder("vit", tmp_path / "vit")
    rows = [{"text": f"a text {number}", "label": number % 2} for number in range(4)]
    data = DataConfig(path=str(as_lines(tmp_path / "rows.jsonl", rows)))
    (problem,) = check(data, ModelConfig(name=str(model))).fatal
    assert "rows.jsonl:1: is a row without an image, and the model reads images." in problem
