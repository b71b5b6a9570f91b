"""MetricX-24 agrees with its reference implementation on a small random checkpoint."""

from __future__ import annotations

import math
import shutil

import pytest

from singalaut.errors import CheckpointError
from singalaut.evals.metricx import SCORE_TOKEN, MetricX
from singalaut.evals.store import Store

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
TRIPLES = [
    ("The market opens at six.", "Pasar buka pukul enam.", "Pasar dibuka jam enam pagi."),
    ("x", "", "teks"),
    ("A long sentence " * 30, "kalimat panjang " * 25, "kalimat yang panjang " * 25),
    ("hello", "halo", "halo"),
    ("ประโยค", "sentence", "a sentence"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random mT5 of two tiny layers with the whole vocabulary, and a tokenizer of characters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("metricx")
    config = transformers.MT5Config(
        vocab_size=250112,
        d_model=8,
        d_kv=4,
        d_ff=16,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=2,
        tie_word_embeddings=False,
        dropout_rate=0.0,
    )
    torch.manual_seed(0)
    model = transformers.MT5ForConditionalGeneration(config)
    with torch.no_grad():  # every token is heard, and scores lie within the range
        for name, weight in model.named_parameters():
            if name.endswith((".v.weight", ".o.weight")):
                weight.mul_(5)
        start = torch.zeros((1, 1), dtype=torch.long)
        asked = model(
            input_ids=torch.tensor([[40, 50, 60]]),
            decoder_input_ids=start,
            output_hidden_states=True,
        )
        hidden = asked.decoder_hidden_states[-1][0, 0]
        model.lm_head.weight[SCORE_TOKEN] = 12 * hidden / (hidden @ hidden)
    model.save_pretrained(folder, safe_serialization=True)
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    vocabulary |= {chr(code): code for code in range(32, 127)}
    vocabulary |= {chr(code): code for code in range(0x0E01, 0x0E5C)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    end = [("</s>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=end)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def reference(folder, triples, keep_end=False):
    """One example at a time, the whole head, as the reference implementation predicts."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.MT5ForConditionalGeneration.from_pretrained(folder).eval()
    scores = []
    for source, candidate, gold in triples:
        text = f"source: {source} candidate: {candidate} reference: {gold}"
        ids = tokenizer(text, max_length=1536, truncation=True, padding=False)["input_ids"]
        ids = ids if keep_end else ids[:-1]
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones((1, len(ids)), dtype=torch.long),
                decoder_input_ids=torch.zeros((1, 1), dtype=torch.long),
            ).logits
        scores.append(torch.clamp(logits[0, 0, 250089], 0, 25).item())
    return scores


def test_scores_are_those_of_the_reference(checkpoint, tmp_path):
    wanted = reference(checkpoint, TRIPLES)
    assert len({round(score, 3) for score in wanted}) > 2 and 0 < max(wanted) < 25
    scores = MetricX(checkpoint, Store(tmp_path / "s.sqlite")).score(TRIPLES)
    assert scores == pytest.approx(wanted, abs=1e-4)
    other = reference(checkpoint, TRIPLES, keep_end=True)
    assert scores != pytest.approx(other, abs=1e-3)  # the end mark matters


def test_a_score_does_not_depend_on_its_batch(checkpoint, tmp_path):
    together = MetricX(checkpoint, Store(tmp_path / "a.sqlite")).score(TRIPLES)
    alone = [
        MetricX(checkpoint, Store(tmp_path / f"{i}.sqlite")).score([triple])[0]
        for i, triple in enumerate(TRIPLES[:2])
    ]
    assert together[:2] == pytest.approx(alone, abs=1e-4)


def test_scores_are_kept_and_equal_texts_read_once(checkpoint, tmp_path, monkeypatch):
    store = Store(tmp_path / "s.sqlite")
    first = MetricX(checkpoint, store).score([*TRIPLES, TRIPLES[0], ("a", None, "b")])
    assert first[0] == first[5] and math.isnan(first[6])
    again = MetricX(checkpoint, store)
    monkeypatch.setattr(again, "_load", lambda: pytest.fail("was loaded"))
    assert again.score(TRIPLES) == first[:5]


@pytest.mark.parametrize(
    "config",
    ["{}", "[]", '{"model_type": "gemma3_text"}', '{"model_type": "mt5", "vocab_size": 9}'],
)
def test_other_directories_are_refused(tmp_path, config):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match="no MetricX checkpoint"):
        MetricX(tmp_path / "x", Store(tmp_path / "s.sqlite")).score(TRIPLES)


def test_missing_weights_are_never_made_up(checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(checkpoint, tmp_path / "cut")
    weights = load_file(folder / "model.safetensors")
    del weights["decoder.final_layer_norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="1 weights are missing"):
        MetricX(folder, Store(tmp_path / "s.sqlite")).score(TRIPLES)


def test_translations_are_scored_by_it_and_chrf_stands_beside(checkpoint, tmp_path, pack, sampler):
    from singalaut.artifact import Work
    from singalaut.evals.config import EvaluateConfig
    from singalaut.evals.evaluate import Subject, run_evaluate
    from singalaut.evals.output import load_results

    file = pack / "translation-a.toml"
    text = file.read_text("utf-8").replace('"chrf++"', '"metricx"\nmetrics = ["chrf++"]')
    file.write_text(text, "utf-8")
    work = Work(tmp_path / "work")
    work.path.mkdir()

    def translate(prompt):
        return f"Terjemahan: teks nomor {prompt[-1]}"

    def evaluate(metricx):
        run_evaluate(
            EvaluateConfig(
                models=("m",),
                tasks=("translation-a",),
                temperature=0.0,
                metricx="x" if metricx else "",
                protocol={"resamples": 100},
            ),
            subjects={"m": Subject("m", lambda: sampler(translate))},
            pack=pack,
            work=work,
            seed=1,
            store=tmp_path / "store.sqlite",
            metricx=metricx,
        )
        return load_results(work.path)["models"]["m"]["tasks"]["translation-a"]["id"]

    found = evaluate(checkpoint)
    triples = [(f"text {i}", f"teks nomor {i}", f"teks nomor {i}") for i in range(2)]
    errors = reference(checkpoint, triples)
    wanted = 100 * sum((25 - e) / 25 for e in errors) / 2
    assert found["metric"] == "metricx" and found["score"] == pytest.approx(wanted, abs=1e-3)
    assert found["metrics"]["chrf++"] == pytest.approx(100)
    without = evaluate(None)
    assert (without["metric"], without["score"]) == ("chrf++", pytest.approx(100))
