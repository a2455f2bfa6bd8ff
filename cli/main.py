"""The `keyledger` command."""

from __future__ import annotations

from importlib import metadata

import typer

from cli import doctor, owners, stack
from cli.output import say
from services.edge import compiled

app = typer.Typer(
    name="keyledger",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="Self-hosted API keys with a ledger.",
)
owner_app = typer.Typer(no_args_is_help=True, help="Owners of API keys.")
key_app = typer.Typer(no_args_is_help=True, help="API keys, made on the server itself.")


@app.command()
def version() -> None:
    """Show the version, and which form of the edge's code runs here."""
    say(metadata.version("keyledger"))
    say(f"edge: {compiled.describe()}")


for command in (stack.up, stack.down, stack.status, stack.logs, doctor.doctor):
    app.command()(command)
owner_app.command("create")(owners.create_owner)
key_app.command("create")(owners.create_key)
app.add_typer(owner_app, name="owner")
app.add_typer(key_app, name="key")

if __name__ == "__main__":
    app()
