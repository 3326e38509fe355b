"""Everything that decides: synchronous, so atomic in Trio, and free of sockets. No ``async`` stands on this floor."""
