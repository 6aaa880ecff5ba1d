"""Reading models and PyTrees into sites, and writing back; the only room that walks a model."""

from .pattern import (
    as_patterns as as_patterns,
    check_by_pattern as check_by_pattern,
    no_match as no_match,
    Pattern as Pattern,
    PatternMap as PatternMap,
    pick as pick,
    Where as Where,
)
from .table import (
    masks_of as masks_of,
    read as read,
    Site as Site,
    Sites as Sites,
    weights_of as weights_of,
    write as write,
)
from .walk import (
    is_model as is_model,
    join as join,
    leaves_by_path as leaves_by_path,
    map_layers as map_layers,
    path_of as path_of,
    replace_fields as replace_fields,
)
