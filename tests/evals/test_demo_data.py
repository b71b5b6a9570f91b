"""The demonstration pack and the quick start's training rows: complete, balanced, disjoint."""

import json
import re
import tomllib
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACK = ROOT / "src" / "singalaut" / "evals" / "packs" / "demo"
TRAINING = ROOT / "recipes" / "data" / "quickstart.jsonl"
LANGUAGES = ["en", "id", "km", "lo", "ms", "my", "ta", "th", "tl", "vi", "zh"]
TRAINED = ["sentiment", "causal", "translation-en-xx", "translation-xx-en"]
TASKS = [*TRAINED, "questions", "instructions", "conversations"]
SCRIPTS = {
    "km": "[\u1780-\u17ff\u19e0-\u19ff]",
    "lo": "[\u0e80-\u0eff]",
    "my": "[\u1000-\u109f]",
    "ta": "[\u0b80-\u0bff]",
    "th": "[\u0e00-\u0e7f]",
    "zh": "[\u4e00-\u9fff]",
}
FIELDS = {
    "sentiment": {"id", "text", "label"},
    "causal": {"id", "premise", "question", "choice1", "choice2", "label"},
    "translation-en-xx": {"id", "text", "reference"},
    "translation-xx-en": {"id", "text", "reference"},
    "questions": {"id", "text", "question", "references"},
    "instructions": {"id", "text", "constraints"},
    "conversations": {"id", "category", "turns", "baseline"},
}
NOT_SHOWN = {"id", "label", "reference", "references", "constraints", "category", "baseline"}


def read_rows(file):
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


@cache
def task(name):
    return tomllib.loads((PACK / f"{name}.toml").read_text("utf-8"))


def evaluation():
    """(task name, language, its section, its rows) of the whole pack."""
    for name in TASKS:
        for language, section in task(name)["languages"].items():
            yield name, language, section, read_rows(PACK / section["data"])


@cache
def training():
    """(task name or "chat", language, fields read back from the prompt, user, assistant)."""
    made = []
    for row in read_rows(TRAINING):
        user, assistant = (message["content"] for message in row["messages"])
        language, found = row["language"], []
        for name in TRAINED:
            section = task(name)["languages"].get(language)
            match = section and as_pattern(section["prompt"]).fullmatch(user)
            if match:
                found.append((name, match.groupdict()))
        assert len(found) <= 1, row["id"]
        name, fields = found[0] if found else ("chat", {})
        assert row["id"].startswith(f"train-{name}-{language}-"), row["id"]
        made.append((name, language, fields, user, assistant))
    return made


def as_pattern(prompt):
    """Matches exactly the prompts filled from one template; a field is a part of one line."""
    parts = re.split(r"\{(\w+)\}", prompt)
    texts = map(re.escape, parts[::2])
    names = [*parts[1::2], None]
    return re.compile(
        "".join(
            text + (f"(?P<{name}>[^\\n]+)" if name else "")
            for text, name in zip(texts, names, strict=True)
        )
    )


def normal(sentence):
    """Casefolded, without punctuation, with single spaces."""
    kept = (" " if unicodedata.category(c)[0] in "PZ" else c for c in sentence.casefold())
    return " ".join("".join(kept).split())


def native(name, row):
    """The texts of a row that are in the language of its section."""
    if name == "translation-en-xx":
        return [row["reference"]]
    keys = ("text", "premise", "question", "choice1", "choice2")
    lists = ("references", "turns", "baseline")
    texts = [row[key] for key in keys if key in row]
    return texts + [text for key in lists for text in row.get(key, ())]


def sentences(row):
    keys = row.keys() & {"text", "reference", "premise", "choice1", "choice2"}
    return [row[key] for key in keys] + [*row.get("turns", ()), *row.get("baseline", ())]


def test_every_language_has_its_rows_in_balance():
    ids = []
    for name, language, _, rows in evaluation():
        where = f"{name}.{language}"
        assert all(set(row) == FIELDS[name] for row in rows), where
        values = [text for row in rows for text in (row["id"], *native(name, row))]
        assert all(text.strip() == text != "" for text in values), where
        assert all(row["id"].startswith(f"{name}-{language}-") for row in rows), where
        ids += [row["id"] for row in rows]
        if name == "sentiment":
            labels = Counter(row["label"] for row in rows)
            assert labels == {"positive": 4, "negative": 4}, where
        elif name == "causal":
            cells = Counter((row["question"], row["label"]) for row in rows)
            assert len(cells) == 4 and set(cells.values()) == {2}, where
        else:
            assert len(rows) == (2 if name == "conversations" else 4), where
    assert len(ids) == len(set(ids))
    for name in TASKS:
        expected = set(LANGUAGES) - ({"en"} if name.startswith("translation") else set())
        assert set(task(name)["languages"]) == expected, name
    used = {section["data"] for _, _, section, _ in evaluation()}
    assert used == {f"data/{file.name}" for file in (PACK / "data").iterdir()}


