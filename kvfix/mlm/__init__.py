"""The model: its family, how it is loaded and prompted, which tokens are images, what it sees."""
