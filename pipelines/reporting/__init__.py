"""Pages: what they are made from, the pictures of tokens, and the folder that they lie in."""
