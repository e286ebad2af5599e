"""Models of others, in their files, to ours and back."""
