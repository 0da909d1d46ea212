"""Names in the configuration -> identities: one spelling for all that mean the same."""

from __future__ import annotations

from engine.config import AwsTenant, Owner, Tenant
from engine.frames import normalised_text


def aliases(owner: Owner) -> dict[str, str]:
    """Alias -> identity, both normalised."""
    return {normalised_text(alias): normalised_text(identity) for alias, identity in owner.aliases.items()}


def identity(owner: Owner, name: str) -> str:
    """The identity that a name in the configuration stands for."""
    spelled = normalised_text(name)
    return aliases(owner).get(spelled, spelled)


def operator(tenant: Tenant) -> str:
    """The operator's identity, '' if the tenant names none. Only owners that stand in tags have other spellings."""
    if not tenant.operator:
        return ""
    return identity(tenant.owner, tenant.operator) if isinstance(tenant, AwsTenant) else tenant.operator
