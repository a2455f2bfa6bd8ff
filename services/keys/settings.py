"""Settings of the keys service."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.settings import ServiceSettings


class Settings(ServiceSettings):
    """Read from KEYLEDGER_KEYS_*."""

    model_config = SettingsConfigDict(env_prefix="KEYLEDGER_KEYS_")

    environment: str = Field(
        default="live", pattern="^[a-z0-9]{1,16}$", description="The <env> of the secrets that are made: kl_<env>_..."
    )
    usage_url: str = Field(
        default="", pattern="^(https?://.+)?$", description="The usage service's API, asked for a key's last calls."
    )
    confirmation_wait: float = Field(
        default=1.0,
        ge=0,
        le=30,
        description="How long a change of a key waits for the edges to confirm it, in seconds.",
    )
