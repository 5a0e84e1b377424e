"""Unpaired image translation by distilling entropic optimal transport."""

from eotjax.errors import UserError
from eotjax.export import load
from eotjax.translator import Translator

__all__ = ["Translator", "UserError", "load"]
