"""How a teacher and its views become a member of a cache."""
