"""Settings of the stats service."""

from pydantic_settings import SettingsConfigDict

from shared.settings import ServiceSettings


class Settings(ServiceSettings):
    """Read from KEYLEDGER_STATS_*."""

    model_config = SettingsConfigDict(env_prefix="KEYLEDGER_STATS_")
