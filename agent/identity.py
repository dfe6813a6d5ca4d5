"""Who this agent is: a UUID made on first run and kept in the state folder."""

import os
import uuid
from pathlib import Path

from agent.component import ConfigError


def load_or_create(state_dir: Path) -> str:
    """The agent's id. Raises ConfigError where the folder cannot be used or the file holds something else."""
    path = state_dir / "agent_id"
    try:
        state_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        if not path.exists():
            _create(path)
        text = path.read_text(encoding="ascii").strip()
        return str(uuid.UUID(text))
    except OSError as error:
        remedy = f"Create {state_dir} and give it to the agent's user."
        raise ConfigError(
            f"the state folder {state_dir} cannot be used: {error}", key="agent.state_dir", remedy=remedy
        ) from None
    except ValueError:
        remedy = "Restore it from a backup, or delete it: the agent then registers as a new one."
        raise ConfigError(f"{path} does not hold an agent's id", key="agent.state_dir", remedy=remedy) from None


def _create(path: Path) -> None:
    # Whole or not at all: a power cut between the two lines must not leave an empty file.
    draft = path.with_name("agent_id.new")
    with draft.open("w", encoding="ascii") as file:
        file.write(f"{uuid.uuid4()}\n")
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
