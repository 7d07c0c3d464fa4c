"""Secrets of external backends, resolved in the gateway only and fit to be sent in a header."""

import os

from sage_reconcile import secrets


def resolve(reference: str) -> str:
    """The value that a reference stands for. Raises ValueError, never naming the value."""
    if not reference.startswith(("${env:", "${file:")):
        raise ValueError("api_key is not a reference of the form ${env:NAME} or ${file:PATH}")
    value = secrets.resolve(reference, os.environ)
    if not value.isascii() or not value.isprintable():
        raise ValueError(f"the value of {reference} cannot be sent in a header: it is not plain ASCII")
    return value
