"""How tokens and pixels become the arrays that are kept, and back."""
