"""Whether this machine is going down: then nothing on it lives on, and the agent must not say so."""

from __future__ import annotations

import asyncio

ANSWER_SECONDS = 2.0


async def machine_goes_down() -> bool:
    """What systemd says; False where there is none, or where it does not answer."""
    try:
        asked = await asyncio.create_subprocess_exec(
            "systemctl",
            "is-system-running",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return False
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            said, _ = await asked.communicate()
    except TimeoutError:
        asked.kill()
        await asked.wait()
        return False
    return said.strip() == b"stopping"
