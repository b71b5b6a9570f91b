"""Tells vLLM servers to take new weights: all of a model from its folder, or an adapter by name.

The calls for whole models are vLLM's development endpoints, beside `/v1`, which servers have that
were started with `VLLM_SERVER_DEV_MODE=1`; those for adapters need `--enable-lora` and
`VLLM_ALLOW_RUNTIME_LORA_UPDATING=1`. All servers are told at the same time, and each must say yes:
answers from different weights would be worse than none.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from singalaut.errors import MachineError
from singalaut.remote.config import EndpointConfig
from singalaut.remote.endpoint import PASSING, access_headers
from singalaut.remote.pace import pause_seconds
from singalaut.remote.wire import error_text

DEV_MODE = "start the servers with `VLLM_SERVER_DEV_MODE=1`, on a network that is yours alone"
LORA = "start the servers with `--enable-lora` and `VLLM_ALLOW_RUNTIME_LORA_UPDATING=1`"


class WeightCalls:
    """The calls to the servers of one model; `counts` has how often each was made or repeated."""

    def __init__(self, config: EndpointConfig):
        self.config = config
        self.counts: Counter[str] = Counter()
        self._headers = access_headers(config)

    def reload(self) -> None:
        """Have all weights read again from where they were read first.

        Raises: MachineError naming the server that did not.
        """
        self._everywhere(self._reload)

    def load_adapter(self, name: str, folder: Path) -> None:
        """Have an adapter loaded that requests can then name as their model.

        Raises: MachineError naming the server that did not.
        """
        body = {"lora_name": name, "lora_path": str(folder)}
        self._everywhere(lambda base: self._post(f"{base}/load_lora_adapter", body, LORA))

    def unload_adapter(self, name: str) -> None:
        """Have an adapter forgotten."""
        body = {"lora_name": name}
        self._everywhere(lambda base: self._post(f"{base}/unload_lora_adapter", body, LORA))

    def _reload(self, base: str) -> None:
        root = base.removesuffix("/v1")
        self._post(f"{root}/collective_rpc", {"method": "reload_weights"}, DEV_MODE)
        self._post(f"{root}/reset_prefix_cache", None, DEV_MODE)

    def _everywhere(self, call: Callable[[str], None]) -> None:
        bases = [url.rstrip("/") for url in self.config.urls]
        with ThreadPoolExecutor(len(bases)) as threads:
            for done in [threads.submit(call, base) for base in bases]:
                done.result()

    def _post(self, url: str, body: dict[str, Any] | None, hint: str) -> None:
        """One call, repeated where its failure may pass."""
        reason = ""
        for attempt in range(self.config.retries + 1):
            if attempt:
                self.counts["repeated"] += 1
                time.sleep(pause_seconds(attempt - 1, None, random.random()))
            try:
                response = httpx.post(
                    url, json=body, headers=self._headers, timeout=self.config.timeout_seconds
                )
            except (httpx.HTTPError, OSError) as error:
                reason = f"{type(error).__name__}: {error}"
                continue
            if response.is_success:
                self.counts[url.rpartition("/")[2]] += 1
                return
            reason = error_text(response.status_code, response.text)
            if response.status_code not in PASSING:
                break
        raise MachineError(f"a server did not take new weights: {reason}", where=url, hint=hint)
