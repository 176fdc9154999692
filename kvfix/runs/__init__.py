"""What runs leave on disk: the folder, its samples, the lock; nothing is left half written."""
