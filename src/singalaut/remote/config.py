"""How to reach a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import hashlib
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from singalaut.settings import Settings


class EndpointConfig(Settings):
    """One model behind one or several servers that answer alike."""

    urls: tuple[str, ...] = Field(min_length=1)
    """Base addresses, up to and with `/v1`; requests are spread over them."""
    model: str = Field(min_length=1)
    """What the servers call the model."""
    key_variable: str = ""
    """Environment variable that holds the access key; empty sends none."""
    concurrency: int = Field(64, ge=1)
    """Requests in flight at once, over all addresses."""
    requests_per_minute: float | None = Field(None, gt=0)
    """No more than this, averaged over a minute."""
    tokens_per_minute: float | None = Field(None, gt=0)
    """No more prompt and answer tokens than this, estimated before each request."""
    timeout_seconds: float = Field(600.0, gt=0)
    """Until an answer must be there."""
    retries: int = Field(6, ge=0)
    """How often a request is repeated after a refusal or failure that may pass."""
    token_ids: bool = False
    """Ask for the token ids of answers, which vLLM can give; training needs them."""
    tokenizer: str = ""
    """Directory of the model's tokenizer, where prompts have to be sent as token ids."""

    @field_validator("urls")
    @classmethod
    def _addresses(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.netloc:
                raise ValueError(f"`{url}` is no address, such as http://localhost:8000/v1")
            if parts.username or parts.password or parts.query:
                raise ValueError("an address must not hold a key: name its variable instead")
        return urls

    def identity(self) -> str:
        """What keys of stored answers call the model: its name and a hash of the first address.

        Results show it, and may be published: addresses are nobody's business.
        """
        address = hashlib.sha256(self.urls[0].rstrip("/").encode()).hexdigest()
        return f"{self.model} at endpoint {address[:12]}"
