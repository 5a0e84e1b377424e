"""Unpaired image translation by distilling entropic optimal transport."""

from eotjax.artefact.export import load
from eotjax.artefact.translator import Translator
from eotjax.errors import UserError

__all__ = ["Translator", "UserError", "load"]