def test_prompts_show_the_tag_the_labels_and_known_fields():
    for name, language, section, rows in evaluation():
        prompt, where = section["prompt"], f"{name}.{language}"
        assert f"\n{section['tag']} X\n" in prompt if "tag" in section else prompt == "{text}", (
            where
        )
        assert all(label in prompt for label in section.get("labels", {}).values()), where
        assert ("labels" in section) == (task(name)["metric"] == "accuracy"), where
        fields = re.findall(r"\{(\w+)\}", prompt)
        shown = {"text" if field == "turns" else field for field in FIELDS[name] - NOT_SHOWN}
        assert set(fields) == shown, where
        assert prompt.count("{") == prompt.count("}") == len(fields) == len(set(fields)), where
        assert all(set(row) == FIELDS[name] for row in rows), where


def test_texts_are_composed_and_in_their_own_script():
    texts = [
        (language, f"{name}.{language}", text)
        for name, language, section, rows in evaluation()
        for text in [section["prompt"], *(text for row in rows for text in native(name, row))]
        if text != "{text}"
    ]
    for name, language, _, user, assistant in training():
        texts.append((language, f"training {name}.{language}", user))
        if name not in {"causal", "translation-xx-en"}:
            texts.append((language, f"training {name}.{language}", assistant))
    for language, where, text in texts:
        scripts = {code for code, script in SCRIPTS.items() if re.search(script, text)}
        assert scripts == {language} & set(SCRIPTS), f"{where}: {text}"
    for file in [TRAINING, *PACK.rglob("*.*")]:
        assert unicodedata.is_normalized("NFC", file.read_text("utf-8")), file


def test_training_rows_are_complete_and_name_their_source():
    rows = read_rows(TRAINING)
    assert len({row["id"] for row in rows}) == len(rows) == 516
    for row in rows:
        assert set(row) == {"id", "language", "source", "licence", "messages"}, row["id"]
        assert (row["source"], row["licence"]) == ("singalaut-demo", "Apache-2.0"), row["id"]
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"], row["id"]
        assert all(m["content"].strip() == m["content"] != "" for m in row["messages"]), row["id"]
    counts = Counter((name, language) for name, language, *_ in training())
    size = {
        "sentiment": 16,
        "causal": 12,
        "translation-en-xx": 6,
        "translation-xx-en": 6,
        "chat": 8,
    }
    assert counts == {
        (name, language): number
        for name, number in size.items()
        for language in LANGUAGES
        if name == "chat" or language in task(name)["languages"]
    }


def test_training_answers_have_the_tag_and_balanced_labels():
    answers = Counter()
    for name, language, fields, _, assistant in training():
        if name == "chat":
            continue
        section = task(name)["languages"][language]
        assert assistant.startswith(section["tag"] + " "), assistant
        answer = assistant.removeprefix(section["tag"] + " ")
        if "labels" in section:
            assert answer in section["labels"].values(), assistant
            answers[name, language, fields.get("question"), answer] += 1
    per_label = {"sentiment": 8, "causal": 3}
    assert all(number == per_label[name] for (name, *_), number in answers.items()), answers
    assert len(answers) == 2 * len(LANGUAGES) + 4 * len(LANGUAGES)


def test_answers_are_in_the_texts_and_instructions_can_be_followed():
    from singalaut.verify.constraints.check import Constraint, validate

    for name, language, _, rows in evaluation():
        if name == "questions":
            for row in rows:
                assert any(text in row["text"] for text in row["references"]), row["id"]
        if name == "instructions":
            for row in rows:
                given = [dict(constraint) for constraint in row["constraints"]]
                validate([Constraint(one.pop("type"), one) for one in given], language)
                for value in (v for one in given for v in one.values()):
                    texts = value if isinstance(value, list) else [str(value)]
                    assert all(text in row["text"] for text in texts), row["id"]


def test_no_sentence_is_in_both_training_and_evaluation():
    trained = set()
    for name, language, fields, user, assistant in training():
        trained.update(map(normal, sentences(fields)))
        if name == "chat":
            trained.update({normal(user), normal(assistant)})
        elif name.startswith("translation"):
            tag = task(name)["languages"][language]["tag"]
            trained.add(normal(assistant.removeprefix(tag)))
    rows = [(name, row) for name, _, _, rows in evaluation() for row in rows]
    evaluated = {normal(text): row["id"] for _, row in rows for text in sentences(row)}
    assert {text: evaluated[text] for text in evaluated.keys() & trained} == {}
