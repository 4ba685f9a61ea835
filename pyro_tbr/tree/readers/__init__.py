"""Text and tables to trees, and back."""
