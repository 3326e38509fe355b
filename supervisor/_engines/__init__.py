"""Everything that carries messages: implementations of `Wire`. Engines know words, and nothing of users or limits."""
