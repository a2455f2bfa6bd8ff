"""Settings of the usage service."""

from pydantic_settings import SettingsConfigDict

from shared.settings import ServiceSettings


class Settings(ServiceSettings):
    """Read from KEYLEDGER_USAGE_*."""

    model_config = SettingsConfigDict(env_prefix="KEYLEDGER_USAGE_")
