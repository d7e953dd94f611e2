"""Text, tokens, and the files that come with qkit."""
