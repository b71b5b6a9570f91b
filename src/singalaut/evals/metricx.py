"""MetricX-24: errors of translations, 0 (best) to 25, by a regression model on mT5.

The encoder reads source, candidate and reference; the decoder makes one step from token 0, and the
logit of one unused token is the error. Every input loses its own end mark before it is padded, as
the model was trained, so that a score does not depend on the other texts of its batch.

Source: Juraska et al. 2024, arXiv 2410.03983; github.com/google-research/metricx.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from singalaut.artifact import content_hash
from singalaut.errors import CheckpointError, MachineError
from singalaut.evals.store import Store, score_key
from singalaut.progress import progress

SCORE_TOKEN = 250089  # `<extra_id_10>`
LONGEST_INPUT = 1536  # tokens
WORST = 25.0
BATCH_TOKENS = {"cuda": 32_768, "cpu": 4096}  # padded, in one batch
Triple = tuple[str, "str | None", str]  # source, candidate, reference


class MetricX:
    """A checkpoint, loaded when the first score is not in the store."""

    def __init__(self, directory: Path, store: Store):
        self.directory, self.store = directory, store
        self.identity = f"metricx {content_hash(directory)}"
        self._model: Any = None
        self._tokenizer: Any = None

    def score(self, triples: Sequence[Triple]) -> list[float]:
        """The error of each candidate; NaN where there is none. Equal inputs are read once."""
        keys = [None if c is None else score_key(self.identity, s, c, r) for s, c, r in triples]
        wanted = {key: triple for key, triple in zip(keys, triples, strict=True) if key is not None}
        known = self.store.find_scores(list(wanted))
        missing = [key for key in wanted if key not in known]
        if missing:
            texts = [_input(wanted[key]) for key in missing]
            with progress("metricx", len(missing), "translation") as bar:
                for places, scores in self._scores(texts):
                    found = {missing[p]: s for p, s in zip(places, scores, strict=True)}
                    self.store.keep_scores(found)
                    known |= found
                    bar.advance(len(found))
            self._model = None  # a judge may need the memory
        return [math.nan if key is None else known[key] for key in keys]

    def _scores(self, texts: Sequence[str]) -> Iterator[tuple[list[int], list[float]]]:
        """Scores in batches of texts of like length, longest first, with their places."""
        import torch

        self._load()
        ids = self._tokenizer(texts, truncation=True, max_length=LONGEST_INPUT)["input_ids"]
        rows = [row[:-1] for row in ids]  # without each one's end mark
        order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
        device = self._model.device
        budget = BATCH_TOKENS[device.type]
        while order:
            size = max(1, budget // max(1, len(rows[order[0]])))
            places, order = order[:size], order[size:]
            width = max(1, len(rows[places[0]]))
            padded = torch.zeros((len(places), width), dtype=torch.long)
            mask = torch.zeros((len(places), width), dtype=torch.long)
            for line, place in enumerate(places):
                length = len(rows[place])
                padded[line, :length] = torch.tensor(rows[place], dtype=torch.long)
                mask[line, :length] = 1
            with torch.inference_mode():
                scores = regress(self._model, padded.to(device), mask.to(device))
            yield places, scores.float().clamp(0.0, WORST).tolist()

    def _load(self) -> None:
        if self._model is not None:
            return
        try:
            import torch
            from transformers import AutoTokenizer, MT5ForConditionalGeneration
        except ImportError:
            raise MachineError(
                "MetricX needs the package `transformers`", hint="pip install 'singalaut[metricx]'"
            ) from None
        check_checkpoint(self.directory)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self.directory)
            loaded: Any = MT5ForConditionalGeneration.from_pretrained(
                self.directory, dtype="auto", use_safetensors=True, output_loading_info=True
            )
            model, loading = loaded
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"this is no MetricX checkpoint: {str(error).splitlines()[0]}",
                where=self.directory,
                hint="the directory needs config.json, safetensors weights and mT5's tokenizer",
            ) from error
        if missing := sorted(loading["missing_keys"]):
            raise CheckpointError(
                f"{len(missing)} weights are missing, the first: `{missing[0]}`",
                where=self.directory,
                hint="the checkpoint is incomplete; fetch it again",
            )
        self._model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def check_checkpoint(directory: Path) -> None:
    """Raise CheckpointError unless `config.json` is that of an mT5 with the score's token."""
    file = directory / "config.json"
    try:
        config = json.loads(file.read_bytes())
        kind, size = config.get("model_type"), config.get("vocab_size", 0)
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"this is no MetricX checkpoint: {error}",
            where=file,
            hint="the directory needs config.json, safetensors weights and mT5's tokenizer",
        ) from error
    if kind != "mt5" or not isinstance(size, int) or size <= SCORE_TOKEN:
        raise CheckpointError(
            f"this is no MetricX checkpoint: `model_type` {kind}, a vocabulary of {size}",
            where=file,
            hint=f"MetricX-24 is an mT5, whose vocabulary has the token {SCORE_TOKEN}",
        )


def regress(model: Any, ids: Any, mask: Any) -> Any:
    """The logit of the score token after one decoder step, [batch]; only that row of the head."""
    import torch

    encoded = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    start = torch.zeros((len(ids), 1), dtype=torch.long, device=ids.device)
    decoded = model.get_decoder()(
        input_ids=start, encoder_hidden_states=encoded, encoder_attention_mask=mask
    ).last_hidden_state
    return decoded[:, 0] @ model.lm_head.weight[SCORE_TOKEN]


def _input(triple: Triple) -> str:
    source, candidate, reference = triple
    return f"source: {source} candidate: {candidate} reference: {reference}"
