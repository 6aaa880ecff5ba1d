"""Masks: what they are, how they apply."""

from .effective import effective as effective, masked as masked, on_mask as on_mask, zeroed as zeroed
from .layout import laid_out_as as laid_out_as, made_as as made_as, members_as as members_as
from .mask import as_mask as as_mask, Mask as Mask
from .shards import BYTE as BYTE, check_whole as check_whole
