"""How one cache's features become another's."""
