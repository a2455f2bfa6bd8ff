"""Settings of the tickets service."""

from pydantic_settings import SettingsConfigDict

from shared.settings import ServiceSettings


class Settings(ServiceSettings):
    """Read from KEYLEDGER_TICKETS_*."""

    model_config = SettingsConfigDict(env_prefix="KEYLEDGER_TICKETS_")
