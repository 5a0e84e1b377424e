"""Unpaired image translation by distilling entropic optimal transport."""

from eotjax.errors import UserError
from eotjax.export import Translator, load

__all__ = ["Translator", "UserError", "load"]
